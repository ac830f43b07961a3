# SPDX-License-Identifier: Apache-2.0
"""How the checks call the launcher, and how they say what came of it: one line a check, on the serial console."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OBSERVE = "/guest/observe.py"
PATIENCE = 180.0
"""Seconds for one run of the launcher: emulated CPUs are some thirty times slower than real ones."""

QUICK = ("--memory-allocator", "default")
"""Measuring allocators takes seconds here; it is not what this is about."""

EVEN = 0.1
"""What an even share may be off by."""

NOTHING = "nothing"

counts = {"ok": 0, "FAILED": 0}


@dataclass(frozen=True)
class Run:
    """How one call of the launcher ended, and what each instance saw, by index."""

    code: int
    stdout: str
    stderr: str
    seen: Mapping[int, Mapping[str, object]]


def expect(what: str, expected: object, got: object) -> None:
    """Print whether the two are the same, as text."""
    word = "ok" if str(expected) == str(got) else "FAILED"
    counts[word] += 1
    print(f"{word} {what}: expected {expected or NOTHING} got {got or NOTHING}", flush=True)


def expect_in(what: str, part: str, text: str) -> None:
    """Print whether ``text``, put on one line, holds ``part``."""
    line = " ".join(text.split())
    expect(what, f"…{part}…", f"…{part}…" if part in line else f"«{line}»")


def expect_error(what: str, run: Run, part: str) -> None:
    """Print whether nothing was started, with one line on stderr that holds ``part``, and exit code 2."""
    line = run.stderr.strip()
    short = f"…{part}…" if part in line and "\n" not in line else f"«{line}»"
    expect(what, f"exit code 2, 0 instances, …{part}…", f"exit code {run.code}, {len(run.seen)} instances, {short}")


def attempt(check: Callable[[], None]) -> None:
    """Run one group of checks; whatever it stumbles over is a failed check with the reason."""
    try:
        check()
    except Exception as error:  # noqa: BLE001 - the others are still to run
        expect(check.__name__, "no exception", f"{type(error).__name__}: {error}")


def launch(
    *flags: str,
    program: Sequence[str] | None = None,
    options: Sequence[str] = (),
    before: Sequence[str] = (),
    prepare: Callable[[], None] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Run:
    """`before ipexrun flags program`; the program is observe.py with ``options`` unless another is given."""
    with tempfile.TemporaryDirectory() as folder:
        command = (OBSERVE, folder, *options) if program is None else program
        words = [*before, "/usr/local/bin/ipexrun", *QUICK, *flags, *command]
        ended = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            preexec_fn=prepare,
            env={**os.environ, **(environ or {})},
        )
        seen = {int(file.stem): json.loads(file.read_text()) for file in Path(folder).glob("*.json")}
    return Run(ended.returncode, ended.stdout, ended.stderr, seen)


def plan(*flags: str, before: Sequence[str] = ()) -> dict[str, object]:
    """What --plan json prints."""
    run = launch("--plan", "json", *flags, program=(OBSERVE,), before=before)
    if run.code:
        raise RuntimeError(f"exit code {run.code}: {' '.join(run.stderr.split())}")
    return json.loads(run.stdout)


def planned_cpus(plan: Mapping[str, object]) -> str:
    """`0,2 | 4,6`: the CPUs of each instance."""
    return " | ".join(as_list(one["cpus"]) for one in plan["instances"])


def left_out(plan: Mapping[str, object], word: str) -> str:
    """The CPUs that are left out for a reason that has ``word`` in it."""
    return as_list(cpu for item in plan["left_out"] if word in item["reason"] for cpu in item["cpus"])


def expect_instances(what: str, run: Run, expected: Sequence[str]) -> None:
    """Each instance against a text such as `CPUs 0,2, 2 threads, prefer:0, pages on node 0`; a thread and a child alike."""
    failure = f"exit code {run.code}: {' '.join(run.stderr.split())}; " if run.code else ""
    expect(what, " | ".join(expected), failure + " | ".join(told(seen) for _, seen in sorted(run.seen.items())))


def told(seen: Mapping[str, object]) -> str:
    """What one instance saw; its thread and its child are mentioned only where they differ, which they never should."""
    processes = {who: seen[who] for who in ("process", "thread", "child")}
    texts = {who: f"{one['policy']}, pages on {where(one['pages'])}" for who, one in processes.items()}
    allowed = processes["process"]["cpus"]
    plural = "s" if seen["threads"] != "1" else ""
    text = f"CPUs {allowed}, {seen['threads']} thread{plural}, {texts['process']}"
    for who, one in processes.items():
        if (one["cpus"], texts[who]) != (allowed, texts["process"]):
            text += f" (its {who}: CPUs {one['cpus']}, {texts[who]})"
        if one["ran_on"] not in numbers(allowed):
            text += f" (its {who} ran on CPU {one['ran_on']})"
    return text


def where(pages: Mapping[str, int]) -> str:
    """`node 1`, or `nodes 0,1 evenly`, or the shares."""
    total = sum(pages.values()) or 1
    shares = {node: count / total for node, count in sorted(pages.items()) if count}
    if len(shares) == 1:
        return f"node {next(iter(shares))}"
    if shares and all(abs(share - 1 / len(shares)) < EVEN / len(shares) for share in shares.values()):
        return f"nodes {','.join(shares)} evenly"
    return ", ".join(f"node {node} {share:.0%}" for node, share in shares.items()) or "no node"


def numbers(text: str) -> set[int]:
    """{0, 1, 2, 5} of `0-2,5`."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def as_list(cpus: Sequence[int]) -> str:
    """`0,1,2`: no ranges, so that nothing of the launcher's own formatting is needed to read it."""
    return ",".join(map(str, sorted(cpus))) or "none"
