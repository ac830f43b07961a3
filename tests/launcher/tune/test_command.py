# SPDX-License-Identifier: Apache-2.0
"""`slipstream tune` as a command on real scripts: crashes, hangs, resuming, interruption, old files. No timing is asserted."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from slipstream.launcher.tune.verdict import RACE

ALLOWED = sorted(os.sched_getaffinity(0))
START = "import sys; sys.path.remove(''); from slipstream.launcher.cli import main; sys.exit(main())"
COMMAND = [sys.executable, "-c", START, "tune"]
PACKAGE_PARENT = str(pathlib.Path(__file__).parents[3])

ONE = "instances=1; allocator=default; openmp=default; smt=off"
TWO = "instances=1,2; allocator=default; openmp=default; smt=off"

two_cpus = pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two CPUs")

# What a script prints depends on its start alone, so that the best configuration is known.
BY_START = """
import json, os, sys
plan = json.loads(os.environ["SLIPSTREAM_PLAN"])
with open(sys.argv[1], "a") as file:
    file.write("started\\n")
policy, threads = os.environ.get("KIND", ""), len(plan["cpus"])
"""


def environment():
    merged = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_", "LD_PRELOAD"))}
    return {**merged, "PYTHONPATH": PACKAGE_PARENT}


@pytest.fixture
def tune(tmp_path):
    """Run it to its end in a folder of its own."""

    def run(*words, **options):
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            env=environment(),
            cwd=tmp_path,
            **options,
        )

    return run


@pytest.fixture
def by_start(tmp_path):
    """A script and the file in which it counts its starts."""

    def write(text):
        path, count = tmp_path / "script.py", tmp_path / "starts"
        path.write_text(BY_START + text)
        count.write_text("")
        return [str(path), str(count)]

    return write


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


@two_cpus
def test_the_best_configuration_of_a_small_space_is_found(tune, by_start, tmp_path):
    """Every configuration is run by hand too: none of them is better than the one that was found."""
    words = by_start('print(f"throughput: {7 + 3 * threads} samples/s")')
    ended = tune("--budget", "60s", "--output", tmp_path / "found", "--space", TWO + "; cores=0,1", *words)
    assert ended.returncode == 0, ended.stderr
    result = result_of(tmp_path / "found")
    found = {}
    for standing in result["standings"]:
        report = tmp_path / "report.json"
        code = "import sys; from slipstream.launcher.cli import ipexrun; sys.exit(ipexrun())"
        line = [sys.executable, "-c", code, "--report", str(report), *standing["flags"], *words]
        subprocess.run(line, check=True, env=environment(), stdout=subprocess.DEVNULL)
        found[tuple(standing["flags"])] = json.loads(report.read_text())["metrics"][0]["total"]
    assert len(found) == len(result["standings"]) >= 3
    best = result["standings"][0]
    assert found[tuple(best["flags"])] == max(found.values()) == best["medians"][0] == 20.0
    assert result["winner"] == best["configuration"]
    assert best["stage"] == RACE and "better than every other finalist" in result["decisions"][-1]["reason"]


@two_cpus
def test_one_configuration_crashes_and_the_search_goes_on(tune, by_start, tmp_path):
    words = by_start('if threads == 1: raise RuntimeError("not on one core")\nprint("throughput: 3 samples/s")')
    ended = tune("--budget", "60s", "--output", tmp_path / "found", "--space", TWO, "--repeats", "2", *words)
    assert ended.returncode == 0, ended.stderr
    last = shlex.split(ended.stdout.splitlines()[-1])
    assert last[0] == "ipexrun" and last[last.index("--ninstances") + 1] == "1" and last[-2:] == words
    failed = result_of(tmp_path / "found")["standings"][-1]
    assert failed["failed"] and "RuntimeError: not on one core" in failed["note"] and "exit code 1" in failed["note"]
    assert "not on one core" in ended.stdout
    assert (tmp_path / "found" / "command.txt").read_text().strip() == ended.stdout.splitlines()[-1]


@two_cpus
def test_hangs_and_silence_are_failures_with_reasons(tune, by_start, tmp_path):
    words = by_start(
        """
import time
if len(plan["cpus"]) == 1 and os.environ.get("KIND") is None:
    if plan["index"] == 0: time.sleep(1000)
if threads == 2: print("throughput: 3 samples/s")
"""
    )
    space = TWO
    limit = ["--trial-timeout", "3s", "--budget", "60s"]
    ended = tune(*limit, "--output", tmp_path / "hang", "--space", space, "--repeats", "1", *words)
    assert ended.returncode == 0, ended.stderr
    assert "not at its end after" in result_of(tmp_path / "hang")["standings"][-1]["note"]
    ended = tune(*limit, "--output", tmp_path / "silent", "--env", "KIND=x", "--space", space, "--repeats", "1", *words)
    assert "printed no figure" in result_of(tmp_path / "silent")["standings"][-1]["note"]


def test_nothing_succeeds(tune, by_start, tmp_path):
    ended = tune("--budget", "30s", "--output", "found", "--space", ONE, *by_start("sys.exit(3)"))
    assert ended.returncode == 1
    assert "no winner" in ended.stderr and "exit code 3" in ended.stdout
    assert (tmp_path / "found" / "command.txt").read_text() == ""


def test_resume_runs_only_what_is_missing(tune, by_start, tmp_path):
    words = by_start('print("throughput: 3 samples/s")')
    line = ["--budget", "60s", "--output", "found", "--space", ONE, "--repeats", "3"]
    assert tune(*line, *words).returncode == 0
    starts = tmp_path / "starts"
    first = starts.read_text().count("started")
    refused = tune(*line, *words)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    record = tmp_path / "found" / "trials.jsonl"
    kept = record.read_text().splitlines(keepends=True)[:-1]
    record.write_text("".join(kept))
    resumed = tune(*line, "--resume", *words)
    assert resumed.returncode == 0
    assert starts.read_text().count("started") == first + 1
    assert len(record.read_text().splitlines()) == len(kept) + 1


def test_quiet_without_a_terminal(tune, by_start):
    ended = tune("--budget", "30s", "--output", "found", "--space", ONE, *by_start('print("throughput: 3")'))
    assert ended.stderr == ""
    assert "\x1b" not in ended.stdout


def test_an_interruption_reports_what_is_known_and_leaves_no_process(by_start, tmp_path):
    words = by_start(
        """
