# SPDX-License-Identifier: Apache-2.0
"""Real processes: exit codes, arguments, signals, orphans, prefixes, logs, binding."""

import json
import os
import pathlib
import re
import shutil
import signal
import sys
import time

import pytest
from launched import ALLOWED, environment, is_running, two_cpus, until

from slipstream.launcher.preload import find_library

SAY_CPUS = """
    import os
    print(sorted(os.sched_getaffinity(0)))
"""
WAIT = """
    import os, sys, time
    open(sys.argv[1] + os.environ["SLIPSTREAM_PLAN"][10], "w").write(str(os.getpid()))
    time.sleep(60)
"""


def pids(folder, count):
    """Of the instances that have said that they run."""

    def read():
        files = [file for file in pathlib.Path(folder).glob("pid*") if file.read_text()]
        return [int(file.read_text()) for file in sorted(files)] if len(files) == count else None

    return until(read)


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_code(launcher, script, code):
    assert launcher(script(f"import sys; sys.exit({code})")).returncode == code


def test_exit_code_with_logs_and_report(launcher, script, tmp_path):
    report = tmp_path / "report.json"
    ended = launcher("--log-dir", tmp_path / "logs", "--report", report, script("import sys; sys.exit(3)"))
    assert ended.returncode == 3
    assert json.loads(report.read_text())["instances"][0]["exit_code"] == 3


def test_death_by_signal_is_128_more(launcher, script):
    assert launcher(script("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")).returncode == 128 + 15


@two_cpus
def test_first_failure_decides(launcher, script):
    failing = """
        import json, os, sys, time
        index = json.loads(os.environ["SLIPSTREAM_PLAN"])["index"]
        time.sleep(0 if index == 1 else 1)
        sys.exit(4 + index)
    """
    ended = launcher("--ninstances", 2, "--on-failure", "continue", script(failing))
    assert ended.returncode == 5
    ended = launcher("--ninstances", 2, script(failing))
    assert ended.returncode == 5
    assert "instance 1 failed with exit code 5: stopping the others" in ended.stderr


def test_arguments_arrive_byte_for_byte(launcher, script):
    words = ["a b", "c;d", "$HOME", "*", "", "--ninstances", "9", "-h", "ä\n", "\udcff", "`id`", '"', "\\"]
    path = script("import sys, os; sys.stdout.buffer.write(os.fsencode('\\0'.join(sys.argv[1:])))")
    ended = launcher(path, *words, encoding="utf-8", errors="surrogateescape")
    assert ended.stdout.split("\0") == words


def test_module_and_executable(launcher, tmp_path, script):
    script("import sys; print('module', sys.argv[1:])", name="said.py")
    ended = launcher("-m", "said", "x", cwd=tmp_path)
    assert ended.stdout == "module ['x']\n"
    assert launcher("--no-python", "echo", "a  b").stdout == "a  b\n"


