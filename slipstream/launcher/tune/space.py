# SPDX-License-Identifier: Apache-2.0
"""The space of configurations: axes, their values, and the points in an order to try them. Pure.

What of it can run on this machine: `screening.py`. What the machine and its software offer: `offer.py`.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from slipstream.decision import Decision
from slipstream.errors import UsageError
from slipstream.launcher.flags import BINDING, CORES, LIBRARIES, OPTIMIZATION, Flag
from slipstream.launcher.tune.offer import Offer
from slipstream.launcher.tune.trial import OFF, ON, Configuration

Setting = tuple[tuple[str, str], ...]
"""Flags with their values that go together: instances and their cores are one choice, not two."""

SHORT = {
    "instances": "ninstances",
    "cores": "ncores-per-instance",
    "smt": "use-logical-cores",
    "allocator": "memory-allocator",
    "openmp": "omp-runtime",
}
"""Short names of axes on the command line; the flags' own names serve too."""

SEARCHABLE: dict[str, Flag] = {
    flag.name: flag
    for flag in (*CORES, *BINDING, *LIBRARIES, *OPTIMIZATION)
    if flag.kind in {"switch", "choice", "integer"} and flag.name != "auto-ipex-verbose"
}

SHAPES = {"ninstances", "ncores-per-instance", "latency-mode", "throughput-mode"}
"""Whoever gives one of these has decided on instances and cores."""

MOST_CONFIGURATIONS = 2000
"""Of larger spaces a part is drawn: even of 2000 configurations few budgets see more than the first hundred."""

MOST_SPLITS = 7
"""Ways to divide a node, from whole to single cores: each step in between about halves an instance."""

LEAST_USED = 7 / 8
"""A division that leaves more than an eighth of a node's cores idle is no candidate for throughput."""


@dataclass(frozen=True)
class Axis:
    """One independent choice; the first value is the one of the plain start."""

    name: str
    settings: tuple[Setting, ...]


def default_axes(offer: Offer, given: Collection[str]) -> list[Axis]:
    """What is worth trying here, apart from what flags on the command line have decided.

    Where there is one value only, the flag is left to the launcher.
    """
    axes = []
    if not SHAPES.intersection(given):
        axes.append(Axis("instances", tuple(_shapes(offer.cores_of_nodes))))
    choices = {
        "use-logical-cores": (OFF, ON) if offer.smt else (),
        "memory-allocator": offer.allocators,
        "omp-runtime": ("default", "intel") if offer.intel_openmp else (),
        "dtype": ("float32", "bfloat16") if offer.optimizing and offer.bfloat16 else (),
    }
    axes += [_axis(flag, values) for flag, values in choices.items() if len(values) > 1 and flag not in given]
    return axes


def asked_axes(texts: Sequence[str], offer: Offer, given: Collection[str], *, optimizing: bool) -> list[Axis]:
    """The default axes, with those replaced that `--space 'instances=1,2; allocator=default,tcmalloc'` names."""
    asked: dict[str, tuple[str, ...]] = {}
    for part in (part.strip() for text in texts for part in text.split(";")):
        if part:
            flag, values = _parse(part)
            if flag in asked:
                raise UsageError(f"--space {part}: {flag} is there twice; give all its values at once")
            if flag in given:
                raise UsageError(f"--space {part}: --{flag} is also given as fixed; give one of the two")
            if flag == "dtype" and not optimizing:
                raise UsageError(f"--space {part}: dtype has an effect under --auto-ipex only; add it")
            asked[flag] = values
    shape = [flag for flag in ("ninstances", "ncores-per-instance") if flag in asked]
    axes = default_axes(offer, {*given, *asked, *(SHAPES if shape else ())})
    if shape:
        axes.insert(0, shape_axis([asked.pop(flag, ("",)) for flag in ("ninstances", "ncores-per-instance")]))
    return axes + [_axis(flag, values) for flag, values in asked.items()]


def shape_axis(values: Sequence[Sequence[str]], *, cpus: int = 0) -> Axis:
    """Instances × cores as one choice; pairs that need more than ``cpus`` CPUs are left away at once (0: keep all)."""
    pairs = [
        (("ninstances", count), ("ncores-per-instance", size))
        for count, size in itertools.product(values[0], values[1])
        if not cpus or _positive(count) * _positive(size) <= cpus
    ]
    return Axis("instances", tuple(pairs))


