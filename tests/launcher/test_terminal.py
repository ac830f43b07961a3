# SPDX-License-Identifier: Apache-2.0
"""On a terminal: a single instance is in the foreground, and both stop and go on together at Ctrl-Z."""

import os
import pty
import signal

import pytest
from launched import COMMAND, PACKAGE_PARENT, environment, two_cpus


@pytest.fixture
def on_terminal():
    """Start the launcher as the leader of a terminal's session; gives (pid, the terminal's other end)."""
    started = []

    def start(*words):
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve(COMMAND[0], [*COMMAND, *words], environment(TERM="xterm"))
        started.append((pid, terminal))
        return pid, terminal

    yield start
    for pid, terminal in started:
        os.close(terminal)
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def read_until(terminal, text):
    seen = b""
    while text not in seen:
        seen += os.read(terminal, 1000)
    return seen


ASK = """
    print("ready", flush=True)
    print("got", input(), flush=True)
"""


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_input_reaches_the_script(on_terminal, script):
    pid, terminal = on_terminal(script(ASK))
    read_until(terminal, b"ready")
    os.write(terminal, b"a word\n")
    read_until(terminal, b"got a word")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_ctrl_c_is_the_scripts(on_terminal, script):
    path = script(
        """
        import time
        try:
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            raise SystemExit(9)
        """
    )
    pid, terminal = on_terminal(path)
    read_until(terminal, b"ready")
    os.write(terminal, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_ctrl_z_stops_both(on_terminal, script):
    pid, terminal = on_terminal(script(ASK))
    read_until(terminal, b"ready")
    os.write(terminal, b"\x1a")
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.kill(pid, signal.SIGCONT)
    os.write(terminal, b"after\n")
    read_until(terminal, b"got after")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def without_rich(tmp_path):
    """A folder for PYTHONPATH that makes `import rich` fail as where it is not installed."""
    (tmp_path / "path" / "rich").mkdir(parents=True)
    (tmp_path / "path" / "rich" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'rich'\", name='rich')"
    )
    return environment(TERM="xterm", PYTHONPATH=f"{tmp_path / 'path'}:{PACKAGE_PARENT}")


@two_cpus
def test_several_instances_on_a_terminal_without_rich(launcher, script, without_rich):
    ours, theirs = pty.openpty()
    words = ("--ninstances", 2, script("print('7 it/s')"))
    ended = launcher(*words, env=without_rich, capture_output=False, stdout=theirs, stderr=theirs)
    os.close(theirs)
    lines = os.read(ours, 10000).decode().splitlines()
    os.close(ours)
    assert ended.returncode == 0
    (warning,) = [line for line in lines if "warning" in line]
    assert "pip install rich" in warning
    assert sorted(lines)[:2] == ["[0] 7 it/s", "[1] 7 it/s"]
    assert len(lines) == 4  # and the figure of both


@pytest.mark.parametrize("target", ["-", "report.txt"])
def test_a_report_that_needs_rich_is_refused_before_the_run(launcher, script, without_rich, target, tmp_path):
    ended = launcher("--report", target, script("print('ran')"), env=without_rich, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1 and "pip install rich, or give FILE.html" in ended.stderr


def test_a_page_needs_no_rich(launcher, script, without_rich, tmp_path):
    ended = launcher("--report", tmp_path / "r.html", script("print('ran')"), env=without_rich)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ran\n", "")
    assert "<h1>" in (tmp_path / "r.html").read_text()