def test_old_sub_command(launcher, script):
    assert launcher("cpu", script("print(1)")).stdout == "1\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["missing.py"], "PROGRAM missing.py: no such script"),
        (["--no-such-flag", "x.py"], "--no-such-flag: no such flag"),
        (["--ninstances", "9999", __file__], "--ninstances 9999: more than the"),
        (["--ncores-per-instance", "9999", __file__], "--ncores-per-instance 9999: more than the"),
        (["--dtype", "int4", __file__], "--dtype: invalid choice: 'int4'"),
        (["--ninstances", "two", __file__], "two: not a whole number"),
        (["--ninstances"], "a value is missing"),
        ([], "PROGRAM: missing"),
        (["true"], "for an executable add --no-python"),
        (["--no-python", "no-such-program"], "no such executable"),
        (["xpu", __file__], "this launcher is for CPUs"),
        (["--report", "/no/such/folder/r.json", __file__], "the folder /no/such/folder does not exist"),
        (["--report", "report.pdf", __file__], "not one of"),
        (["--plan-from", "missing.json"], "--plan-from missing.json: No such file"),
        (["--metric", "(", __file__], "not a regular expression"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(launcher, words, sentence):
    ended = launcher(*words)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert sentence in ended.stderr


def test_help_says_every_flag(launcher):
    from slipstream.launcher.flags import BY_NAME

    ended = launcher("--help")
    assert ended.returncode == 0
    assert all(f"--{name}" in ended.stdout for name in BY_NAME)


def test_legacy_spellings_work_and_say_so(launcher, script):
    ended = launcher("--ninstance", 1, "--ncore_per_instance", 1, "--node_id", -1, script("print('ran')"))
    assert ended.stdout == "ran\n"
    assert [line.partition("note: ")[2] for line in ended.stderr.splitlines()] == [
        "--ninstance 1 is now spelled --ninstances 1",
        "--ncore_per_instance 1 is now spelled --ncores-per-instance 1",
        "--node_id -1 means unset and is dropped",
    ]


def test_each_instance_is_bound_to_its_cpus(launcher, script):
    count = min(2, len(ALLOWED))
    ended = launcher("--ninstances", count, "--ncores-per-instance", 1, script(SAY_CPUS))
    lines = sorted(ended.stdout.splitlines())
    expected = [f"[{index}] [{cpu}]" for index, cpu in enumerate(ALLOWED[:count])]
    assert lines == (expected if count > 1 else [f"[{ALLOWED[0]}]"])


@two_cpus
@pytest.mark.skipif(not shutil.which("taskset"), reason="needs taskset")
def test_callers_mask_is_kept(launcher, script):
    last = ALLOWED[-1]
    ended = launcher(script(SAY_CPUS), prefix=["taskset", "-c", str(last)])
    assert ended.stdout == f"[{last}]\n"
    refused = launcher("--cores-list", ALLOWED[0], script(SAY_CPUS), prefix=["taskset", "-c", str(last)])
    assert refused.returncode == 2
    assert "outside the caller's affinity mask" in refused.stderr
    refused = launcher("--ninstances", 2, script(SAY_CPUS), prefix=["taskset", "-c", str(last)])
    assert refused.returncode == 2
    assert "outside the caller's affinity mask" in refused.stderr


def test_binding_needs_no_program(launcher, script, tmp_path):
    env = environment(PATH=str(tmp_path))
    ended = launcher("--ncores-per-instance", 1, "--ninstances", 1, script(SAY_CPUS), env=env)
    assert (ended.returncode, ended.stdout) == (0, f"[{ALLOWED[0]}]\n")


@pytest.mark.skipif(not shutil.which("taskset"), reason="needs taskset")
def test_taskset_when_asked(launcher, script):
    words = ["--multi-task-manager", "taskset", "--cores-list", ALLOWED[-1]]
    assert launcher(*words, script(SAY_CPUS)).stdout == f"[{ALLOWED[-1]}]\n"
    planned = json.loads(launcher(*words, "--plan", "json", script(SAY_CPUS)).stdout)
    assert planned["instances"][0]["argv"][0].endswith("taskset")


def test_a_missing_binder_is_said_and_replaced(launcher, script, tmp_path):
    words = ["--multi-task-manager", "taskset", "--cores-list", ALLOWED[-1], script(SAY_CPUS)]
    ended = launcher(*words, env=environment(PATH=str(tmp_path)))
    assert ended.stdout == f"[{ALLOWED[-1]}]\n"
    assert "no such program on PATH; bound by system calls instead" in ended.stderr


def test_nobody_binds_when_asked(launcher, script):
    ended = launcher("--multi-task-manager", "none", "--cores-list", ALLOWED[0], script(SAY_CPUS))
    assert ended.stdout == f"{ALLOWED}\n"


def test_worker_processes_see_the_whole_instance(launcher, script):
    """OpenMP settings must not put the main thread on one CPU: what it starts would be there too."""
    path = script(
        """
        import os, torch
        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, str(sorted(os.sched_getaffinity(0))).encode())
            os._exit(0)
        os.wait()
        print(os.read(reader, 1000).decode(), torch.get_num_threads())
        """
    )
    assert launcher(path).stdout == f"{ALLOWED} {len(ALLOWED)}\n"


@two_cpus
@pytest.mark.skipif(not find_library("intel", dict(os.environ)), reason="libiomp5.so is not installed")
def test_intels_openmp_leaves_the_main_thread_alone(launcher, script):
    path = script(
        """
        import os, torch
        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        print(sorted(os.sched_getaffinity(0)), "libiomp5" in open("/proc/self/maps").read())
        """
    )
    assert launcher("--omp-runtime", "intel", path).stdout == f"{ALLOWED} True\n"


@two_cpus
def test_lines_are_whole_and_prefixed(launcher, script):
    path = script(
        """
        import os, sys
        for _ in range(300):
            for piece in ("abc", "def", "ghi\\n"):
                os.write(1, piece.encode())
        os.write(1, b"50 %\\r100 %\\nno end")
        print("an error", file=sys.stderr)
        """
    )
    ended = launcher("--ninstances", 2, path)
    lines = ended.stdout.splitlines()
    for index in (0, 1):
        mine = [line for line in lines if line.startswith(f"[{index}] ")]
        assert mine == [f"[{index}] abcdefghi"] * 300 + [f"[{index}] 100 %", f"[{index}] no end"]
    assert len(lines) == 604
    assert sorted(ended.stderr.splitlines()) == ["[0] an error", "[1] an error"]


def test_one_instance_is_not_prefixed_and_bytes_are_kept(launcher, script):
    path = script("import os; os.write(1, b'\\xff\\r\\0 no end')")
    ended = launcher("--report", "-", path, text=False)
    assert ended.stdout.startswith(b"\xff\r\0 no end")


@two_cpus
def test_logs_hold_every_byte(launcher, script, tmp_path):
    logs = tmp_path / "logs"
    path = script("import os; os.write(1, b'out\\r\\xff'); os.write(2, b'err')")
    ended = launcher("--ninstances", 2, "--log-dir", logs, "--log-file-prefix", "mine", "--quiet", path)
    assert (ended.stdout, ended.returncode) == ("", 0)
    names = sorted(file.name for file in logs.iterdir())
    patterns = [r"mine_\d{14}_instance_0_cores_[\d_-]+\.log", r"mine_\d{14}_instance_1_cores_[\d_-]+\.log"]
    assert len(names) == 3
    assert all(re.fullmatch(pattern, name) for pattern, name in zip(patterns, names, strict=False))
    assert sorted((logs / names[0]).read_bytes()) == sorted(b"out\r\xfferr")
    assert "instance 1: exit code 0" in (logs / names[2]).read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(started, script, tmp_path, number):
    count = min(2, len(ALLOWED))
    process = started("--ninstances", count, script(WAIT), tmp_path / "pid")
    running = pids(tmp_path, count)
    process.send_signal(number)
    # Python turns SIGINT into an exception, and dies of it by the same signal
    assert process.wait(20) == 128 + number
    assert not any(map(is_running, running))


def test_a_handler_of_the_script_decides_the_exit_code(started, script, tmp_path):
    path = script(
        """
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        open(sys.argv[1] + "0", "w").write(str(os.getpid()))
        time.sleep(60)
        """
    )
    process = started(path, tmp_path / "pid")
    pids(tmp_path, 1)
    process.terminate()
    assert process.wait(20) == 7


STUBBORN = """
    import os, signal, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork()
    open(sys.argv[1] + ("1" if child else "2"), "w").write(str(os.getpid()))
    time.sleep(60)
"""


def test_after_the_grace_period_all_are_killed_with_what_they_started(started, script, tmp_path):
    process = started("--grace", 0.3, script(STUBBORN), tmp_path / "pid")
    running = pids(tmp_path, 2)
    process.terminate()
    assert process.wait(20) == 128 + 9
    until(lambda: not any(map(is_running, running)))


def test_a_second_signal_kills_at_once(started, script, tmp_path):
    process = started("--grace", 300, script(STUBBORN), tmp_path / "pid")
    running = pids(tmp_path, 2)
    process.terminate()
    time.sleep(0.3)  # two signals of a kind that come together are one
    process.terminate()
    assert process.wait(20) == 128 + 9
    until(lambda: not any(map(is_running, running)))


def test_the_failure_of_one_ends_what_the_others_started(launcher, script, tmp_path):
    path = script(
        """
        import json, os, sys, time
        if json.loads(os.environ["SLIPSTREAM_PLAN"])["index"] == 0:
            while not os.path.exists(sys.argv[1]):
                time.sleep(0.02)
            sys.exit(6)
        if os.fork() == 0:
            open(sys.argv[1] + "x", "w").write(str(os.getpid()))
            os.rename(sys.argv[1] + "x", sys.argv[1])
        time.sleep(60)
        """
    )
    if len(ALLOWED) > 1:
        ended = launcher("--ninstances", 2, path, tmp_path / "pid")
        assert ended.returncode == 6
        until(lambda: not is_running(int((tmp_path / "pid").read_text())))


def test_a_killed_launcher_leaves_nothing_behind(started, script, tmp_path):
    process = started(script(STUBBORN), tmp_path / "pid")
    running = pids(tmp_path, 2)
    process.kill()
    process.wait()
    until(lambda: not any(map(is_running, running)))


def test_timeout(launcher, script):
    ended = launcher("--timeout", 0.5, script("import time; time.sleep(60)"))
    assert ended.returncode == 124
    assert "--timeout 0.5 s is over" in ended.stderr


def test_nohup_stays_nohup(started, script, tmp_path):
    process = started(script(WAIT), tmp_path / "pid", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    (running,) = pids(tmp_path, 1)
    process.send_signal(signal.SIGHUP)
    os.kill(running, signal.SIGHUP)
    assert is_running(running) and process.poll() is None
    process.terminate()
    assert process.wait(20) == 128 + 15


def test_a_reader_that_leaves_ends_the_writer(started, script):
    path = script("while True: print('x' * 1000, flush=True)")
    process = started("--ninstances", min(2, len(ALLOWED)), path)
    assert process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert process.wait(20) != 0


def test_logs_go_on_when_the_reader_of_the_console_leaves(started, script, tmp_path):
    path = script("for number in range(3000): print('x' * 1000, number, flush=True)")
    process = started("--log-dir", tmp_path / "logs", path)
    assert process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert process.wait(30) == 0
    (log,) = (tmp_path / "logs").glob("*_instance_0_*.log")
    assert log.read_text().endswith(" 2999\n")


def test_what_a_left_behind_process_writes_is_not_waited_for(launcher, script):
    path = script(
        """
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            try:
                while True:
                    os.write(1, b"y\\n")
            except OSError:
                os._exit(0)
        """
    )
    ended = launcher("--report", "-", path)
    assert ended.returncode == 0 and "instances" in ended.stdout


def test_plan_as_json_runs_again_when_edited(launcher, script, tmp_path):
    path = script("import os, sys; print(os.environ['OMP_NUM_THREADS'], sys.argv[1:])")
    planned = json.loads(launcher("--plan", "json", path, "a b").stdout)
    assert set(planned) == {"instances", "left_out", "warnings", "decisions"}
    only = planned["instances"][0]
    assert only["cpus"] == ALLOWED and only["argv"] == [sys.executable, path, "a b"]
    assert set(only["env"]) == set(only["reasons"])
    only["env"]["OMP_NUM_THREADS"] = "7"
    (tmp_path / "plan.json").write_text(json.dumps(planned))
    assert launcher("--plan-from", tmp_path / "plan.json").stdout == "7 ['a b']\n"


def test_dry_run_starts_nothing(launcher, script, tmp_path):
    mark = tmp_path / "mark"
    ended = launcher("--dry-run", script(f"open({str(mark)!r}, 'w')"))
    assert "instance 0: CPUs" in ended.stdout
    assert "OMP_NUM_THREADS=" in ended.stdout
    assert not mark.exists()


def test_report_sums_what_instances_print(launcher, script, tmp_path):
    count = min(2, len(ALLOWED))
    report = tmp_path / "report.json"
    path = script("print('step 1 5.0 it/s\\nThroughput: 12.5 samples/s\\nlatency: 4 ms')")
    launcher("--ninstances", count, "--report", report, path)
    content = json.loads(report.read_text())
    figures = {figure["name"]: figure for figure in content["metrics"]}
    assert figures["throughput"]["total"] == 12.5 * count
    assert figures["latency"]["total"] == 4
    assert figures["latency"]["how"] == "mean"
    assert {process["instance"] for process in content["processes"]} == set(range(count))


def test_report_page_stands_alone(launcher, script, tmp_path):
    page = tmp_path / "report.html"
    launcher("--report", page, script("print('Throughput: 3 samples/s <b>')"))
    text = page.read_text()
    assert "<svg" in text and "throughput" in text
    assert not re.search(r"(src|href)=", text)


def test_report_as_text_comes_after_the_script(launcher, script):
    ended = launcher("--report", "-", script("print('mine')"))
    assert ended.stdout.startswith("mine\n")
    assert "instances" in ended.stdout


def test_users_own_thread_count_wins_and_is_said(launcher, script):
    path = script("import os; print(os.environ['OMP_NUM_THREADS'])")
    env = environment(OMP_NUM_THREADS="3")
    ended = launcher("--ncores-per-instance", 1, path, env=env)
    assert set(ended.stdout.split()) <= {"3", "[0]", "[1]"} | {f"[{i}]" for i in range(len(ALLOWED))}
    assert "OMP_NUM_THREADS=3 is set and wins" in ended.stderr


def test_collapsing_settings_are_warned_of(launcher, script):
    if len(ALLOWED) > 1:
        ended = launcher(script("pass"), env=environment(OMP_PROC_BIND="close"))
        assert "OMP_PROC_BIND=close is set" in ended.stderr


def test_the_launcher_imports_no_torch(launcher, script):
    code = (
        "import sys; from slipstream.launcher.cli import ipexrun; code = ipexrun(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules or code)"
    )
    import subprocess

    ended = subprocess.run(
        [sys.executable, "-c", code, "--report", "-", script("pass")], env=environment(), capture_output=True
    )
    assert ended.returncode == 0


@two_cpus
def test_a_main_thread_that_was_narrowed_is_reported_with_the_remedy(launcher, script, tmp_path):
    path = script("import os, time; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); time.sleep(2.6)")
    report = tmp_path / "report.json"
    ended = launcher("--report", report, path)
    assert "the main thread was narrowed" in ended.stderr and "unset OMP_PROC_BIND" in ended.stderr
    assert [check["taken"] for check in json.loads(report.read_text())["checks"]] == [False]


@two_cpus
def test_a_thread_that_left_the_plan_is_reported(launcher, script):
    path = script(f"import os, time; os.sched_setaffinity(0, {set(ALLOWED)}); time.sleep(1.2)")
    ended = launcher("--cores-list", ALLOWED[0], path)
    assert "1 of 1 threads may leave the plan" in ended.stderr


def test_a_plan_for_other_cpus_is_refused(launcher, script, tmp_path):
    planned = json.loads(launcher("--plan", "json", script("pass")).stdout)
    planned["instances"][0]["cpus"] = f"{max(ALLOWED) + 1}-{max(ALLOWED) + 2}"
    (tmp_path / "plan.json").write_text(json.dumps(planned))
    ended = launcher("--plan-from", tmp_path / "plan.json")
    assert ended.returncode == 2 and "may not be used here" in ended.stderr
    (tmp_path / "plan.json").write_text('{"instances": []}')
    assert "it has no instances" in launcher("--plan-from", tmp_path / "plan.json").stderr
    (tmp_path / "plan.json").write_text('{"instances": [{"cpus": 1}]}')
    assert "not a plan as --plan json prints it" in launcher("--plan-from", tmp_path / "plan.json").stderr
