# SPDX-License-Identifier: Apache-2.0
"""The other end of `benchmarks.contest.worker`: start it in an interpreter, ask, read the answer, stop it."""

from __future__ import annotations

import json
import pathlib
import selectors
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

ROOT = pathlib.Path(__file__).parents[2]


class WorkerFailed(Exception):
    """A contestant could not do what it was asked; the message is one line."""


class WorkerProcess:
    """A running worker. One is asked at a time, so only one uses the machine."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, module: str = "benchmarks.contest.worker"
    ) -> None:
        """``command`` is an interpreter, or what ends in taking ``-m module`` as one does."""
        self._complaints: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # closed by stop()
        try:
            self._process = subprocess.Popen(
                [*command, "-m", module],
                cwd=ROOT,  # with -m, the working directory comes first on sys.path
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                text=True,
            )
        except OSError as error:
            self._complaints.close()
            raise WorkerFailed(f"{command[0]} does not start: {error.strerror}") from error

    def ask(self, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Send one request and wait for its answer; raises WorkerFailed for an error, a death or a timeout."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerFailed(self._last_words()) from None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                self._process.kill()
                raise WorkerFailed(f"no answer to '{request['do']}' within {timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def stop(self) -> None:
        """End the process, kindly first."""
        try:
            self._process.communicate(json.dumps({"do": "quit"}) + "\n", timeout=20)
        except (subprocess.TimeoutExpired, OSError, ValueError):
            self._process.kill()
            self._process.wait()
        self._complaints.close()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._complaints.seek(0)
        lines = [line.strip() for line in self._complaints if line.strip()]
        return f"ended with {code}" + (f": {lines[-1][:200]}" if lines else "")
