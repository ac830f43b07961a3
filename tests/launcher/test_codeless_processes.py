# SPDX-License-Identifier: Apache-2.0
"""Real processes: --compare, inspect and bisect, on small models and on scripts that only pretend to have some."""

import json
import os
import signal
import subprocess
import sys

import pytest
from launched import ALLOWED, environment

from slipstream.kernels import native

MODEL = """
import sys, time, torch
from torch import nn
torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(256, 512), nn.Linear(512, 256), nn.Linear(256, 256)
        for layer in (self.first, self.third):  # small whole numbers: the same in bfloat16
            with torch.no_grad():
                layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape)); layer.bias.zero_()

    def forward(self, x):
        y = self.second(self.first(x).clamp(-1, 1).round())
        return y, self.third((y * 4).round().clamp(-3, 3))

net = Net().eval()
with torch.no_grad():
    for number in range(3):
        start = time.time()
        y, z = net(torch.randint(-1, 2, (512, 256)).float())
        print(f"throughput: {512 / (time.time() - start)} samples/s")
        print("sum", y.double().abs().sum().item(), "of", z.shape)
"""

PRETENDING = """
import json, os, sys
skip = os.environ.get("SLIPSTREAM_SKIP", "").split(",")
on = "SLIPSTREAM_AUTOPATCH" in os.environ
names = [f"Net.layer.{number}" for number in range(40)] + ["Net.odd[0]"]
used = [name for name in names if on and name.replace("[", "[[]") not in skip]
folder = os.environ["SLIPSTREAM_REPORT_DIR"]
if on:
    whats = [f"{name}: packed linear" for name in names]
    accounts = {what: {"layer": "Linear", "tier": "leaf"} for what in whats}
    decisions = [{"what": what, "taken": True, "reason": "", "figures": {}} for what in whats]
    with open(f"{folder}/{os.getpid()}.json", "w") as file:
        json.dump({"pid": os.getpid(), "decisions": decisions, "accounts": accounts}, file)
spoiled = set(used) & set(sys.argv[1:])
print("took 3.5 ms" if on else "took 9.1 ms")
print("answer", 41 + (not spoiled))
"""


@pytest.fixture
def slipstream(tmp_path):
    """Run a subcommand to its end."""

    def run(*words, **changes):
        command = [sys.executable, "-c", "import sys; from slipstream.launcher.cli import main; sys.exit(main(sys.argv[1:]))"]
        env = environment(OMP_NUM_THREADS="1", **changes)
        return subprocess.run(
            [*command, *map(str, words)], timeout=100, stdin=subprocess.DEVNULL, env=env, capture_output=True, text=True
        )

    return run


def test_compare_with_a_report(launcher, script, tmp_path):
    report = tmp_path / "report.json"
    ended = launcher("--compare", "--dtype", "bfloat16", "--tolerance", "0.01", "--report", report, script(MODEL))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    content = json.loads(report.read_text())
    found = content["comparison"]
    assert found["exit_codes"] == [[0], [0]] and found["stdout"]["same"] and not found["stdout"]["identical"]
    assert {"seconds", "throughput, samples/s"} <= {row["name"] for row in found["rows"]}
    assert "stdout: the same " in ended.stdout and "times and rates in 3 lines" in ended.stdout
    assert content["processes"][0]["accounts"]


def test_compare_says_what_differs(launcher, script):
    path = script("import os\nprint('one')\nprint('SLIPSTREAM_AUTOPATCH' in os.environ)\n")
    ended = launcher("--compare", "2", path)
    assert ended.returncode == 1
    assert "stdout: DIFFERENT in 1 line" in ended.stdout
    assert "  -False\n  +True\n" in ended.stdout
    assert ended.stderr.count("round ") == 4


def test_compare_returns_the_scripts_own_code_and_shows_why(launcher, script):
    ended = launcher("--compare=1", script("import sys\nprint(1)\nsys.exit('mine')"))
    assert ended.returncode == 1
    assert "byte-identical" in ended.stdout and "mine" in ended.stderr
    ended = launcher("--compare", script("import os, sys\nsys.exit('SLIPSTREAM_AUTOPATCH' in os.environ)"))
    assert ended.returncode == 1 and "exit code" in ended.stderr


def test_compare_gives_both_the_same_plan_and_environment(launcher, script):
    text = """
        import os
        print(sorted(os.sched_getaffinity(0)))
        ours = ("SLIPSTREAM_", "PYTHONPATH")
        print({name: value for name, value in sorted(os.environ.items()) if not name.startswith(ours)})
    """
    ended = launcher("--compare", script(text))
    assert ended.returncode == 0 and "byte-identical" in ended.stdout


