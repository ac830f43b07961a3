# SPDX-License-Identifier: Apache-2.0
"""What was typed after `slipstream tune`: its own flags, ipexrun's flags that stay fixed, the program. No effects."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from slipstream.errors import UsageError
from slipstream.launcher.command_line import CommandLine, parse_command_line
from slipstream.launcher.flags import BY_NAME, DISTRIBUTED
from slipstream.launcher.legacy import LEGACY
from slipstream.launcher.tune.objective import Objective, parse_objective

COMMAND = "slipstream tune"
USAGE = f"{COMMAND} [flags] [flags of ipexrun, which stay fixed] [-m | --no-python] PROGRAM [arguments of the program]"
DESCRIPTION = """Search instances x cores x SMT x allocator x OpenMP x dtype for the launch that serves a program best,
and print its ipexrun command line. The program prints its figure: a line such as "throughput: 123.4 samples/s" or
"latency: 5.6 ms", or an @hypertune marker."""
REFUSED = {
    "timeout": "tune stops runs itself: --trial-timeout SECONDS",
    "report": "tune takes a report of each run itself, and keeps it in --output",
    "log-dir": "tune keeps what each run printed in --output",
    "quiet": "tune keeps what each run printed in --output",
    "live": "tune shows its own progress",
    "compare": "tune compares launches of one kind; run ipexrun --compare by itself",
    "tolerance": "it belongs to --compare",
    "plan": "ask for --dry-run to see the space",
    "plan-from": "tune makes the plans itself",
    **{flag.name: "tune searches on one machine; leave it away" for flag in DISTRIBUTED},
}
"""Flags of ipexrun that a search cannot hold fixed, and what to do instead."""

SECONDS = {"s": 1, "m": 60, "h": 3600}
DEFAULT_REPEATS = 3
PLAIN = Objective()
VALUED = ("--budget", "--objective", "--trials", "--repeats", "--space", "--output", "--conf-file", "--trial-timeout")
TAKES_VALUE = {**dict.fromkeys(VALUED, True), "--resume": False, "--help": False, "-h": False}
"""The flags of the search itself; all others are ipexrun's."""


@dataclass(frozen=True)
class Request:
    """``fixed`` are ipexrun's flags as typed, ``line`` is what they say, program included."""

    fixed: tuple[str, ...]
    program: tuple[str, ...]
    line: CommandLine
    budget: float = 600.0
    objective: Objective = PLAIN
    trials: int | None = None
    repeats: int = DEFAULT_REPEATS
    spaces: tuple[str, ...] = ()
    output: str = ""
    resume: bool = False
    conf_file: str = ""
    trial_timeout: float | None = None


def parse_request(words: Sequence[str]) -> Request:
    """Everything that the words say; UsageError for what they may not say. ``-h`` prints the help and exits 0."""
    own, fixed, program = _split(words)
    values = _parser().parse_args(own)
    line = parse_command_line([*fixed, *(["--", *program] if program else [])], command=COMMAND)
    for name in sorted(line.given):
        if name in REFUSED:
            raise UsageError(f"--{name}: not with {COMMAND}; {REFUSED[name]}")
    if "topology" in line.given and not line.values.dry_run:
        raise UsageError(f"--topology {line.values.topology}: searches another machine's space; add --dry-run")
    if values.resume and not values.output:
        raise UsageError("--resume: give the folder of the search to go on with: --output DIR")
    return Request(
        tuple(fixed),
        tuple(program),
        line,
        budget=parse_duration(values.budget, argument="--budget"),
        objective=parse_objective(values.objective) if values.objective else Objective(),
        trials=_at_least_one("--trials", values.trials),
        repeats=_at_least_one("--repeats", values.repeats) or DEFAULT_REPEATS,
        spaces=tuple(values.space),
        output=values.output,
        resume=values.resume,
        conf_file=values.conf_file,
        trial_timeout=parse_duration(values.trial_timeout, argument="--trial-timeout") if values.trial_timeout else None,
    )


def parse_duration(text: str, *, argument: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `1h30m`."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip().lower())
    parts = match.groups() if match else ()
    seconds = sum(float(part) * SECONDS[unit] for part, unit in zip(parts, "hms", strict=False) if part)
    if not seconds:
        raise UsageError(f"{argument} {text}: not a time above 0 such as 90s, 10m, 1h30m")
    return seconds


def _split(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Own flags, flags of ipexrun, the program: the first word that is neither a flag nor a flag's value."""
    own: list[str] = []
    fixed: list[str] = []
    place = 0
    while place < len(words) and words[place].startswith("-") and words[place] != "-":
        word = words[place]
        if word == "--":
            return own, fixed, list(words[place + 1 :])
        spelled, equals, _ = word.partition("=")
        mine = spelled.replace("_", "-") if spelled.startswith("--") else spelled
        count = 1 + (not equals and (TAKES_VALUE[mine] if mine in TAKES_VALUE else _takes_value(mine)))
        if mine in TAKES_VALUE and count == 2 and place + 1 < len(words):
            own.append(f"{mine}={words[place + 1]}")  # joined, so that a value such as -1 is no flag
        elif mine in TAKES_VALUE:
            own.append(mine + word[len(spelled) :])
        else:
            fixed += words[place : place + count]
        place += count
    return own, fixed, list(words[place:])


def _takes_value(typed: str) -> bool:
    """Whether a flag of ipexrun, perhaps an old spelling or a unique beginning, is followed by its value."""
    name = typed.lstrip("-")
    tables = [{key: flag.takes_value for key, flag in BY_NAME.items()}, {key: old.takes_value for key, old in LEGACY.items()}]
    for table in tables:
        if name in table:
            return table[name]
    return any(takes for table in tables for key, takes in table.items() if typed.startswith("--") and key.startswith(name))


def _at_least_one(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or not int(text):
        raise UsageError(f"{flag} {text}: give a whole number from 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=COMMAND, usage=USAGE, description=DESCRIPTION, allow_abbrev=False, epilog="see also: ipexrun --help")
    parser.add_argument("--budget", default="10m", metavar="TIME", help="how long to search: 90s, 10m, 1h30m (default 10m)")
    parser.add_argument(
        "--objective",
        default="",
        metavar="TEXT",
        help="throughput | latency | 'p99<20': throughput with p99 below 20 ms | the name of any figure; several with "
        "commas: Pareto (default: the script's @hypertune markers, else throughput)",
    )
    parser.add_argument("--trials", metavar="N", help="try at most N configurations (default: what the budget allows)")
    parser.add_argument("--repeats", metavar="N", help=f"whole runs of each finalist (default {DEFAULT_REPEATS})")
    parser.add_argument(
        "--space",
        action="append",
        default=[],
        metavar="TEXT",
        help="replace axes: 'instances=1,2,4; cores=0; smt=off,on; allocator=default,tcmalloc; openmp=default,intel; "
        "dtype=float32,bfloat16', or other flags of ipexrun; the first values are the plain start; may be repeated",
    )
    parser.add_argument("--output", default="", metavar="DIR", help="folder of the record and the results (default: a new one)")
    parser.add_argument("--resume", action="store_true", help="go on with the record in --output; known runs are not run again")
    parser.add_argument("--conf-file", default="", metavar="FILE", help="space and settings from an old hypertune YAML file")
    parser.add_argument(
        "--trial-timeout", default="", metavar="TIME", help="longest a run may take (default: from the first run's time)"
    )
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}; see --help")