import time
with open(sys.argv[1]) as file: first = len(file.readlines()) == 1
print("throughput: 3 samples/s", flush=True)
if not first:
    with open(sys.argv[1] + ".pid", "w") as file: file.write(str(os.getpid()))
    time.sleep(1000)
"""
    )
    process = subprocess.Popen(
        [*COMMAND, "--budget", "100s", "--output", "found", "--space", ONE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=tmp_path,
    )
    pid_file = tmp_path / "starts.pid"
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume --output found" in errors
    assert output.splitlines()[-1].startswith("ipexrun ")
    assert not pathlib.Path(f"/proc/{int(pid_file.read_text())}/stat").exists()
    assert len((tmp_path / "found" / "trials.jsonl").read_text().splitlines()) == 2


@two_cpus
def test_old_file_and_marker(tune, by_start, tmp_path):
    """Two instances: both values count. The default allocator is what `pt` gets."""
    pytest.importorskip("yaml")
    (tmp_path / "conf.yaml").write_text(
        "tuning: {strategy: grid, max_trials: 9}\noutput_dir: found\n"
        "hyperparams: {launcher: {hp: [ncore_per_instance, ninstances, malloc], "
        "ncore_per_instance: [1], ninstances: [1, 2], malloc: [pt]}}\n"
    )
    words = by_start("print(\"@hypertune {'name': 'speed', 'higher_is_better': True}\")\nprint(5)\nprint('more')")
    ended = tune("--budget", "60s", "--conf_file", "conf.yaml", *words)
    assert ended.returncode == 0, ended.stderr
    assert "ncore_per_instance is now spelled ncores_per_instance" in ended.stderr
    result = result_of(tmp_path / "found")
    assert [one["medians"] for one in result["standings"]] == [[10.0], [5.0]]
    assert result["winner"]["ninstances"] == "2"
    assert result["winner"]["memory-allocator"] == "default"
    assert "--memory-allocator default" in ended.stdout.splitlines()[-1]


def test_latency_under_percentile_patterns(tune, by_start, tmp_path):
    words = by_start('print("throughput: 3 samples/s"); print("p99: 0.012 s")')
    ended = tune("--budget", "30s", "--objective", "p99<20", "--output", "found", "--space", ONE, *words)
    assert ended.returncode == 0
    ended = tune("--budget", "30s", "--objective", "p99<10", "--output", "other", "--space", ONE, *words)
    assert ended.returncode == 1 and "no configuration keeps the limits" in ended.stderr


def test_dry_run_prints_the_space_and_starts_nothing(tune, by_start, tmp_path):
    words = by_start("")
    ended = tune("--dry-run", "--memory-allocator", "default", *words)
    assert ended.returncode == 0 and "--ninstances 1" in ended.stdout
    assert (tmp_path / "starts").read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py", "starts"]


def test_a_file_in_the_current_folder_is_not_taken_for_a_module(tune, by_start, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    script = tmp_path / "folder" / "script.py"
    script.parent.mkdir()
    script.write_text('print("throughput: 3 samples/s")')
    assert tune("--budget", "30s", "--output", "found", "--space", ONE, script).returncode in {0, 1}
    note = result_of(tmp_path / "found")["standings"][0]["note"]
    assert note == "winner"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "PROGRAM: missing"),
        (["missing.py"], "PROGRAM missing.py: no such script"),
        (["--budget", "soon", "x.py"], "--budget soon"),
        (["--objective", "p99<", __file__], "--objective p99<"),
        (["--space", "instances=99999", __file__], "no configuration of it can run here"),
        (["--conf-file", "no.yaml", __file__], "no.yaml: No such file"),
        (["--conf-file", "no.yaml", "--space", "instances=1", __file__], "give one of the two"),
        (["--resume", "--output", "nowhere", __file__], "no trials.jsonl"),
        (["--output", "/proc/none", __file__], "--output /proc/none"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tune, words, sentence):
    ended = tune(*words)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1 and sentence in ended.stderr


def test_help_says_every_own_flag(tune):
    from slipstream.launcher.tune.request import TAKES_VALUE

    ended = tune("--help")
    assert ended.returncode == 0
    assert all(name in ended.stdout for name in TAKES_VALUE)


def test_progress_on_a_terminal(by_start, tmp_path):
    """Stage, budget and what runs now go to the terminal on standard error; the result goes to standard output."""
    leader, terminal = os.openpty()
    words = ["--budget", "30s", "--output", "found", "--space", ONE, *by_start('print("throughput: 3 samples/s")')]
    with open(tmp_path / "output", "wb") as output:
        process = subprocess.Popen(
            [*COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=terminal,
            env={**environment(), "TERM": "xterm", "COLUMNS": "100"},
            cwd=tmp_path,
        )
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the other end was closed
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert process.wait(60) == 0
    assert b"first run" in shown and b"of 30 s" in shown and b"race of 1" in shown
    assert (tmp_path / "output").read_text().splitlines()[-1].startswith("ipexrun ")
