# SPDX-License-Identifier: Apache-2.0
"""Which CPUs belong to efficient (E) cores: told by the kernel where it tells, inferred from facts where not.

The clock alone is no proof: 5100 against 4400 MHz separates P from E on one chip, 5100 against 3300 MHz two
cores that differ in nothing else on another. Hence the order: the kernel's hybrid lists, the kernel's
capacity, then clock together with SMT.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from slipstream.runtime.cpu_list import format_cpu_list

CAPACITY_OF_FAST = 0.8
"""A core with at least this part of the largest `cpu_capacity` (1024) counts as fast: big and "prime" cores do."""

CLOCK_OF_FAST = 0.85
"""Favoured cores of one kind differ by up to a tenth in clock; a gap of 15 % is the predecessor's sign of an E-core."""

CLOCK_OF_SAME = 0.95
"""A core without SMT is no E-core for its sibling being offline: its clock must be lower too, by more than favour."""


@dataclass(frozen=True)
class CoreFacts:
    """What is known about one logical CPU."""

    number: int
    socket: int
    core_id: int
    siblings: tuple[int, ...]
    die: int = 0
    megahertz: float | None = None
    capacity: int | None = None


def efficient_cpus(
    facts: Sequence[CoreFacts], *, performance: Collection[int] = (), atom: Collection[int] = ()
) -> tuple[frozenset[int], str]:
    """The numbers of the CPUs on E-cores, and a sentence where the answer is a matter of policy."""
    if performance and atom:
        return frozenset(fact.number for fact in facts if fact.number not in performance), ""
    largest = max((fact.capacity or 0 for fact in facts), default=0)
    if largest and all(fact.capacity for fact in facts):
        slow = {fact.number for fact in facts if (fact.capacity or 0) < CAPACITY_OF_FAST * largest}
        return frozenset(slow), ""
    return _by_clock(facts)


def _by_clock(facts: Sequence[CoreFacts]) -> tuple[frozenset[int], str]:
    clocks = [fact.megahertz for fact in facts if fact.megahertz]
    if not clocks or len(clocks) < len(facts):  # a CPU without a clock: no comparison is fair
        return frozenset(), ""
    fastest = max(clocks)
    fast_has_smt = any(len(fact.siblings) > 1 for fact in facts if fact.megahertz == fastest)
    slow: set[int] = set()
    dense: set[int] = set()
    for fact in facts:
        clock = fact.megahertz or fastest
        if fast_has_smt and len(fact.siblings) == 1 and clock < CLOCK_OF_SAME * fastest:
            slow.add(fact.number)
        elif clock < CLOCK_OF_FAST * fastest:
            (dense if fast_has_smt else slow).add(fact.number)
    if not dense:
        return frozenset(slow), ""
    return frozenset(slow), (
        f"CPUs {format_cpu_list(dense)} clock below {fastest:g} MHz but have SMT like the fastest cores: taken for the "
        "same kind in a denser build, and used; --cores-list leaves them out"
    )
