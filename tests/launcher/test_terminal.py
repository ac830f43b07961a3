# SPDX-License-Identifier: Apache-2.0
"""On a terminal: a single instance is in the foreground, and both stop and go on together at Ctrl-Z."""

import os
import pty
import signal

import pytest
from launched import COMMAND, environment


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