def enumerate_space(axes: Sequence[Axis], *, shuffled: bool = False) -> tuple[list[Configuration], list[Decision]]:
    """The points, the plain start first; of a very large space those that differ from it in one axis, and a sample."""
    total = math.prod(len(axis.settings) for axis in axes)
    generator = random.Random(0)  # the same every time: a resumed search must meet the same points
    decisions = []
    if total <= MOST_CONFIGURATIONS:
        places = list(itertools.product(*(range(len(axis.settings)) for axis in axes)))
    else:
        near = list(itertools.islice(_one_change(axes), MOST_CONFIGURATIONS // 2))
        drawn = (tuple(generator.randrange(len(axis.settings)) for axis in axes) for _ in range(10 * MOST_CONFIGURATIONS))
        places = list(dict.fromkeys(itertools.chain(near, drawn)))[:MOST_CONFIGURATIONS]
        reason = "larger spaces are sampled: the first point, its neighbours, and points drawn at random"
        decisions.append(Decision(f"space: {len(places)} of {total} configurations", True, reason))
    if shuffled:
        rest = places[1:]
        generator.shuffle(rest)
        places = [places[0], *rest]
    return [_point(axes, place) for place in places], decisions


def by_prediction(candidates: Sequence[Configuration], seen: Mapping[tuple[int, ...], float]) -> list[Configuration]:
    """Candidates, the most promising first.

    Until they have been seen, those that differ from the first point in one axis come first. What an axis's value
    is worth is its mean over what was seen, relative to all; a candidate is worth the sum over its values.
    """
    if not seen:
        return sorted(candidates, key=lambda one: sum(map(bool, one.place)))
    mean = sum(seen.values()) / len(seen)
    spread = max(abs(value - mean) for value in seen.values()) or 1.0
    worth: dict[tuple[int, int], list[float]] = {}
    for place, value in seen.items():
        for axis, choice in enumerate(place):
            worth.setdefault((axis, choice), []).append((value - mean) / spread)

    def promise(one: Configuration) -> float:
        shares = (worth.get((axis, choice), [0.0]) for axis, choice in enumerate(one.place))
        return sum(sum(values) / len(values) for values in shares)

    near = [one for one in candidates if sum(map(bool, one.place)) <= 1]
    far = [one for one in candidates if sum(map(bool, one.place)) > 1]
    return near + sorted(far, key=promise, reverse=True)


def _shapes(cores_of_nodes: Sequence[int]) -> Iterator[Setting]:
    """All cores by ever more instances that respect the nodes; then one instance on part of the machine."""
    smallest, nodes = min(cores_of_nodes), len(cores_of_nodes)
    for count in dict.fromkeys((1, *(nodes * split for split in _splits(smallest)))):
        yield (("ninstances", str(count)),)  # the even split, with or without SMT siblings
    for size in dict.fromkeys((smallest if nodes > 1 else 0, smallest // 2 if smallest >= 4 else 0)):
        if size:
            yield (("ninstances", "1"), ("ncores-per-instance", str(size)))


def _splits(cores: int) -> list[int]:
    """Into how many instances a node of so many cores may be cut; thinned evenly where there are many ways."""
    powers = {2**step for step in range(cores.bit_length())}
    divisors = {count for count in range(1, cores + 1) if cores % count == 0}
    found = sorted(n for n in powers | divisors if n <= cores and n * (cores // n) >= LEAST_USED * cores)
    if len(found) <= MOST_SPLITS:
        return found
    targets = [cores ** (step / (MOST_SPLITS - 1)) for step in range(MOST_SPLITS)]
    return sorted({min(found, key=lambda n: abs(math.log(n / target))) for target in targets})


def _axis(flag: str, values: Sequence[str]) -> Axis:
    short = {long: name for name, long in SHORT.items()}
    return Axis(short.get(flag, flag), tuple(((flag, value),) for value in values))


def _parse(part: str) -> tuple[str, tuple[str, ...]]:
    name, equals, text = part.partition("=")
    name = name.strip().lstrip("-").replace("_", "-")
    flag = SEARCHABLE.get(SHORT.get(name, name))
    values = tuple(dict.fromkeys(value.strip() for value in text.split(",")))
    if flag is None:
        raise UsageError(f"--space {part}: {name} is not one of {', '.join([*SHORT, *sorted(SEARCHABLE)])}")
    if not equals or "" in values:
        raise UsageError(f"--space {part}: not of the form NAME=VALUE,VALUE")
    allowed = (OFF, ON) if flag.kind == "switch" else flag.choices
    for value in values:
        if allowed and value not in allowed:
            raise UsageError.of(f"--space {name}", value, allowed)
        if flag.kind == "integer" and not value.lstrip("-").isdigit():
            raise UsageError(f"--space {part}: {value} is not a whole number")
    return flag.name, values


def _positive(text: str) -> int:
    return max(1, int(text or 0))


def _one_change(axes: Sequence[Axis]) -> Iterator[tuple[int, ...]]:
    start = (0,) * len(axes)
    yield start
    for index, axis in enumerate(axes):
        for choice in range(1, len(axis.settings)):
            yield (*start[:index], choice, *start[index + 1 :])


def _point(axes: Sequence[Axis], place: tuple[int, ...]) -> Configuration:
    chosen = (axis.settings[choice] for axis, choice in zip(axes, place, strict=True))
    return Configuration(tuple(itertools.chain.from_iterable(chosen)), place)
