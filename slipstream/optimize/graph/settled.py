# SPDX-License-Identifier: Apache-2.0
"""One look at all packs of a graph a call, where each operator would look at its own.

While nothing has changed, functions answer for the operators that have everything else looked up before. What changes is seen
as `packs` sees it: which tensors come in, their version counters, their addresses, and what was made invalid.
"""

from __future__ import annotations

import contextlib
import operator
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from slipstream.optimize import packs
from slipstream.optimize.graph.operators.constant import Constant
from slipstream.optimize.graph.operators.operator import Answer, PackedOperator

_version: Callable[[torch.Tensor], int] = operator.attrgetter("_version")
_address: Callable[[torch.Tensor], int] = torch.Tensor.data_ptr

LONGEST_PAUSE = 1024
"""Calls after which weights that kept changing are trusted again."""


class Settled:
    """A lowered graph on the packs that its operators have at this call, whose inputs these are; ``run`` is its forward."""

    def __init__(self, fast: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
        """Raises Unsettled where no operator has a pack, or one does not fit."""
        self.changes = packs.changes()
        found, numbers = _settle(fast, inputs)
        self.held = [(pack, pack.content) for _, held in found.values() for pack in held]
        self.pick = _picker(numbers)
        self.given = self.pick(inputs)
        stamped = {id(source): source for pack, _ in self.held for source, _, _ in pack.stamps if source is not None}
        self.versioned = tuple(stamped.values())
        self.versions = [*map(_version, self.versioned)]
        self.placed = (*self.versioned, *(tensor for tensor in self.given if id(tensor) not in stamped))
        self.addresses = [*map(_address, self.placed)]
        if not self.held or not all(_fits(pack) for pack, _ in self.held):  # asked last: what fits now did when it was stamped
            raise Unsettled
        self.run = _with_functions(fast, {number: answer for number, (answer, _) in found.items()})
        for pack, _ in self.held:
            pack.life.uses += 2  # it has come to stay

    def holds(self, inputs: tuple[Any, ...]) -> bool:
        """Whether the packs fit the weights of a call with these inputs."""
        return (
            all(map(operator.is_, self.pick(inputs), self.given))
            and [*map(_version, self.versioned)] == self.versions
            and [*map(_address, self.placed)] == self.addresses
            and (packs.changes() == self.changes or self._are_held())
        )

    def _are_held(self) -> bool:
        """Something somewhere was made invalid, or given other memory: perhaps none of these."""
        changes = packs.changes()
        if not all(pack.valid and pack.content is content for pack, content in self.held):
            return False
        self.changes = changes
        return True


class Unsettled(Exception):
    """The operators have to look for themselves."""


def _settle(fast: fx.GraphModule, inputs: tuple[Any, ...]) -> tuple[dict[int, Answer], list[int]]:
    """What answers for which operator, by its id, on packs of these very inputs; and the numbers of those that are weights.

    An operator that has not met them yet has a pack of others, which may fit those as well as ever.
    """
    places = {node: number for number, node in enumerate(node for node in fast.graph.nodes if node.op == "placeholder")}
    values: dict[fx.Node, Any] = {node: inputs[number] for node, number in places.items()}
    found: dict[int, Answer] = {}
    numbers: set[int] = set()
    for node in fast.graph.nodes:
        if node.op == "get_attr":
            values[node] = operator.attrgetter(str(node.target))(fast)
        if not isinstance(node.target, PackedOperator):
            continue
        weights = node.args[node.target.first_weight :]
        answer = node.target.settle(tuple(values.get(weight) if weight is not None else None for weight in weights))
        if answer is not None:
            found[id(node.target)] = answer
            numbers.update(places[weight] for weight in weights if weight in places)
            if isinstance(node.target, Constant):
                values[node] = answer[1][0].content[0]
    return found, sorted(numbers)


def _with_functions(fast: fx.GraphModule, functions: dict[int, Callable[..., Any]]) -> Callable[..., Any]:
    """Forward with other functions in the place of operators, by their ids: its code finds both by name."""
    forward = type(fast).forward
    names = {name: functions.get(id(value), value) for name, value in forward.__globals__.items()}
    return types.MethodType(types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__), fast)


def _fits(pack: packs.Pack) -> bool:
    return pack.fits(tuple(source for source, _, _ in pack.stamps))


def _picker(numbers: Sequence[int]) -> Callable[[Any], tuple[Any, ...]]:
    if len(numbers) > 1:
        return operator.itemgetter(*numbers)
    return lambda inputs: tuple(inputs[number] for number in numbers)


class Settling:
    """Settles at the second call, and after each time that weights changed after twice as many calls as before."""

    def __init__(self, fast: fx.GraphModule) -> None:
        self.fast = fast
        self.settled: Settled | None = None
        self.calls, self.pause = 0, 1

    def way(self, inputs: tuple[Any, ...]) -> Callable[..., Any] | None:
        """What answers a call with these inputs; None where operators have to look for themselves."""
        settled = self.settled  # another thread may find, meanwhile, that it holds no longer
        if settled is not None:
            if settled.holds(inputs):
                return settled.run
            self.settled = None
        self.calls += 1
        if self.calls > self.pause:
            self.calls, self.pause = 0, min(2 * self.pause, LONGEST_PAUSE)
            with contextlib.suppress(Unsettled):
                self.settled = Settled(self.fast, inputs)
        return None
