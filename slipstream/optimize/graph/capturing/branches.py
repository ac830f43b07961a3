# SPDX-License-Identifier: Apache-2.0
"""Branches on a tensor's value: taken as the script's own call took them, for as long as the value says so.

Dynamo has no graph of ``if x.isnan().any()`` or ``assert mask.all()``. What decides there is written down in one call of the
script, and the capture goes the same way, with a check in the graph. Where a later value decides otherwise the graph gives no
answer, and nothing it did is to be undone: a captured graph changes nothing before its end.
"""

from __future__ import annotations

import collections
import contextlib
import dis
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph import background

Place = tuple[types.CodeType, int]
"""A line of a function."""

Outcomes = dict[Place, list[bool]]
"""What tensors' truth was in one call, in order, by where it was asked for."""


NUMPY = "wrapped_"
"""How dynamo's names of numpy's functions begin."""


class OtherBranch(Exception):
    """A value decides otherwise than in the call that was captured: the script's own forward has to answer."""


def assumed(condition: torch.Tensor, outcome: bool) -> None:
    """In a graph: raises OtherBranch where the condition is not what it was."""
    if bool(condition) is not outcome:
        raise OtherBranch


assumed.__module__ = "slipstream"
fx.node.has_side_effect(assumed)


@contextlib.contextmanager
def outcomes_here() -> Iterator[Outcomes]:
    """What is decided by tensors' values in this thread meanwhile: by their truth, and by the item of a boolean one."""
    outcomes: Outcomes = collections.defaultdict(list)
    thread, truth, item = threading.get_ident(), torch._C.TensorBase.__bool__, torch._C.TensorBase.item

    def note(answer: bool) -> None:
        if threading.get_ident() == thread:
            frame = sys._getframe(2)
            outcomes[frame.f_code, frame.f_lineno].append(answer)

    def noted_truth(self: torch.Tensor) -> bool:
        answer = bool(truth(self))
        note(answer)
        return answer

    def noted_item(self: torch.Tensor) -> Any:
        answer = item(self)
        if isinstance(answer, bool):
            note(answer)
        return answer

    if not {"__bool__", "item"}.isdisjoint(vars(torch.Tensor)):  # somebody's own: what those say is not known here
        yield outcomes
        return
    torch.Tensor.__bool__, torch.Tensor.item = noted_truth, noted_item  # type: ignore[assignment, method-assign]
    try:
        yield outcomes
    finally:
        for name, ours in (("__bool__", noted_truth), ("item", noted_item)):
            if vars(torch.Tensor).get(name) is ours:  # else the script has put something in its place
                delattr(torch.Tensor, name)


class Branches:
    """Those of one capture. ``met``: whether there were any."""

    def __init__(self, outcomes: Outcomes | None) -> None:
        self.outcomes = outcomes
        self.met = False
        self._reading: Any = None
        self._taken: collections.Counter[Place] = collections.Counter()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Jumps on tensors, and ``not``, go as the outcomes say, while dynamo reads bytecode."""
        from torch._dynamo import symbolic_convert

        kinds = [symbolic_convert.InstructionTranslatorBase]
        for kind in kinds:
            kinds += kind.__subclasses__()
        tables = [table for kind in kinds if (table := vars(kind).get("dispatch_table")) is not None]
        before = [list(table) for table in tables]

        def restore() -> None:
            for table, theirs in zip(tables, before, strict=True):
                table[:] = theirs

        try:
            with background.amended_in_child(restore):
                for table in tables:
                    for name, code in dis.opmap.items():
                        if name == "UNARY_NOT" or ("JUMP" in name and name.endswith(("IF_TRUE", "IF_FALSE"))):
                            table[code] = self._deciding(table[code])
                yield
        finally:
            restore()

    def instead(self) -> list[tuple[Any, str, Any]]:
        """Whose attribute of which name is what during the capture: for ``bool`` and items."""
        from torch._dynamo.variables import TensorVariable

        truth, item = getattr(TensorVariable, "bool_impl", None), TensorVariable.method_item

        def bool_impl(variable: Any, reader: Any) -> Any:
            outcome = self._decide(reader, variable)
            return truth(variable, reader) if outcome is None and truth is not None else outcome

        def method_item(variable: Any, reader: Any, *args: Any, **kwargs: Any) -> Any:
            outcome = self._decide(reader, variable) if variable.dtype is torch.bool else None
            return item(variable, reader, *args, **kwargs) if outcome is None else outcome

        return [(TensorVariable, "bool_impl", bool_impl), (TensorVariable, "method_item", method_item)]

    def _deciding(self, handle: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def handle_outcome(reader: Any, instruction: Any) -> Any:
            if reader.stack and _is_tensor(reader.stack[-1]):
                outcome = self._decide(reader, reader.stack[-1])
                if outcome is not None:
                    reader.pop()
                    reader.push(outcome)
            return handle(reader, instruction)

        return handle_outcome

    def _decide(self, reader: Any, condition: Any) -> Any:
        """Dynamo's constant for the outcome, where it is known; the graph is to check it."""
        from torch._dynamo.variables import ConstantVariable

        settled = _of_sizes(condition.as_proxy().node)
        if settled is not None:
            return ConstantVariable.create(settled)
        self.met = True
        outcome = self._next(reader)
        if outcome is None:
            return None
        reader.output.create_proxy("call_function", assumed, (condition.as_proxy(), outcome), {})
        return ConstantVariable.create(outcome)

    def _next(self, reader: Any) -> bool | None:
        """Of this line, what has not been taken since dynamo last began anew."""
        if reader.output is not self._reading:
            self._reading, self._taken = reader.output, collections.Counter()
        place = reader.f_code, reader.lineno
        known = (self.outcomes or {}).get(place, [])
        self._taken[place] += 1
        return known[self._taken[place] - 1] if self._taken[place] <= len(known) else None


def _is_tensor(variable: Any) -> bool:
    asked = getattr(variable, "is_tensor", None)  # a version without it has its branches refused
    return bool(asked()) if callable(asked) else False


def _of_sizes(node: fx.Node) -> bool | None:
    """The truth of what numpy computes of numbers alone, as models check their inputs' sizes; None of anything else."""
    above, waiting = {node}, [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in above:
                above.add(source)
                waiting.append(source)
    if not all(getattr(one.target, "__name__", "").startswith(NUMPY) and "rand" not in one.name for one in above):
        return None
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    values: dict[fx.Node, Any] = {}
    with unset_fake_temporarily():
        for one in node.graph.nodes:
            if one in above:
                args, kwargs = fx.map_arg((one.args, one.kwargs), values.__getitem__)
                values[one] = one.target(*args, **kwargs)  # type: ignore[operator]
        return bool(values[node])
