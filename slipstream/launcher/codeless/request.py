# SPDX-License-Identifier: Apache-2.0
"""What was typed after `slipstream bisect`: its own flags, ipexrun's flags, the program. No effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from slipstream.errors import UsageError
from slipstream.launcher.command_line import parse_command_line
from slipstream.launcher.options import LaunchOptions, launch_options

COMMAND = "slipstream bisect"
MOST_RUNS = 200
HELP = f"""usage: {COMMAND} [--check CMD] [--runs N] [flags of ipexrun] PROGRAM [arguments of the program] [--check CMD]

Find the modules whose optimization changes what a program answers, and the SLIPSTREAM_SKIP that leaves just them out.

  --check CMD   a shell command that ends with 0 where the answer is right. Its standard input is what the program
                printed; SLIPSTREAM_CHECK_OUTPUT and SLIPSTREAM_CHECK_PLAIN name files with that and with what the
                plain run printed, SLIPSTREAM_CHECK_EXIT_CODE is the program's exit code. As the last two words of
                the line it is bisect's too. Without it: standard output must say the same as the plain run's
  --runs N      at most so many runs of the search (default {MOST_RUNS}); what was not told apart then is left out as well
  --tolerance X how far printed numbers may differ, relatively (by --dtype: 1e-4, bfloat16 2e-2)

see also: ipexrun --help
"""


@dataclass(frozen=True)
class Request:
    """``options`` are ipexrun's, with the engine on."""

    options: LaunchOptions
    check: str = ""
    most_runs: int = MOST_RUNS


def parse_request(words: Sequence[str]) -> Request:
    """Everything that the words say; UsageError for what they may not say. ``-h`` prints the help and exits 0."""
    own: dict[str, str] = {}
    rest: list[str] = []
    place = 0
    while place < len(words):
        name, equals, value = words[place].partition("=")
        if name in {"-h", "--help"} and not rest:
            raise SystemExit(_print_help())
        if name in {"--check", "--runs"} and not equals:
            place += 1
            if place >= len(words):
                raise UsageError(f"{name}: a value is missing after it; see --help")
            value = words[place]
        elif name not in {"--check", "--runs"}:
            break
        own[name] = value
        place += 1
    rest = list(words[place:])
    if "--check" not in own and len(rest) > 2 and rest[-2] == "--check":
        own["--check"] = rest[-1]
        del rest[-2:]
    line = parse_command_line(["--auto-ipex", *rest], command=COMMAND)
    for name in ("compare", "report", "dry-run", "plan"):
        if name in line.given:
            raise UsageError(f"--{name}: not with {COMMAND}; it belongs to ipexrun")
    runs = own.get("--runs", str(MOST_RUNS))
    if not runs.isdigit() or not int(runs):
        raise UsageError(f"--runs {runs}: give a whole number from 1")
    options = launch_options(line)
    optimization = replace(options.optimization, at_once=True)
    return Request(replace(options, optimization=optimization), own.get("--check", ""), int(runs))


def _print_help() -> int:
    import sys

    sys.stdout.write(HELP)
    return 0
