# SPDX-License-Identifier: Apache-2.0
"""Whether calls of a model in `eval()` that record gradients may run without: where nobody seems to want them.

Some calls are watched first. Nothing in the model may be in training or have hooks, no input and nothing that a module keeps
may carry gradients, results are tensors and numbers, and no backward comes. From the first backward on all is as it was.
"""

from __future__ import annotations

import random
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from slipstream.decision import log
from slipstream.optimize import gates, guards
from slipstream.optimize.unrecorded.deferred import Call, Form, Unlike, answer, form_of, parts_of

WATCHED = 8
"""Calls without a backward, before one is not expected any more: training in `eval()` has one by then."""

SHARE = 0.02
"""Of a call: so much may looking through all modules and wrapping results take."""

SHORT = 4
"""Calls that are shorter than that, before it is given up."""

Answer = Callable[[], Any]

SLOT = "_compiled_call_impl"

_OTHERS = (torch.jit.ScriptModule, nn.parallel.DistributedDataParallel)
"""Have a record, or gradients, of a kind of their own."""

_PLAIN = (torch.Tensor, nn.Parameter)
_NUMBERS = (type(None), bool, int, float, str, torch.dtype, torch.Size)


class Unrecorded:
    """Of one outermost module, called ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_given_up = False
        self.watched = self.short = 0
        self.form: Form | None = None

    def answer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], plain: Answer, fast: Answer) -> Any:
        """``fast`` may answer where nothing is recorded, ``plain`` always."""
        if self.is_given_up:
            return plain()
        start = time.perf_counter()
        leaves, _, inputs, _ = parts_of((args, kwargs))
        parameters = _recorded_parameters(module)
        if parameters is None or _odd_one(leaves) is not None or not all(map(_is_plain_input, inputs)) or gates.in_autocast():
            return plain()
        if self.watched < WATCHED:
            return self._watch(module, inputs, parameters, plain, time.perf_counter() - start)
        if not parameters:
            with torch.no_grad():
                return fast()
        assert self.form is not None
        try:
            return answer(Call(module, self.form, inputs, parameters, fast, plain, self._on_backward))
        except Unlike:
            self._give_up("its results differ in form from call to call")
            return plain()

    def _watch(
        self, module: nn.Module, inputs: list[torch.Tensor], parameters: list[torch.Tensor], plain: Answer, looking_s: float
    ) -> Any:
        start, before = time.perf_counter(), _random_state()
        result = plain()
        seconds = time.perf_counter() - start
        if seconds * SHARE < looking_s and not guards.speed.trusting:  # what answers must not depend on the clock then
            self.short += 1
            if self.short > SHORT:
                self._give_up("its calls are too short for another way to gain anything")
            return result
        form, why = form_of(result), _why_not(module, result, inputs, parameters)
        if why is not None or _random_state() != before:
            self._give_up(why or "it draws random numbers")
        elif self.form not in (None, form):
            self._give_up("its results differ in form from call to call")
        else:
            self.form = form
            self.watched += 1
            for tensor in parts_of(result)[2]:
                if tensor.grad_fn is not None:
                    tensor.grad_fn.register_prehook(lambda _: self._on_backward())
            if self.watched == WATCHED:
                log.note(
                    self.name, True, "gradients are not recorded: nobody asked for any; a backward would compute the call again"
                )
        return result

    def _on_backward(self) -> None:
        self._give_up("gradients are wanted")

    def _give_up(self, why: str) -> None:
        if not self.is_given_up:
            self.is_given_up = True
            log.note(self.name, False, f"recorded, as the script has it: {why}")


def _recorded_parameters(module: nn.Module) -> list[torch.Tensor] | None:
    """Those that want gradients; None where a part is in training or has hooks, or a parameter's gradient is listened to."""
    found: dict[int, torch.Tensor] = {}
    for part in module.modules():
        if isinstance(part, _OTHERS) or _is_compiled(part) or part.training or gates.has_hooks(part):
            return None
        for parameter in part._parameters.values():
            if parameter is not None and parameter.requires_grad:
                if not parameter.is_leaf or parameter._backward_hooks or type(parameter) is not nn.Parameter:
                    return None
                found[id(parameter)] = parameter
    return list(found.values())


def _is_compiled(part: nn.Module) -> bool:
    """By the script: another gradient mode would have it compiled again."""
    return isinstance(part.__dict__.get(SLOT), types.FunctionType) or type(part).__name__ == "OptimizedModule"


def _is_plain_input(tensor: torch.Tensor) -> bool:
    return type(tensor) in _PLAIN and not tensor.requires_grad and not tensor.is_inference()


def _odd_one(leaves: list[Any]) -> Any:
    """What is neither a tensor nor a number, and may hold tensors, or a state."""
    return next((leaf for leaf in leaves if type(leaf) not in (*_PLAIN, *_NUMBERS)), None)


def _why_not(module: nn.Module, result: Any, inputs: list[torch.Tensor], parameters: list[torch.Tensor]) -> str | None:
    """What speaks against answering without a record."""
    leaves, _, tensors, _ = parts_of(result)
    odd = _odd_one(leaves)
    if odd is not None:
        return f"its result holds a {type(odd).__name__}"
    memory = [_memory_of(tensor) for tensor in tensors if tensor.numel()]
    known = {_memory_of(tensor) for tensor in (*inputs, *module.parameters())}
    if len(set(memory)) < len(memory) or known & set(memory):
        return "its results share memory with each other, its inputs or weights"
    last = {tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None}
    above = _above(last)
    if last & above:
        return "its results depend on each other, and might be differentiated so"
    if not {id(node.variable) for node in above if hasattr(node, "variable")} <= set(map(id, parameters)):
        return "what is no parameter of it wants gradients"
    if any(_carries_gradients(value) for part in module.modules() for name, value in part.__dict__.items() if name[:1] != "_"):
        return "a module keeps what carries gradients"
    return None


def _memory_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _above(nodes: set[Any]) -> set[Any]:
    """All of autograd's operations that these come from."""
    found: set[Any] = set()
    waiting = list(nodes)
    while waiting:
        sources = {source for source, _ in waiting.pop().next_functions if source is not None}
        waiting += sources - found
        found |= sources
    return found


def _carries_gradients(value: Any) -> bool:
    """A tensor that a call computed, in a structure that modules keep such in."""
    if isinstance(value, torch.Tensor):
        return value.requires_grad and not value.is_leaf
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, (list, tuple)) and any(map(_carries_gradients, value[:64]))


def _random_state() -> tuple[object, ...]:
    """Of the generators that a forward may draw from."""
    numpy = sys.modules.get("numpy")
    of_numpy = () if numpy is None else (numpy.random.get_state()[1].tobytes(), numpy.random.get_state()[2])
    return torch.get_rng_state().numpy().tobytes(), hash(random.getstate()), *of_numpy
