# SPDX-License-Identifier: Apache-2.0
"""Whether a leaf's call is an ordinary eager one, so that another implementation may answer it unseen.

Asked on every call of an optimized leaf: it is one expression of C calls and dictionary look-ups.
"""

from __future__ import annotations

import functools
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
_global_hooks = (
    module_file._global_forward_hooks,
    module_file._global_forward_pre_hooks,
    module_file._global_backward_hooks,
    module_file._global_backward_pre_hooks,
)


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
    """No hook and no ``forward`` of its own on this one object, and no global hooks."""
    return not (has_hooks(module) or "forward" in module.__dict__)


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
