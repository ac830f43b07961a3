# SPDX-License-Identifier: Apache-2.0
"""Runs a program twice at once, plain and under the engine, and hands back both outcomes."""

import json
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass

import pytest

from slipstream.autopatch.activate import child_environment
from slipstream.autopatch.settings import Settings

ROOT = str(pathlib.Path(__file__).parents[2])


@dataclass
class Outcome:
    stdout: bytes
    stderr: bytes
    code: int
    reports: list


@pytest.fixture
def run(tmp_path):
    """``run(source, *arguments)`` → (plain, injected), outcomes of the same script file in the same folder."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()

    def both(source, *arguments, program=None, extra=None, files=None, settings=None):
        for name, text in {"script.py": source, **(files or {})}.items():
            (scripts / name).parent.mkdir(parents=True, exist_ok=True)
            (scripts / name).write_text(text)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("SLIPSTREAM_A")}
        plain.update({"PYTHONPATH": "", "OMP_NUM_THREADS": "1", **(extra or {})})
        reports = tmp_path / "reports"
        injected = child_environment(settings or Settings(dtype="bfloat16"), plain)
        injected.update(SLIPSTREAM_REPORT_DIR=str(reports), SLIPSTREAM_LOG=str(tmp_path / "log"))
        command = [sys.executable, *(program or ["script.py"]), *arguments]
        started = [
            subprocess.Popen(command, cwd=scripts, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for env in (plain, injected)
        ]
        outcomes = []
        for process in started:
            stdout, stderr = process.communicate(timeout=120)
            outcomes.append(Outcome(stdout, stderr, process.returncode, []))
        outcomes[1].reports = [json.loads(path.read_text()) for path in sorted(reports.glob("*"))]
        log = tmp_path / "log"
        assert not log.exists(), log.read_text()
        return outcomes

    return both
