# SPDX-License-Identifier: Apache-2.0
"""Attention in inference: `scaled_dot_product_attention` on our kernel, or torch's own in bfloat16, where faster.

The function in `torch.nn.functional` is replaced by one that asks first, because models call it as a function
and no module stands around it. Which of the two is faster is measured once for each class of shapes, on calls as they come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from slipstream import env
from slipstream.decision import log
from slipstream.kernels import attention as kernel
from slipstream.kernels import native
from slipstream.kernels.linear import PARTS, asked_precision, has_tiles
from slipstream.optimize import accounts, gates, guards, names, products
from slipstream.optimize.allowance import FIXED_S
from slipstream.optimize.options import clocks, compute_dtype, elapsed, fair, set_up
from slipstream.optimize.pieces.linear import onednn_has_bfloat16

NAME = "scaled_dot_product_attention"

_original: Callable[..., torch.Tensor] = functional.scaled_dot_product_attention
_verdicts: dict[Hashable, bool] = {}
_accounts: dict[Hashable, accounts.Account] = {}
_like_query: set[Hashable] = set()
_errors: dict[Hashable, float] = {}
_wanted: list[torch.dtype] = []
_tiles: list[bool] = []
_in_parts: dict[Hashable, int] = {}
_decides_only: list[bool] = []
_lock = threading.Lock()


@dataclass(frozen=True)
class Call:
    """One call of the function, its arguments by name."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attn_mask: torch.Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def original(self) -> torch.Tensor:
        return _original(
            self.query, self.key, self.value, self.attn_mask, self.dropout_p, self.is_causal,
            scale=self.scale, enable_gqa=self.enable_gqa,
        )  # fmt: skip

    def fast(self, dtype: torch.dtype, parts: int = 1) -> torch.Tensor:
        """By our kernel; without the extension by torch's on cast tensors."""
        q, k, v, mask = self.query, self.key, self.value, self.attn_mask
        if native.available():
            return kernel.attention(q, k, v, mask, causal=self.is_causal, scale=self.scale, dtype=dtype, parts=parts)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(dtype)  # infinities stay, and what else a mask holds needs no more than eight bits
        y = _original(
            q.to(dtype), k.to(dtype), v.to(dtype), mask, 0.0, self.is_causal,
            scale=self.scale, enable_gqa=self.enable_gqa,
        )  # fmt: skip
        return y.to(q.dtype)

    def in_autocast(self) -> Call:
        """The call that the script's autocast to bfloat16 makes of this one."""

        def cast(x: torch.Tensor | None) -> torch.Tensor | None:
            return x.to(torch.bfloat16) if isinstance(x, torch.Tensor) and x.dtype is torch.float32 else x

        changed: Any = {name: cast(getattr(self, name)) for name in ("query", "key", "value", "attn_mask")}
        return replace(self, **changed)

    def is_ordinary(self) -> bool:
        """Four axes, one dtype, shapes that agree, no dropout, nothing for torch to complain about."""
        q, k, v, mask = self.query, self.key, self.value, self.attn_mask
        if not all(gates.tensor_is_plain(x) and x.dim() == 4 and x.numel() for x in (q, k, v)):
            return False
        if q.dtype not in (torch.float32, torch.bfloat16) or not q.dtype == k.dtype == v.dtype:
            return False
        same_batch = q.shape[0] == k.shape[0] == v.shape[0]
        heads = q.shape[1] % k.shape[1] == 0 if self.enable_gqa else q.shape[1] == k.shape[1]
        shapes = k.shape[:3] == v.shape[:3] and q.shape[3] == k.shape[3]
        if not (same_batch and heads and shapes) or self.dropout_p:
            return False
        if mask is None:
            return True
        return (
            gates.tensor_is_plain(mask)
            and mask.dtype in (torch.bool, q.dtype)
            and not self.is_causal
            and mask.dim() <= 4
            and all(
                have in (1, want)
                for have, want in zip(reversed(mask.shape), (k.shape[2], q.shape[2], q.shape[1], q.shape[0]), strict=False)
            )
        )

    def records_gradients(self) -> bool:
        tensors = (self.query, self.key, self.value, self.attn_mask)
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)

    def size(self) -> Hashable:
        q, k, v, mask = self.query, self.key, self.value, self.attn_mask
        shape = (q.shape[1], k.shape[1], q.shape[3], v.shape[3])
        bits = tuple(size.bit_length() for size in (q.shape[0], q.shape[2], k.shape[2]))
        kind = None if mask is None else (mask.dtype, *(size == 1 for size in mask.shape))
        order = (q.is_contiguous(), q.stride(1) < q.stride(2), q.stride(0) < q.stride(2), q.shape[2] == 1)  # what a copy costs
        return q.dtype, shape, bits, kind, self.is_causal, order

    def macs(self) -> float:
        q, v = self.query, self.value
        return float(q.shape[0] * q.shape[1] * q.shape[2] * v.shape[2] * (q.shape[3] + v.shape[3]))

    def part(self) -> Call:
        """As many examples of the batch as a trial may take."""
        batch = self.query.shape[0]
        some = max(1, int(guards.TRIAL_MACS * batch // max(1.0, self.macs())))

        def cut(x: torch.Tensor | None) -> torch.Tensor | None:
            whole = x is not None and x.dim() == 4 and x.shape[0] == batch
            return x[:some] if x is not None and whole else x

        q, k, v = (x[:some] for x in (self.query, self.key, self.value))
        return Call(q, k, v, cut(self.attn_mask), 0.0, self.is_causal, self.scale, self.enable_gqa)


def install(settings: Any) -> None:
    """Put the asking function in the place of torch's."""
    dtype = compute_dtype(settings)
    if not native.available() and (dtype == torch.float32 or not onednn_has_bfloat16()):
        return
    if not names.are_wanted(NAME):
        log.note("attention: kernel", False, f"{env.ONLY} or {env.SKIP} leaves {NAME} out")
        return
    _wanted[:] = [dtype]
    _tiles[:] = [True] if dtype == torch.float32 and has_tiles() else []
    _decides_only[:] = [True] if settings.decides_only else []
    setattr(functional, NAME, scaled_dot_product_attention)
    # torch.jit knows what a name means by the identity of the function behind it
    torch.jit._builtins._register_builtin(scaled_dot_product_attention, f"aten::{NAME}")


def uninstall() -> None:
    setattr(functional, NAME, _original)
    _wanted.clear()
    _tiles.clear()
    _in_parts.clear()
    _verdicts.clear()
    _accounts.clear()
    _like_query.clear()
    _errors.clear()


def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    if torch.compiler.is_compiling():
        if "is_causal" in kwargs:  # where sizes decide it, as in openai-whisper, dynamo has a symbol that the operator refuses
            kwargs = {**kwargs, "is_causal": True if kwargs["is_causal"] else False}  # noqa: SIM210 - a branch settles it
        return _original(*args, **kwargs)
    if not gates.call_is_plain():
        return _original(*args, **kwargs)
    y = _answer(args, kwargs)
    return _original(*args, **kwargs) if y is None else y


scaled_dot_product_attention.__module__ = functional.__name__
scaled_dot_product_attention.__doc__ = _original.__doc__


def _answer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The fast answer, or None where the original must give it, be it an error."""
    try:
        call = Call(*args, **kwargs)
    except TypeError:
        return None
    try:
        if not _wanted or call.records_gradients():
            return None
        if gates.in_autocast():
            call = call.in_autocast()
        if not call.is_ordinary():
            return None
        dtype = torch.bfloat16 if call.query.dtype == torch.bfloat16 else _wanted[0]
        size = (call.size(), asked_precision()) if _tiles and dtype == torch.float32 else call.size()
        verdict = _verdicts.get(size)
        if verdict is None:
            return _undecided(call, size, dtype)
        return _served(call, dtype, size) if verdict else None
    except Exception as error:  # noqa: BLE001 - a failure of ours: the original runs, and ours is not tried again
        log.note("attention: kernel", False, f"slipstream failed and the original runs: {error!r}")
        _wanted.clear()
        return None


def _undecided(call: Call, size: Hashable, dtype: torch.dtype) -> torch.Tensor | None:
    """As for a layer (pieces/deciding.py), with nothing to pack: check once, then both take turns."""
    macs = call.macs()
    if macs < guards.SMALL_MACS:
        _decide(call, size, False, "too small for any kernel to repay the way to it")
        return None
    question = ("attention", dtype, size, torch.get_num_threads())
    known = guards.speed.known(question)
    if known is not None and not known.fast:
        _decide(call, size, False, f"the original is faster here{known.when()}", speedup_x=known.speedup_x)
        return None
    if size not in _errors:
        if not _decides_only and known is None and not guards.speed.is_fasts_turn(question):
            return _by_original(call, question, macs)
        runs = 2 + 2 * guards.ROUNDS * len(_tiles)  # parts of bfloat16 are raced first
        checking_s = runs * guards.speed.expected_s(question, min(macs, guards.TRIAL_MACS)) + FIXED_S
        credit = guards.credit(known, guards.speed.expected_s(question, macs))
        if not set_up.affords(checking_s - credit) or not _lock.acquire(blocking=False):
            return _by_original(call, question, macs)
        try:
            if not _check(call, size, dtype):
                return None
        finally:
            _lock.release()
    if _decides_only:
        part = call.part()
        with set_up.timed(), torch.no_grad():
            guards.speed.settle(question, lambda: _fast(part, dtype, size), part.original, macs)
    verdict = guards.speed.known(question)
    if verdict is not None:
        why = f"in {str(dtype).removeprefix('torch.')}" if verdict.fast else "the original is faster here"
        _decide(call, size, verdict.fast, why + verdict.when(), speedup_x=verdict.speedup_x, error_relative=_errors[size])
        return _served(call, dtype, size) if verdict.fast else None
    if not guards.speed.is_fasts_turn(question) or not set_up.affords(guards.speed.expected_s(question, macs) / 2):
        return _by_original(call, question, macs)
    start = clocks()
    y = _fast(call, dtype, size)
    spent = elapsed(start)
    set_up.allowance.save(guards.speed.expected_s(question, macs) - fair(spent))
    guards.speed.saw(question, True, spent, macs)
    return y


def _by_original(call: Call, question: Hashable, macs: float) -> torch.Tensor:
    start = clocks()
    y = call.original()
    spent = elapsed(start)
    set_up.allowance.earn(fair(spent))
    guards.speed.saw(question, False, spent, macs)
    return y


def _served(call: Call, dtype: torch.dtype, size: Hashable) -> torch.Tensor | None:
    account = _accounts[size]
    account.calls += 1
    if _decides_only:
        return None
    if account.calls == account.next_timed:
        return accounts.timed(account, lambda: _fast(call, dtype, size))  # type: ignore[no-any-return]
    return _fast(call, dtype, size)


def _fast(call: Call, dtype: torch.dtype, size: Hashable) -> torch.Tensor:
    return _laid_out(call.fast(dtype, _in_parts.get(size, 1)), call, size)


def _race_parts(call: Call, dtype: torch.dtype, size: Hashable) -> None:
    """float32 in parts of bfloat16, where that is faster than our float32 kernel."""
    wanted = kernel.parts_for(asked_precision(), call.query, call.key)
    question = ("attention in parts", size, torch.get_num_threads())
    with torch.no_grad():
        _in_parts[size] = products.race(_named(call), wanted, lambda parts: call.fast(dtype, parts), question, call.macs())


def _check(call: Call, size: Hashable, dtype: torch.dtype) -> bool:
    """Both ways on part of the batch: strides and error. False decides, but for data that are not finite."""
    part = call.part()
    if _tiles and dtype == torch.float32:
        _race_parts(part, dtype, size)
    with set_up.timed(), torch.no_grad():
        wanted, got = part.original(), part.fast(dtype, _in_parts.get(size, 1))
        if wanted.shape == part.query.shape and wanted.stride() == torch.empty_like(part.query).stride():
            _like_query.add(size)
        got = _laid_out(got, part, size)
        error = guards.relative_error(got, wanted)
        if error is None:
            return False
        limit = guards.HIGH_LIMIT if _in_parts.get(size) == PARTS["high"] else guards.LIMITS[dtype]
        if got.stride() != wanted.stride() or got.dtype != wanted.dtype or error > limit:
            _decide(call, size, False, "other strides, or not accurate enough", error_relative=error)
            return False
        _errors[size] = error
        return True


def _laid_out(y: torch.Tensor, call: Call, size: Hashable) -> torch.Tensor:
    """``y``, in the kernel's memory of [B, L, H, E], as torch lays its result out: like the query, or contiguous."""
    query = call.query
    if y.stride() == query.stride() and size in _like_query:
        return y
    wanted = torch.empty_like(query) if size in _like_query else torch.empty(y.shape, dtype=y.dtype)
    strides = wanted.stride()
    if all(have == want or length == 1 for have, want, length in zip(y.stride(), strides, y.shape, strict=True)):
        return y.as_strided(y.shape, strides)  # the same memory: an axis of one element may have any stride
    return wanted.copy_(y)


def _decide(call: Call, size: Hashable, taken: bool, why: str, **figures: float) -> None:
    what = _named(call)
    _accounts[size] = accounts.of_function(what, NAME)
    _verdicts[size] = taken
    log.note(what, taken, why, **figures)


def _named(call: Call) -> str:
    q = call.query
    return f"attention: {q.shape[1]} heads of {q.shape[3]}, {q.shape[2]} × {call.key.shape[2]}"
