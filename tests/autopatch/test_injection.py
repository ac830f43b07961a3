# SPDX-License-Identifier: Apache-2.0
"""Real processes: a script under the engine behaves as without it, whatever kind of script it is."""

import os

import pytest

from slipstream.autopatch.settings import Settings

MODEL = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).eval()
with torch.no_grad():
    y = model(torch.randn(64, 256))
print(tuple(y.shape), y.dtype, y.stride())
"""


def same(outcomes):
    plain, injected = outcomes
    assert injected.stdout == plain.stdout
    assert injected.code == plain.code
    return plain, injected


def looked_at(report):
    return [decision["what"] for decision in report["decisions"] if ": " in decision["what"]]


def test_future_imports_docstring_arguments_and_exit_code(run):
    source = '"""What it does."""\nfrom __future__ import annotations\nimport sys\n' + MODEL + (
        "print(__doc__, __file__, __name__, sys.argv[1:], sys.path[0] == sys.path[0], 'sitecustomize' in sys.modules)\n"
        "print([entry for entry in sys.path])\n"
        "sys.exit(3)\n"
    )
    plain, injected = same(run(source, "two words", 'quo"te', "$HOME", ""))
    assert plain.code == 3 and b"two words" in plain.stdout
    assert injected.stderr == plain.stderr == b""
    (report,) = injected.reports
    assert report["argv"][0] == "script.py" and report["instance"] is None
    assert looked_at(report)
    assert {"taken", "not_taken", "setup_s", "packed_mb"} <= set(report["summary"])


def test_training_with_a_data_loader_and_its_workers(run):
    source = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __init__(self):
        self.transform = nn.Linear(4, 4).eval()
    def __len__(self):
        return 16
    def __getitem__(self, index):
        with torch.no_grad():
            return self.transform(torch.full((4,), float(index)))

if __name__ == "__main__":
    torch.manual_seed(0)
    data = Numbers()
    model = nn.Sequential(nn.Linear(4, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Dropout(0.1), nn.Linear(300, 1))
    optimizer = torch.optim.Adam(model.parameters())
    for epoch in range(2):
        for batch in DataLoader(data, batch_size=8, num_workers=2):
            optimizer.zero_grad()
            loss = model(batch).pow(2).mean()
            loss.backward()
            optimizer.step()
        print(epoch, loss.item(), sum(p.abs().sum().item() for p in model.parameters()))
"""
    plain, injected = same(run(source))
    assert plain.code == 0 and plain.stdout
    assert len(injected.reports) == 1  # workers have nothing to tell


def test_the_users_own_sitecustomize_runs_first(run, tmp_path):
    source = "import sys, sitecustomize\nprint(sitecustomize.value, sitecustomize.__file__, sys.path)\n" + MODEL
    own = {"own/sitecustomize.py": "import sys\nprint('theirs', 'torch' in sys.modules)\nvalue = 42\n"}
    plain, injected = same(run(source, files=own, extra={"PYTHONPATH": str(tmp_path / "scripts" / "own")}))
    assert b"theirs False" in plain.stdout and b"42" in plain.stdout
    assert looked_at(injected.reports[0])


@pytest.mark.parametrize("failure", ["1 / 0", "raise ImportError('theirs')", "import no_such_thing", "raise SystemExit(5)"])
def test_a_sitecustomize_that_fails_fails_alike(run, tmp_path, failure):
    own = {"own/sitecustomize.py": f"print('theirs')\n{failure}\n"}
    plain, injected = same(
        run("import sys\nprint('script', 'sitecustomize' in sys.modules)", files=own,
            extra={"PYTHONPATH": str(tmp_path / "scripts" / "own")})
    )  # fmt: skip
    if "SystemExit" not in failure:
        assert injected.stderr == plain.stderr
        assert b"script False" in plain.stdout


def test_no_torch_at_all(run):
    source = "import sys\nprint(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'sitecustomize')))"
    plain, injected = same(run(source))
    assert plain.stdout.strip() == b"[]" and not injected.reports


def test_a_module_by_name(run):
    files = {"package/__init__.py": "", "package/__main__.py": "import sys\nprint(__name__, sys.argv[1:])\n" + MODEL}
    _, injected = same(run("", "a b", program=["-m", "package"], files=files))
    assert looked_at(injected.reports[0])


def test_code_on_the_command_line(run):
    same(run("", "x", program=["-c", "import sys; print(sys.argv)"]))


def test_an_error_in_the_script(run):
    source = MODEL + "def f():\n    raise ValueError('mine')\nf()\n"
    plain, injected = same(run(source))
    assert plain.code == 1 and injected.stderr == plain.stderr


def test_an_error_in_the_forward_keeps_its_text(run):
    source = MODEL + "with torch.no_grad():\n    model(torch.randn(3, 5))\n"
    plain, injected = same(run(source))
    assert plain.code == 1 and injected.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]
    assert b"During handling" not in injected.stderr


@pytest.mark.parametrize("settings", [Settings(dtype="bfloat16"), Settings(dtype="bfloat16", children=False)])
def test_processes_that_a_script_starts(run, settings):
    files = {"child.py": MODEL}
    source = "import subprocess, sys\nprint(subprocess.run([sys.executable, 'child.py'], check=True, capture_output=True))\n"
    _, injected = same(run(source, files=files, settings=settings))
    assert bool(injected.reports) == settings.children


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_multiprocessing(run, method):
    source = f"""
import multiprocessing
{MODEL.replace("print", "pass #")}

def work(number):
    with torch.no_grad():
        return tuple(model(torch.ones(64, 256)).shape), number

if __name__ == "__main__":
    process = multiprocessing.get_context({method!r})
    with process.Pool(1) as pool:
        print(pool.map(work, range(3)))
        pool.close()
        pool.join()
"""
    _, injected = same(run(source))
    assert len(injected.reports) == 2
    assert all(looked_at(report) for report in injected.reports)


def test_the_switch_of_the_user(run):
    _, injected = same(run(MODEL, extra={"SLIPSTREAM_DISABLE": "1"}))
    assert not injected.reports


def test_verbose_speaks_on_stderr_only(run):
    _, injected = same(run(MODEL, settings=Settings(dtype="bfloat16", verbose=True)))
    assert f"process {injected.reports[0]['pid']}".encode() in injected.stderr
    assert os.linesep.encode() in injected.stderr
