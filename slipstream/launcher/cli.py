# SPDX-License-Identifier: Apache-2.0
"""The commands `ipexrun` and `slipstream`: parse, validate, plan, run, report.

`slipstream run` is ipexrun, `slipstream plan` prints what it would do; the other subcommands are others'.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from slipstream import __version__
from slipstream.errors import MissingDependency, UsageError

SUBCOMMANDS = {
    "run": ("slipstream.launcher.cli:run", "run a program: the same as ipexrun"),
    "plan": ("slipstream.launcher.cli:plan", "print which CPUs, variables and command each instance would get"),
    "tune": ("slipstream.launcher.tune.command:main", "search for the fastest way to launch a program here"),
    "inspect": ("slipstream.launcher.codeless.inspect:main", "run a program plainly and print what --auto-ipex would do to it"),
    "bisect": ("slipstream.launcher.codeless.bisect:main", "find the module whose optimization changes a program's answer"),
    "doctor": ("slipstream.launcher.doctor:main", "print what this machine is, and what holds it back"),
}
USAGE_ERROR = 2


def ipexrun(argv: Sequence[str] | None = None) -> int:
    """The console script ``ipexrun``."""
    return _guarded("ipexrun", lambda: run(sys.argv[1:] if argv is None else argv, command="ipexrun"))


def main(argv: Sequence[str] | None = None) -> int:
    """The console script ``slipstream``."""
    words = list(sys.argv[1:] if argv is None else argv)
    return _guarded("slipstream", lambda: _subcommand(words))


def run(words: Sequence[str], *, command: str = "slipstream run") -> int:
    """Plan and run; the exit code of the program."""
    from slipstream.launcher.command_line import parse_command_line
    from slipstream.launcher.launch import launch
    from slipstream.launcher.options import launch_options

    return launch(launch_options(parse_command_line(_without_device(words), command=command)), command=command)


def plan(words: Sequence[str]) -> int:
    """Print the plan; the program may be left out."""
    from slipstream.launcher.command_line import parse_command_line
    from slipstream.launcher.launch import launch
    from slipstream.launcher.options import launch_options

    line = parse_command_line(["--dry-run", *words], command="slipstream plan")
    return launch(launch_options(line, program_needed=False), command="slipstream plan")


def _subcommand(words: list[str]) -> int:
    if not words or words[0] in {"-h", "--help"}:
        sys.stdout.write(_help())
        return 0 if words else USAGE_ERROR
    if words[0] == "--version":
        sys.stdout.write(f"slipstream {__version__}\n")
        return 0
    if words[0] not in SUBCOMMANDS:
        raise UsageError.of("COMMAND", words[0], SUBCOMMANDS)
    module, _, function = SUBCOMMANDS[words[0]][0].partition(":")
    result = getattr(importlib.import_module(module), function)(words[1:])
    return int(result or 0)


def _help() -> str:
    rows = "".join(f"  {name:<10} {meaning}\n" for name, (_, meaning) in SUBCOMMANDS.items())
    return f"usage: slipstream COMMAND [arguments]\n\n{rows}\n`slipstream COMMAND --help` says more.\n"


def _without_device(words: Sequence[str]) -> Sequence[str]:
    """`ipexrun cpu …` was a spelling of its own; `ipexrun xpu …` is another machine."""
    if words and words[0] == "cpu":
        return words[1:]
    if words and words[0] == "xpu":
        raise UsageError("PROGRAM xpu: this launcher is for CPUs; leave the word out")
    return words


def _guarded(command: str, act: Callable[[], int]) -> int:
    """User errors are one line on stderr and exit code 2; anything else is a defect and shows itself."""
    try:
        return act()
    except (UsageError, MissingDependency) as error:
        line = " ".join(str(error).split())
        sys.stderr.write(f"{command}: error: {line}\n")
        return USAGE_ERROR
    except KeyboardInterrupt:  # before the program runs; then its own exit code counts
        return 128 + 2
    except BrokenPipeError:  # `ipexrun --plan text … | head`
        sys.stderr.close()
        return 128 + 13


if __name__ == "__main__":
    sys.exit(ipexrun())
