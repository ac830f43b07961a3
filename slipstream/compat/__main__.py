# SPDX-License-Identifier: Apache-2.0
"""`python -m slipstream.compat [-m MODULE | SCRIPT] [arguments]`: run a program in which the old names work.

A plain `python -m intel_extension_for_pytorch.cpu.launch` cannot be served: nothing of ours runs before Python
looks for that module. With `python -m slipstream.compat` before the `-m` it is.
"""

from __future__ import annotations

import os
import runpy
import sys

from slipstream.compat import finder
from slipstream.errors import UsageError

USAGE = "python -m slipstream.compat [-m MODULE | SCRIPT] [arguments]"


def main(words: list[str]) -> None:
    """Run the program in this process, as Python itself would. Raises UsageError where none is named."""
    finder.install()
    by_module = words[:1] == ["-m"]
    if by_module:
        words = words[1:]
    if not words or words[0].startswith("-"):
        raise UsageError.of("SCRIPT", words[0] if words else "", f"usage: {USAGE}")
    program, sys.argv = words[0], words
    if by_module:
        _search_first(os.getcwd())
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        if not os.path.exists(program):
            raise UsageError.of("SCRIPT", program, "there is no such file")
        _search_first(os.path.dirname(os.path.abspath(program)))
        runpy.run_path(program, run_name="__main__")


def _search_first(folder: str) -> None:
    """The folder that Python puts first on its path for such a program, unless `-P` forbids it."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _run() -> None:
    try:
        main(sys.argv[1:])
    except UsageError as error:
        sys.stderr.write(f"slipstream.compat: error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    _run()