def test_compare_of_two_instances_compares_each_with_itself(launcher, script):
    text = "import json, os\nprint(json.loads(os.environ['SLIPSTREAM_PLAN'])['index'])\n"
    if len(os.sched_getaffinity(0)) > 1:
        ended = launcher("--compare", "--ninstances", 2, script(text))
        assert ended.returncode == 0 and "byte-identical" in ended.stdout


def test_inspect_leaves_the_plain_output(slipstream, script, tmp_path):
    text = """
        import torch
        from torch import nn
        torch.manual_seed(0)
        block = nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(32, 32, 3))
        lstm, encoder = nn.LSTM(64, 64, batch_first=True), nn.TransformerEncoderLayer(64, 4, batch_first=True)
        row = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
        for module in (block, lstm, encoder, row):
            module.eval()
        attention = torch.nn.functional.scaled_dot_product_attention
        with torch.no_grad():
            for number in range(3):
                y = block(torch.randn(4, 16, 32, 32))
                z = lstm(torch.randn(8, 32, 64))[0]
                a = attention(*(torch.randn(2, 4, 64, 32) for _ in range(3)))
                print([x.double().sum().item() for x in (y, z, a, encoder(z), row(z))], y.stride())
    """
    path = script(text)
    plain = subprocess.run([sys.executable, path], env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True)
    report = tmp_path / "report.json"
    ended = slipstream("inspect", "--dtype", "bfloat16", "--cores-list", ALLOWED[0], "--report", report, path)
    assert (ended.returncode, ended.stdout) == (0, plain.stdout) and plain.stdout
    assert "what would be done" in ended.stderr and "packed" in ended.stderr
    process = json.loads(report.read_text())["processes"][0]
    assert any(account["calls"] for account in process["accounts"].values())
    graphs = {each["what"]: each["reason"] for each in process["decisions"] if each["what"].endswith("graph: whole model")}
    assert graphs and any("captured" not in reason for reason in graphs.values()), graphs


def test_bisect_finds_the_layer(slipstream, script):
    ended = slipstream("bisect", "--dtype", "bfloat16", "--tolerance", 0, script(MODEL))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "SLIPSTREAM_SKIP=Net.second"
    assert "1 of 3 pieces changes the answer" in ended.stdout


def test_bisect_finds_several_by_name(slipstream, script):
    ended = slipstream("bisect", script(PRETENDING), "Net.layer.3", "Net.layer.38", "Net.odd[0]")
    assert ended.stdout.splitlines()[-1] == "SLIPSTREAM_SKIP='Net.layer.3,Net.layer.38,Net.odd[[]0]'"
    assert "-answer 42" in ended.stdout and "-took" not in ended.stdout
    assert ended.returncode == 0 and "3 of 41 pieces change" in ended.stdout


def test_bisect_with_a_check_behind_the_scripts_own_arguments(slipstream, script):
    same = 'test "$(tail -1 $SLIPSTREAM_CHECK_PLAIN)" = "$(tail -1 $SLIPSTREAM_CHECK_OUTPUT)"'
    check = f'grep -q "answer 42" && {same} && test $SLIPSTREAM_CHECK_EXIT_CODE = 0'
    ended = slipstream("bisect", script(PRETENDING), "Net.layer.7", "--check", check)
    assert ended.stdout.splitlines()[-1] == "SLIPSTREAM_SKIP=Net.layer.7"


def test_bisect_leaves_out_what_it_may_not_try(slipstream, script):
    ended = slipstream("bisect", "--runs", 2, script(PRETENDING), "Net.layer.3")
    assert "were not told apart within 2 runs" in ended.stdout
    assert "Net.layer.3" in ended.stdout.splitlines()[-1]


def test_bisect_with_nothing_to_find(slipstream, script):
    ended = slipstream("bisect", script(PRETENDING), "no such layer")
    assert ended.returncode == 0 and "nothing to find" in ended.stdout


def test_bisect_says_when_it_is_no_modules_doing(slipstream, script):
    text = "import os\nos.environ.pop('SLIPSTREAM_SKIP', 0)\n" + PRETENDING
    ended = slipstream("bisect", script(text), "Net.layer.3")
    assert ended.returncode == 1 and "no module's doing" in ended.stdout


