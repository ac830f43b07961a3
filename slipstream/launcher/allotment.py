# SPDX-License-Identifier: Apache-2.0
"""Cutting physical cores into instances. Pure; no core is ever shared by two instances.

Two ways: by count (--ninstances, sizes follow) and by size (--ncores-per-instance, the count may follow).
With a border (--group-by) no instance crosses it. Without one, an instance crosses a last-level cache or a
NUMA node only where no allotment of the same sizes avoids it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from slipstream.errors import PlanError
from slipstream.launcher.options import Placement


@dataclass(frozen=True)
class Core:
    """A physical core: those of its CPUs that are in question, and where it is."""

    cpus: tuple[int, ...]
    node: int
    socket: int
    l3: int


BORDERS: dict[str, Callable[[Core], Hashable]] = {
    "none": lambda core: 0,
    "l3": lambda core: (core.node, core.l3),
    "node": lambda core: core.node,
    "socket": lambda core: core.socket,
}

Group = list[Core]


def allot(cores: Sequence[Core], placement: Placement) -> list[tuple[int, ...]]:
    """The CPUs of each instance. ``cores`` come by node, then by core; the result does not depend on anything else."""
    if placement.ncores > 0:
        return _by_size(list(cores), placement)
    return _by_count(list(cores), placement)


def _by_count(cores: Group, placement: Placement) -> list[tuple[int, ...]]:
    count = placement.ninstances or 1
    if count > len(cores):
        raise PlanError(
            f"--ninstances {count}: more than the {len(cores)} physical cores that may be used; give at most {len(cores)}"
        )
    greedy = placement.ncores == -1
    if placement.group_by != "none":
        groups = _groups(cores, placement.group_by)
        shares = _shares([len(group) for group in groups], count)
        return [
            _cpus(part)
            for group, share in zip(groups, shares, strict=True)
            for part in _cut(group, _sizes(len(group), share, greedy=greedy))
        ]
    sizes = _sizes(len(cores), count, greedy=greedy)
    parts = _uncrossed(cores, sizes, "l3") or _uncrossed(cores, sizes, "node") or _cut(cores, sizes)
    return [_cpus(part) for part in parts]


def _sizes(cores: int, count: int, *, greedy: bool) -> list[int]:
    """Even sizes; the remainder stays unused, or goes one each to the first."""
    if not count:
        return []
    size, rest = divmod(cores, count)
    return [size + 1 if greedy and index < rest else size for index in range(count)]


def _shares(sizes: list[int], count: int) -> list[int]:
    """How many of ``count`` instances each group holds, so that the smallest instance is as large as can be.

    Each starts with its proportional share rounded up; then one is taken from where instances are smallest.
    More groups than instances: the smallest groups stay unused, later ones first.
    """
    total = sum(sizes)
    shares = [-(-count * size // total) for size in sizes]
    while sum(shares) > count:
        takeable = [index for index, share in enumerate(shares) if share > 1]
        if takeable:
            shares[min(takeable, key=lambda index: sizes[index] / shares[index])] -= 1
        else:
            used = [index for index, share in enumerate(shares) if share]
            shares[min(used, key=lambda index: (sizes[index], -index))] = 0
    return shares


def _by_size(cores: Group, placement: Placement) -> list[tuple[int, ...]]:
    size, count = placement.ncores, placement.ninstances
    flag = f"--ncores-per-instance {size}"
    groups = _groups(cores, placement.group_by)
    if placement.group_by == "none":
        within = _least_crossing(cores, size, count, scatter=placement.strategy == "scatter")
    else:
        within = [_slots(group, size) for group in groups]
    slots = sum(map(len, within))
    if not slots:
        largest = max(sum(len(core.cpus) for core in group) for group in groups)
        place = "" if placement.group_by == "none" else f" of one {placement.group_by}"
        raise PlanError(f"{flag}: more than the {largest} cores{place} that may be used; give at most {largest}")
    if count > slots:
        raise PlanError(
            f"--ninstances {count}: {flag} fits {slots} times into the {sum(len(c.cpus) for c in cores)} cores that may be "
            f"used; give at most {slots}, or fewer cores each"
        )
    chosen = _scatter(within, count or slots) if placement.strategy == "scatter" else _close(within, count or slots)
    return chosen


def _least_crossing(cores: Group, size: int, count: int, *, scatter: bool) -> list[list[tuple[int, ...]]]:
    """Slots by node, inside caches, else inside nodes, where there are as many as needed; else one list across all.

    Needed are those asked for, else as many as fit anyhow.
    """
    across = _slots(cores, size)
    nodes = _groups(cores, "node")
    for border in ("l3", "node"):
        inside = [[_slots(group, size) for group in _groups(node, border)] for node in nodes]
        if sum(len(slots) for node in inside for slots in node) < (count or len(across)):
            continue
        if len(nodes) == 1:
            return inside[0]
        if scatter and count:
            return [_in_turn(node) for node in inside]
        return [[slot for slots in node for slot in slots] for node in inside]
    return [across]


def _in_turn(lists: list[list[tuple[int, ...]]]) -> list[tuple[int, ...]]:
    """The first of each, then the second of each, and so on."""
    longest = max(map(len, lists), default=0)
    return [slots[place] for place in range(longest) for slots in lists if place < len(slots)]


def _close(within: list[list[tuple[int, ...]]], count: int) -> list[tuple[int, ...]]:
    return [slot for slots in within for slot in slots][:count]


def _scatter(within: list[list[tuple[int, ...]]], count: int) -> list[tuple[int, ...]]:
    """One slot from each group in turn until there are enough; in a single group, evenly spaced ones."""
    if len(within) == 1:
        slots = within[0]
        return [slots[index * len(slots) // count] for index in range(count)]
    taken = [0] * len(within)
    while sum(taken) < count:
        for index, slots in enumerate(within):
            if taken[index] < len(slots) and sum(taken) < count:
                taken[index] += 1
    return [slot for slots, number in zip(within, taken, strict=True) for slot in slots[:number]]


def _slots(cores: Group, size: int) -> list[tuple[int, ...]]:
    """Consecutive pieces of ``size`` CPUs, each of whole cores; a last core's surplus CPUs stay unused."""
    found: list[tuple[int, ...]] = []
    gathered: list[int] = []
    for core in cores:
        gathered += core.cpus
        if len(gathered) >= size:
            found.append(tuple(gathered[:size]))
            gathered = []
    return found


