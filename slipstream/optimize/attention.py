# SPDX-License-Identifier: Apache-2.0
"""Attention on our kernel, in inference, in the dtype asked for, where that is faster; inputs and results stay float32.

Without the extension torch's own operator runs on cast inputs, under ``dtype=bfloat16`` only. Whether either is
faster is asked once per shape class: with tile instructions torch's bfloat16 attention is, without them it often loses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.nn import functional

from slipstream.decision import log
from slipstream.kernels import attention as kernel
from slipstream.kernels import native
from slipstream.optimize import gates, guards
from slipstream.optimize.options import set_up

NAME = "scaled_dot_product_attention"

_original: Callable[..., torch.Tensor] = functional.scaled_dot_product_attention
_dtype: list[torch.dtype] = []
_verdicts: dict[Hashable, bool] = {}
_inside = threading.local()


def install(settings: Any) -> None:
    """Put the wrapper in place of torch's function, where there is something faster to put there."""
    dtype = getattr(torch, settings.dtype)
    worth_it = dtype == torch.bfloat16 or native.available()
    if not worth_it or functional.scaled_dot_product_attention is not _original:
        return
    _dtype[:] = [dtype]
    setattr(functional, NAME, scaled_dot_product_attention)
    # torch.jit compiles what a name means by the identity of the function behind it
    torch.jit._builtins._register_builtin(scaled_dot_product_attention, f"aten::{NAME}")


def uninstall() -> None:
    setattr(functional, NAME, _original)
    _verdicts.clear()


def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    if torch.compiler.is_compiling() or kwargs.get("dropout_p") or len(args) not in (3, 4):
        return _original(*args, **kwargs)
    if not all(gates.tensor_is_plain(x) for x in args[:3]) or not gates.call_is_plain():
        return _original(*args, **kwargs)
    y = _answer(args, kwargs)
    return _original(*args, **kwargs) if y is None else y


scaled_dot_product_attention.__module__ = functional.__name__
scaled_dot_product_attention.__doc__ = _original.__doc__


def _answer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The answer, or None where the original must give it."""
    q, k, v = args[:3]
    mask = args[3] if len(args) == 4 else kwargs.get("attn_mask")
    tensors = (q, k, v) if mask is None else (q, k, v, mask)
    if any(x.dtype != torch.float32 or x.dim() != 4 for x in args[:3]) or not _is_simple_mask(mask):
        return None
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return None
    try:
        shape = (q.shape[1], q.shape[-1], q.shape[2].bit_length(), k.shape[2].bit_length(), mask is None)
        verdict = _verdicts.get(shape)
        if verdict is None:
            verdict = _consider(shape, args, kwargs)
        return _fast_call(args, kwargs) if verdict else None
    except Exception as error:  # noqa: BLE001 - a failure of ours: the original runs, and ours is not tried again
        log.note("attention", False, f"slipstream failed and the original runs: {error!r}")
        uninstall()
        return None


def _is_simple_mask(mask: Any) -> bool:
    return mask is None or (gates.tensor_is_plain(mask) and mask.dtype in (torch.float32, torch.bool))


def _fast_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    if not native.available():
        return _cast_call(args, kwargs)
    q, k, v = args[:3]
    mask = args[3] if len(args) == 4 else kwargs.get("attn_mask")
    causal, scale = kwargs.get("is_causal", False), kwargs.get("scale")
    return kernel.attention(q, k, v, mask, causal=causal, scale=scale, dtype=_dtype[0])


def _cast_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Infinities of a mask stay infinities in bfloat16, and its other values need no more than eight bits."""

    def cast(x: Any) -> Any:
        floats = isinstance(x, torch.Tensor) and x.dtype == torch.float32
        return x.to(torch.bfloat16) if floats else x

    y = _original(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})
    return y.to(torch.float32)


def _consider(shape: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Try one example of the batch both ways: strides, error, time."""
    with set_up.timed(), torch.no_grad():
        batch = args[0].shape[0]

        def first(x: Any) -> Any:
            whole = isinstance(x, torch.Tensor) and x.dim() == 4 and x.shape[0] == batch
            return x[:1] if whole else x

        part = tuple(first(x) for x in args)
        options = {name: first(value) for name, value in kwargs.items()}
        wanted, got = _original(*part, **options), _fast_call(part, options)
        error = guards.relative_error(got, wanted)
        if error is None:
            return False
        name = str(_dtype[0]).removeprefix("torch.")
        what = f"attention in {name}, {args[0].shape[1]} heads of {args[0].shape[-1]}"
        if got.stride() != wanted.stride() or error > guards.LIMITS[_dtype[0]]:
            return _decide(shape, what, False, "other strides or not accurate enough", error_relative=error)
        verdict = guards.speed.verdict(
            ("attention", shape, _dtype[0]), lambda: _fast_call(part, options), lambda: _original(*part, **options)
        )
        if verdict.fast is None:
            return False
        why = "faster than torch's own in float32" if verdict.fast else "torch's own in float32 is faster here"
        return _decide(shape, what, verdict.fast, why, speedup_x=verdict.speedup_x, error_relative=error)


def _decide(shape: Hashable, what: str, taken: bool, why: str, **figures: float) -> bool:
    _verdicts[shape] = taken
    log.note(what, taken, why, **figures)
    return taken
