# SPDX-License-Identifier: Apache-2.0
"""`slipstream bisect script.py [--check CMD]`: the modules whose optimization changes an answer.

The script is run with part of the modules left to torch, by SLIPSTREAM_SKIP, until those are found without
which the rest gives the plain answer. An answer is right where CMD ends with 0, or else where standard output
says the same as the plain run's.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slipstream import env
from slipstream.errors import UsageError
from slipstream.launcher.codeless.outputs import TOLERANCES, Place, judge
from slipstream.launcher.codeless.progress import Progress
from slipstream.launcher.codeless.request import COMMAND, Request, parse_request
from slipstream.launcher.codeless.runs import Outcome, Runs
from slipstream.launcher.codeless.sift import Sieve

FOUND, NOT_FOUND = 0, 1
MOST_BYTES = 120_000
"""Linux takes 128 KiB for one variable."""


class Interrupted(Exception):
    """Somebody asked for an end by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(words: Sequence[str]) -> int:
    """0: found, or nothing to find; 1: it is no module's doing. Raises UsageError where the question has no answer."""
    request = parse_request(words)
    bisection = Bisection(request)
    try:
        return bisection.run()
    except Interrupted as signal:
        _say(f"interrupted; known so far: {', '.join(bisection.culprits) or 'nothing'}")
        return 128 + signal.number
    finally:
        bisection.progress.stop()


@dataclass(frozen=True)
class Answer:
    """Whether an answer is right, and what shows that it is not."""

    right: bool
    evidence: str = ""
    diff: tuple[str, ...] = ()


