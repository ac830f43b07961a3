# SPDX-License-Identifier: Apache-2.0
"""Whether a leaf's call is an ordinary eager one, so that another implementation may answer it unseen.

Asked on every call of an optimized leaf: it is one expression of C calls and dictionary look-ups.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as module_file

_tracing_state = torch._C._get_tracing_state
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_functorch_level = torch._C._functorch.peek_interpreter_stack
_autocast = torch.is_autocast_enabled
_autocast_dtype = torch.get_autocast_dtype
_mkldnn = torch._C._get_mkldnn_enabled
_call = torch.nn.Module._wrapped_call_impl
_global_hooks = (
    module_file._global_forward_hooks,
    module_file._global_forward_pre_hooks,
    module_file._global_backward_hooks,
    module_file._global_backward_pre_hooks,
)

_functional = vars(torch.nn.functional)
_same: dict[str, list[Any]] = {}
"""By name, what may stand in `torch.nn.functional`: torch's own, and what of ours does as it does."""

_meanings: dict[type, tuple[Any, str, list[Any]]] = {}
"""What other implementations of a class's calls stand for: its ``forward``, and by name torch's function that this calls."""

_BESIDE = frozenset({"pad", "dropout", "has_torch_function"})
"""What the forwards of torch's modules call beside their operator."""


def answers_stand_for(kind: type[torch.nn.Module]) -> None:
    """What answers for modules of this class knows the forward that it has, if that is its library's."""
    library = kind.__module__.partition(".")[0]
    functions = [getattr(kind, name, None) for name in ("forward", "_conv_forward")]
    codes = [function.__code__ for function in functions if isinstance(function, types.FunctionType)]
    called = (name for code in codes if "F" in code.co_names for name in code.co_names)
    operator = next((name for name in called if callable(_functional.get(name)) and name[0] != "_" and name not in _BESIDE), "")
    found = _functional.get(operator)
    same = _same.setdefault(operator, [found] if found is None or _is_written_by("torch", found) else [])
    _meanings.setdefault(kind, (kind.forward if _is_written_by(library, kind.forward) else None, operator, same))


def _is_written_by(library: str, function: Any) -> bool:
    """Whether a library's file has it, whatever name a wrapper gave itself; built-in functions are torch's."""
    if isinstance(function, types.FunctionType):
        return str(function.__globals__.get("__name__")).partition(".")[0] == library
    return isinstance(function, types.BuiltinFunctionType)


def answers_stand_for_like(kind: type[torch.nn.Module], leaf: type[torch.nn.Module]) -> None:
    """The same of a class that has the forward of another."""
    _meanings.setdefault(kind, _meanings[leaf])


def means_the_same(name: str, function: Any) -> None:
    """As torch's own function of this name: one of ours that may stand in `torch.nn.functional`."""
    _same[name].append(function)


for _kind in vars(torch.nn).values():
    if isinstance(_kind, type) and issubclass(_kind, torch.nn.Module):
        answers_stand_for(_kind)


def class_is_plain(kind: type[torch.nn.Module]) -> bool:
    """Whether nobody has put another ``forward`` into this class, or another function where that finds torch's."""
    meaning = _meanings.get(kind)
    if meaning is None:
        return True
    forward, operator, same = meaning
    return kind.forward is forward and _functional.get(operator) in same


def function_is_plain(name: str) -> bool:
    """The same of one function of `torch.nn.functional`, of those that the forwards of torch's modules call."""
    return _functional.get(name) in _same[name]


def call_is_plain() -> bool:
    """No tracing, mode, transform or float16 autocast is active that would want to see the original operators."""
    return not (
        _tracing_state()
        or _dispatch_modes()
        or _function_modes()
        or _functorch_level() is not None
        or (_autocast("cpu") and _autocast_dtype("cpu") is not torch.bfloat16)
        or forward_ad._current_level >= 0
        or not _mkldnn()
        or _checks_running
    )


def in_autocast() -> bool:
    """Whether the script asked for lower precision here; of a plain call that means bfloat16."""
    return _autocast("cpu")


def stand_aside_in_trace_checks() -> None:
    """`torch.jit.trace` runs a model once more, plainly, to compare it with its trace: to 1e-5, so as it was."""
    if torch.jit._trace._check_trace is _original_check:
        torch.jit._trace._check_trace = _check_trace


def take_part_in_trace_checks() -> None:
    torch.jit._trace._check_trace = _original_check


_original_check = torch.jit._trace._check_trace
_checks_running: list[None] = []


@functools.wraps(_original_check)
def _check_trace(*args: Any, **kwargs: Any) -> Any:
    _checks_running.append(None)
    try:
        return _original_check(*args, **kwargs)
    finally:
        _checks_running.pop()


def module_is_plain(module: torch.nn.Module) -> bool:
    """No hook and no ``forward`` of its own on this one object, none put into its class, and no global hooks."""
    return not (has_hooks(module) or "forward" in module.__dict__) and class_is_plain(type(module))


def may_be_passed_over(module: torch.nn.Module) -> bool:
    """Whether nobody would notice that it was not called, its work being done elsewhere."""
    return module_is_plain(module) and nobody_else_calls()


def nobody_else_calls() -> bool:
    """Whether modules are called by PyTorch's own function, and not by one that counts or traces."""
    return torch.nn.Module.__call__ is _call


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether there are hooks on this one object, or global ones."""
    state: dict[str, Any] = module.__dict__
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or has_global_hooks()
    )


def has_global_hooks() -> bool:
    """Whether there are hooks on all modules."""
    first, second, third, fourth = _global_hooks
    return bool(first or second or third or fourth)


def why_not_plain(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The sentence for the report where a call was left to the original before anything was decided."""
    reasons = (
        (not module_is_plain(module), "it has hooks or a forward of its own"),
        (_autocast("cpu") and _autocast_dtype("cpu") != torch.bfloat16, "the script's own autocast is on, not to bfloat16"),
        (not call_is_plain(), "torch was tracing or transforming, or a mode was on: that wants the original operators"),
        (len(args) != 1 or bool(kwargs), "called otherwise than with one argument"),
        (bool(args) and not tensor_is_plain(args[0]), "the input is no plain CPU tensor"),
        (torch.is_grad_enabled(), "gradients were recorded"),
    )
    why = next((sentence for holds, sentence in reasons if holds), "the call was not fit for packed weights")
    return f"stood aside at first: {why}"


def tensor_is_plain(tensor: Any) -> bool:
    """A strided CPU tensor, of torch's own class, and no list of tensors."""
    return type(tensor) is torch.Tensor and tensor.is_cpu and tensor.layout is torch.strided and not tensor.is_nested
