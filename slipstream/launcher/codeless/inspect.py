# SPDX-License-Identifier: Apache-2.0
"""`slipstream inspect script.py`: the plain run, and behind it on stderr what `ipexrun --auto_ipex` would do.

Each piece is met, planned, packed, checked and timed as it would be; then the original answers. A whole model's graph is
captured behind its second call, and tried beside the third, which the captured operations answer as they were written. So
standard output and the exit code are the plain run's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slipstream.errors import UsageError
from slipstream.launcher.command_line import parse_command_line
from slipstream.launcher.launch import launch
from slipstream.launcher.options import LaunchOptions, launch_options

COMMAND = "slipstream inspect"


def main(words: Sequence[str]) -> int:
    """The script's exit code."""
    return launch(inspecting(words), command=COMMAND)


def inspecting(words: Sequence[str]) -> LaunchOptions:
    """ipexrun's flags and the program. Raises UsageError."""
    line = parse_command_line(["--auto-ipex", *words], command=COMMAND)
    options = launch_options(line)
    if options.compare:
        raise UsageError(f"--compare {options.compare}: {COMMAND} lets the originals answer; use ipexrun --compare")
    if options.plan_from:
        raise UsageError(f"--plan-from {options.plan_from}: not with {COMMAND}; give the flags instead")
    optimization = replace(options.optimization, decides_only=True)
    return replace(options, optimization=optimization)