class Bisection:
    """One search. ``culprits`` grows while it goes on."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._runs = Runs(request.options, command=COMMAND, say=lambda text: None)
        asked = request.options.tolerance
        self._tolerance = TOLERANCES[request.options.optimization.dtype] if asked is None else asked
        self._plain: Outcome | None = None
        self._noise: frozenset[Place] = frozenset()
        self._evidence: dict[str, Answer] = {}
        self._start = time.monotonic()
        self.progress = Progress(_say)
        self.culprits: list[str] = []

    def run(self) -> int:
        self._know_plain()
        names, answer = self._all_on()
        if answer.right:
            _tell(f"the codeless run gives the plain answer: nothing to find ({self._cost()})")
            return FOUND
        self.progress.note(f"with all of {len(names)} pieces the answer is another: {answer.evidence}")
        nothing = self._try(skip=names, label="every piece left out")
        if not nothing.right:
            _tell(
                f"the answer changes even with every module left to torch, so it is no module's doing: {nothing.evidence}; "
                "see --report of ipexrun, and try --disable-ipex-graph-mode, --memory-allocator default"
            )
            return NOT_FOUND
        self._evidence = dict.fromkeys(names, answer)
        return self._sift(names)

    def _know_plain(self) -> None:
        """Two plain runs: what differs between them says nothing about the engine."""
        first, second = (self._outcome(engine=False, skip=(), label=f"plain run {number} of 2") for number in (1, 2))
        self._plain = first
        if self._request.check:
            answers = [self._judge(outcome) for outcome in (first, second)]
            if not any(answer.right for answer in answers):
                raise UsageError(f"--check {self._request.check}: it fails on the plain run: {answers[0].evidence}")
            if not all(answer.right for answer in answers):
                raise UsageError(
                    f"--check {self._request.check}: it passes on one plain run and fails on another: the script is not "
                    "deterministic; seed it, or check something that does not vary"
                )
            return
        between = judge(first.stdout, second.stdout, self._tolerance)
        if first.code != second.code or _lengths(first) != _lengths(second):
            raise UsageError(
                "PROGRAM: two plain runs end differently or print different numbers of lines: it is not deterministic; "
                "seed it, or say by --check CMD what is right"
            )
        self._noise = frozenset(between.differing)
        if self._noise:
            self.progress.note(
                f"note: the plain run is not deterministic: {len(self._noise)} lines vary and are not compared"
            )

    def _all_on(self) -> tuple[list[str], Answer]:
        outcome = self._outcome(engine=True, skip=(), label="codeless run")
        return names_in(outcome.report), self._judge(outcome)

    def _sift(self, names: Sequence[str]) -> int:
        def works(on: Sequence[str]) -> bool:
            kept = set(on)
            off = [name for name in names if name not in kept]
            answer = self._try(skip=off, label=f"{len(on)} of {len(names)} pieces on")
            self._evidence.update(dict.fromkeys(on[len(sieve.good) :], answer))
            return answer.right

        def settled(good: int, culprits: int) -> None:
            self.culprits = list(sieve.culprits)
            self.progress.settled(good + culprits, len(names), culprits)

        sieve = Sieve(works, self._request.most_runs, settled)
        self.progress.settled(0, len(names), 0)
        sieve.sift(names, known_bad=True)
        self.progress.stop()
        _tell(self._result(sieve, names))
        return FOUND

    def _result(self, sieve: Sieve, names: Sequence[str]) -> str:
        count = len(sieve.culprits)
        lines = [
            f"{count} of {len(names)} pieces change{'s' if count == 1 else ''} the answer ({self._cost()}); without "
            f"{'it' if count == 1 else 'them'} the codeless run gives the plain one"
        ]
        for name in sieve.culprits:
            answer = self._evidence.get(name)
            lines.append(f"  {name}" + (f": {answer.evidence}" if answer and answer.evidence else ""))
            lines += [f"      {line}" for line in (answer.diff if answer else ())]
        if sieve.untried:
            lines.append(
                f"  and {len(sieve.untried)} that were not told apart within {self._request.most_runs} runs (--runs N for more)"
            )
        skip = ",".join(pattern_of(name) for name in (*sieve.culprits, *sieve.untried))
        lines.append(f"{env.SKIP}={shlex.quote(skip)}")
        return "\n".join(lines)

    def _try(self, *, skip: Sequence[str], label: str) -> Answer:
        return self._judge(self._outcome(engine=True, skip=skip, label=label))

    def _outcome(self, *, engine: bool, skip: Sequence[str], label: str) -> Outcome:
        patterns = ",".join(map(pattern_of, skip))
        if len(patterns) > MOST_BYTES:
            raise UsageError(
                f"{env.SKIP}: {len(skip)} names are more than a variable holds; leave some out beforehand by {env.SKIP}=PATTERN"
            )
        self.progress.starting(label)
        outcome = self._runs.run(engine=engine, skip=patterns, tick=self.progress.tick)
        if outcome.interrupted:
            raise Interrupted(outcome.interrupted)
        self.progress.ended()
        return outcome

    def _judge(self, outcome: Outcome) -> Answer:
        assert self._plain is not None
        if self._request.check:
            return run_check(self._request.check, outcome, self._plain)
        if outcome.code != self._plain.code:
            return Answer(False, f"exit code {outcome.code} in place of {self._plain.code}", outcome.last_words[-3:])
        judgement = judge(self._plain.stdout, outcome.stdout, self._tolerance, self._noise)
        return Answer(judgement.same, "" if judgement.same else "stdout differs", judgement.diff)

    def _cost(self) -> str:
        return f"{self.progress.runs} runs, {time.monotonic() - self._start:.0f} s"


def names_in(report: Mapping[str, Any]) -> list[str]:
    """Every name that SLIPSTREAM_SKIP may take, of all processes, in the order in which they were met.

    Graphs come last: one answers only where nothing in it is left out, so that all of its layers are tried before.
    """
    names: dict[str, None] = {}
    for process in report["processes"]:
        accounts = process.get("accounts", {})
        for decision in process["decisions"]:
            account = accounts.get(decision["what"])
            if account is not None:
                names[account["layer"] if account["tier"] == "function" else decision["what"].partition(": ")[0]] = None
    return sorted(names, key=lambda name: name.endswith(".graph"))


def pattern_of(name: str) -> str:
    """The pattern that matches this name and no other; a comma, which separates patterns, becomes any character."""
    return "".join(f"[{letter}]" if letter in "*?[" else "?" if letter == "," else letter for letter in name)


def run_check(command: str, outcome: Outcome, plain: Outcome) -> Answer:
    """By the shell: standard input is what the script printed, the variables name that and the plain run's as files."""
    with tempfile.TemporaryDirectory(prefix="slipstream-") as folder:
        paths = [os.path.join(folder, name) for name in ("output.txt", "plain.txt")]
        for path, one in zip(paths, (outcome, plain), strict=True):
            with open(path, "wb") as file:
                file.writelines(one.stdout.values())
        variables = {env.CHECK_OUTPUT: paths[0], env.CHECK_PLAIN: paths[1], env.CHECK_EXIT_CODE: str(outcome.code)}
        with open(paths[0], "rb") as file:
            ended = subprocess.run(
                ["/bin/sh", "-c", command],
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env.with_variables(variables),
                check=False,
            )
    words = ended.stdout.decode(errors="replace").strip().splitlines()
    return Answer(ended.returncode == 0, f"the check ended with {ended.returncode}" + (f": {words[-1]}" if words else ""))


def _lengths(outcome: Outcome) -> dict[int, int]:
    return {index: output.count(b"\n") for index, output in outcome.stdout.items()}


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"{COMMAND}: {text}\n")
    sys.stderr.flush()