def _uncrossed(cores: Group, sizes: list[int], border: str) -> list[Group] | None:
    """The same sizes laid inside the borders, larger ones first; None where they do not fit."""
    small, large = sizes[-1], sizes[0]
    groups = _groups(cores, border)
    many_large = sum(size > small for size in sizes)
    larges = _larges_by_group([len(group) for group in groups], small, large, many_large, len(sizes) - many_large)
    if larges is None:
        return None
    parts: list[Group] = []
    left = len(sizes) - many_large
    for group, wanted in zip(groups, larges, strict=True):
        fitting = min(left, (len(group) - wanted * large) // small)
        parts += _cut(group, [large] * wanted + [small] * fitting)
        left -= fitting
    return sorted(parts, key=len, reverse=True)


def _larges_by_group(groups: list[int], small: int, large: int, larges: int, smalls: int) -> list[int] | None:
    """How many large instances each group takes, so that the small ones fit beside them; None: impossible.

    ``best[n]`` is, over the groups seen so far, the most small ones that fit beside n large ones, and how.
    """
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for size in groups:
        following: dict[int, tuple[int, list[int]]] = {}
        for placed, (fitting, how) in best.items():
            for here in range(min(larges - placed, size // large) + 1):
                beside = fitting + (size - here * large) // small
                if placed + here not in following or beside > following[placed + here][0]:
                    following[placed + here] = (beside, [*how, here])
        best = following
    fitting, how = best.get(larges, (-1, []))
    return how if fitting >= smalls else None


def _cut(cores: Group, sizes: list[int]) -> list[Group]:
    parts = []
    start = 0
    for size in sizes:
        parts.append(cores[start : start + size])
        start += size
    return parts


def _groups(cores: Group, border: str) -> list[Group]:
    found: dict[Hashable, Group] = {}
    for core in cores:
        found.setdefault(BORDERS[border](core), []).append(core)
    return list(found.values())


def _cpus(cores: Group) -> tuple[int, ...]:
    return tuple(sorted(number for core in cores for number in core.cpus))