def test_bisect_says_when_the_plain_run_varies(slipstream, script):
    noisy = "import os\nprint('process', os.getpid())\n" + PRETENDING
    ended = slipstream("bisect", script(noisy), "Net.layer.3")
    assert "not deterministic: 1 lines vary" in ended.stderr
    assert ended.stdout.splitlines()[-1] == "SLIPSTREAM_SKIP=Net.layer.3"
    longer = "import os\nprint('line\\n' * (os.getpid() % 7919))\n" + PRETENDING
    ended = slipstream("bisect", script(longer, name="longer.py"), "Net.layer.3")
    assert ended.returncode == 2 and "not deterministic" in ended.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bisect", "--check"], "--check: a value is missing"),
        (["bisect", "--check", "false", __file__], "--check false: it fails on the plain run"),
        (["bisect", "--runs", "0", __file__], "--runs 0: give a whole number from 1"),
        (["bisect", "--report", "-", __file__], "--report: not with slipstream bisect"),
        (["bisect", "--nnodes", "1", __file__], "--nnodes 1: runs are compared on one machine"),
        (["bisect", "--tolerance", "2", __file__], "--tolerance 2: not a relative difference"),
        (["inspect", "--compare", __file__], "--compare 1: slipstream inspect lets the originals answer"),
        (["run", "--compare", "0", __file__], "--compare 0: give the number of rounds"),
        (["run", "--compare", "--nnodes", "1", __file__], "--nnodes 1: runs are compared on one machine"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(slipstream, words, sentence):
    ended = slipstream(*words)
    assert ended.returncode == 2 and ended.stdout == ""
    assert sentence in ended.stderr.splitlines()[-1]


def test_bisect_ends_when_it_is_told_to(script):
    command = "import sys; from slipstream.launcher.cli import main; sys.exit(main(sys.argv[1:]))"
    path = script("import time\ntime.sleep(0.3)\n" + PRETENDING)
    process = subprocess.Popen(
        [sys.executable, "-c", command, "bisect", path, "Net.layer.3"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "every piece left out" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT and stdout == ""


def test_help(slipstream):
    ended = slipstream("bisect", "--help")
    assert ended.returncode == 0 and "--check CMD" in ended.stdout
    assert "--tolerance" in slipstream("inspect", "--help").stdout


def test_float16_is_refused_where_the_cpu_has_none(launcher, script):
    from slipstream.launcher.options import HALF_FLAGS
    from slipstream.runtime import isa

    ended = launcher("--auto_ipex", "--dtype", "float16", "--dry-run", script("pass"))
    if isa.cpu_flags() & HALF_FLAGS:
        assert ended.returncode == 0
    else:
        assert ended.returncode == 2
        assert "--dtype float16: this CPU has none of amx_fp16, avx512_fp16" in ended.stderr


def test_flags_of_the_engine_reach_its_settings(launcher, script):
    text = "import json, os; print(json.loads(os.environ['SLIPSTREAM_AUTOPATCH'])['settings'])"
    command = "import subprocess, sys; subprocess.run([sys.executable, '-S', sys.argv[1]])"
    flags = ["--auto_ipex", "--low_memory", "--budget", "2.5", "--disable_ipex_graph_mode", "--auto_ipex_verbose"]
    ended = launcher(*flags, script(command, name="start.py"), script(text))
    said = ended.stdout
    for wanted in ("'low_memory': True", "'budget_s': 2.5", "'graph_mode': False", "'verbose': True", "'children': True"):
        assert wanted in said
    ended = launcher(*flags, "--no-children", script(command, name="start.py"), script(text))
    assert "KeyError: 'SLIPSTREAM_AUTOPATCH'" in ended.stderr  # taken away in the script's own process


@pytest.mark.skipif(not native.available(), reason="the graph tier lowers to native kernels")
def test_bisect_tells_a_graph_from_its_layers(slipstream, script):
    text = """
        import sys
        import torch
        from slipstream.optimize.graph.operators import linear
        from torch import nn
        torch.manual_seed(0)
        right = linear.Linear.__call__
        linear.Linear.__call__ = lambda *given: right(*given) * 1.00001
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(64, 256), nn.Linear(256, 64)
            def forward(self, x):
                return self.second(self.first(x).relu())
        model, x = Net().eval(), torch.randn(8, 64)
        with torch.no_grad():
            for number in range(6):
                y = model(x)
        print("%.3f" % (y[0, 0].item() * 1e6))
    """
    ended = slipstream("bisect", "--dtype", "float32", "--tolerance", 3e-6, script(text))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "SLIPSTREAM_SKIP=Net.graph", ended.stdout
