# SPDX-License-Identifier: Apache-2.0
"""A choice with its reason, and the one list in which a process keeps them.

Every part of Slipstream that chooses between ways of doing something says so here; the report
(`ipexrun --report`) is nothing but this list.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Decision:
    """What was chosen or refused, and why.

    ``what`` names the piece and the act ("encoder.0.query: packed linear"), ``taken`` is whether it was
    done, ``reason`` is a plain sentence, ``figures`` are measurements with their unit in the key
    ("speedup_x", "error_relative", "setup_s", "memory_mb").
    """

    what: str
    taken: bool
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        return {"what": self.what, "taken": self.taken, "reason": self.reason, "figures": dict(self.figures)}


class DecisionLog:
    """The decisions of one process: ordered, thread-safe; a later decision on the same ``what`` replaces the earlier."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_what: dict[str, Decision] = {}
        self.listener: Callable[[Decision], None] | None = None
        """Told of each decision that says something new of its ``what``; must not raise."""

    def add(self, decision: Decision) -> Decision:
        with self._lock:
            before = self._by_what.get(decision.what)
            self._by_what[decision.what] = decision
        if self.listener is not None and _says_more(decision, before):
            self.listener(decision)
        return decision

    def note(self, what: str, taken: bool, reason: str, **figures: float) -> Decision:
        """Shorthand for ``add(Decision(...))``."""
        return self.add(Decision(what, taken, reason, figures))

    def clear(self) -> None:
        with self._lock:
            self._by_what.clear()

    def __iter__(self) -> Iterator[Decision]:
        with self._lock:
            return iter(tuple(self._by_what.values()))

    def __len__(self) -> int:
        with self._lock:
            return len(self._by_what)


def _says_more(decision: Decision, before: Decision | None) -> bool:
    return before is None or (before.taken, before.reason) != (decision.taken, decision.reason)


log = DecisionLog()
"""The list of this process."""
