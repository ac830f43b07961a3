# SPDX-License-Identifier: Apache-2.0
"""A progress bar on stderr where that is a terminal; a line a step where it is not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str], None]
"""Say what begins now; what was said before is thereby done."""


@contextmanager
def bar(title: str, steps: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        count = iter(range(1, steps + 1))
        yield lambda what: print(f"[{next(count, steps)}/{steps}] {what}", file=sys.stderr, flush=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(title, total=steps)
        begun = False

        def advance(what: str) -> None:
            nonlocal begun
            shown.update(task, description=what, advance=int(begun))
            begun = True

        yield advance
        shown.update(task, completed=steps)
