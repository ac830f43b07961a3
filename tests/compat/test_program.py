# SPDX-License-Identifier: Apache-2.0
"""`python -m slipstream.compat` runs programs in which the old names work, the old launchers among them."""

import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from intel_extension_for_pytorch.cpu.runtime import CPUPool
print(json.dumps([__name__, sys.argv, sys.path[0], len(CPUPool()) > 0]))
sys.exit(3)
"""


def run(*words, cwd):
    command = [sys.executable, "-m", "slipstream.compat", *map(str, words)]
    environ = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environ)


@pytest.fixture
def script(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    path = folder / "old_script.py"
    path.write_text(SCRIPT)
    return path


def test_a_script_runs_as_python_would_run_it(script, tmp_path):
    done = run(script, "a b", "--flag", cwd=tmp_path)
    assert done.stdout == f'["__main__", ["{script}", "a b", "--flag"], "{script.parent}", true]\n'
    assert done.returncode == 3


def test_a_module_runs_as_python_would_run_it(script):
    done = run("-m", "old_script", "a b", cwd=script.parent)
    assert done.stdout == f'["__main__", ["{script}", "a b"], "{script.parent}", true]\n'
    assert done.returncode == 3


@pytest.mark.parametrize("program", ["launcher", "cpu.launch", "cpu.auto_ipex"])
def test_the_old_launchers_run_ours(program, tmp_path):
    (tmp_path / "plain.py").write_text("import sys; print(sys.argv[1:]); sys.exit(5)\n")
    done = run("-m", f"intel_extension_for_pytorch.{program}", "plain.py", "a b", cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("['a b']\n", 5), done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: python -m slipstream.compat [-m MODULE | SCRIPT] [arguments]"),
        (["-m"], "usage: python -m slipstream.compat"),
        (["--flag"], "SCRIPT --flag: usage: python -m slipstream.compat"),
        (["absent.py"], "SCRIPT absent.py: there is no such file"),
    ],
)
def test_bad_arguments(words, message, tmp_path):
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
