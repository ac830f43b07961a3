# SPDX-License-Identifier: Apache-2.0
"""A piece: one module of a user's model that may be answered by a faster implementation.

`Piece` holds everything that does not depend on the operator: when to answer, when to pack, what to do when
weights change, when to give up. Each operator fills in five methods. A piece never changes its module; it
answers a call or returns None, upon which the caller runs the original.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from slipstream.decision import log
from slipstream.optimize import accounts, gates, guards, packs
from slipstream.optimize.options import Options, say_once, set_up

PATIENCE = 32
"""Calls after which a piece that never won is let go for good, so that it costs nothing any more."""

GRADIENT_MACS = 4e6
"""Below this a call that records a gradient stays torch's: recording ours costs some 15 µs, and this takes 40."""

Tensors = tuple[torch.Tensor | None, ...]


class Piece:
    """Answers calls of one module; see the module's docstring. Subclasses are one operator each."""

    act = "fast"

    def __init__(self, module: nn.Module, name: str, options: Options) -> None:
        self.module: weakref.ref[nn.Module] = weakref.ref(module)
        self.name = name
        self.options = options
        self.pack: packs.Pack | None = None
        self.verdicts: dict[Hashable, bool] = {}
        self.heavy: set[Hashable] = set()
        self.wins = 0
        self.losses = 0
        self.misses = 0
        self.waiting = 0
        self.account = accounts.Account(type(module).__name__)

    # What an operator says about itself -------------------------------------------------------------------

    def tensors(self, module: nn.Module) -> Tensors | None:
        """The parameters and buffers that the result depends on, the weight first. None: not fit now."""
        raise NotImplementedError

    def size_of(self, module: nn.Module, x: Any) -> Hashable | None:
        """What the speed depends on beside the kind, coarsely; None where the original must take ``x``."""
        raise NotImplementedError

    def plan(self, x: Any, tensors: Tensors) -> torch.dtype | str:
        """The dtype to multiply in, or why this input with these weights is left to the original."""
        raise NotImplementedError

    def make(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> tuple[Any, int]:
        """The packed weights and their size in bytes."""
        raise NotImplementedError

    def run(self, module: nn.Module, x: Any, content: Any, tensors: Tensors) -> Any:
        """The fast answer: dtype, shape and strides as the original's."""
        raise NotImplementedError

    def sample(self, module: nn.Module, x: Any) -> tuple[Any, float]:
        """Part of ``x`` for a trial, and the multiply-adds that the whole of it would take."""
        raise NotImplementedError

    def kind(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> Hashable:
        """What packs depend on beside the weights, and equal pieces share: operator, shapes, settings."""
        raise NotImplementedError

    def sources(self, tensors: Tensors) -> Tensors:
        """Those of the tensors, from the first on, that the packed weights are made from."""
        return tensors[:1]

    def variant(self) -> Hashable:
        """What else tells two packs of one weight apart, without mattering to the speed."""
        return None

    def replay(self, module: nn.Module, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """The same from torch's functions, for the gradient; only where ``has_replay``."""
        raise NotImplementedError

    has_replay = False

    margin = 1.0
    """How many times faster than the original a trial has to find it."""

    def original(self, module: nn.Module, x: Any) -> Any:
        """The module's own forward, for comparison."""
        return module.forward(x)

    # The call ---------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module()
        assert module is not None  # it is being called
        if len(args) == 1 and not kwargs and gates.module_is_plain(module):
            x = args[0]
            if gates.tensor_is_plain(x) and gates.call_is_plain():
                y = self.answer(module, x)
                if y is not None:
                    return y
        if not self.account.decided:
            self._note(False, gates.why_not_plain(module, args, kwargs))
        return module._call_impl(*args, **kwargs)

    def answer(self, module: nn.Module, x: Any) -> Any:
        """The fast result, or None where the original has to run."""
        try:
            tensors = self.tensors(module)
            if tensors is None:
                return None
            recorded = torch.is_grad_enabled() and _wants_grad(x, tensors)
            if recorded and (not self.has_replay or x.is_inference()):
                return None
            size = self.size_of(module, x)
            if size is None:
                return None
            verdict = self.verdicts.get(size)
            if verdict is None:
                verdict = self._consider(module, x, tensors, size)
            if not verdict:
                self._let_go(module)
                return None
            if recorded and size not in self.heavy:
                say_once("small layers", "left alone while they record gradients: torch.no_grad() makes them fast")
                return None
            pack = self.pack
            if pack is None or not pack.fits(tensors):
                pack = self._pack_again(module, x, tensors)
                if pack is None:
                    return None
            pack.life.uses += 1
            account = self.account
            account.calls += 1
            if self.options.decides_only:
                return None
            if recorded:
                say_once("gradients", "inference runs with gradients on: torch.no_grad() saves time and memory")
                return _Replayed.apply(self, module, pack.content, x, *tensors)
            if account.calls == account.next_timed:
                return accounts.timed(account, self.run, module, x, pack.content, tensors)
            return self.run(module, x, pack.content, tensors)
        except Exception as error:  # noqa: BLE001 - a failure of ours: the original runs, the report says so
            self._failed(error)
            return None

    # Deciding ---------------------------------------------------------------------------------------------

    def _consider(self, module: nn.Module, x: Any, tensors: Tensors, size: Hashable) -> bool:
        """Decide for inputs of this size, once; on the way the weights are packed and the result checked."""
        with set_up.timed(), torch.no_grad():
            dtype = self.plan(x, tensors)
            if isinstance(dtype, str):
                return self._refuse(size, dtype)
            part, macs = self.sample(module, x)
            if macs < guards.SMALL_MACS:
                return self._refuse(size, "too small for any kernel to repay the way to it")
            pack = self._fresh_pack(module, part, tensors, dtype)
            if pack is None:
                return False
            question = (self.kind(module, tensors, dtype), size, self.post_name(), torch.get_num_threads())
            verdict = guards.speed.verdict(
                question,
                lambda: self.run(module, part, pack.content, tensors),
                lambda: self.original(module, part),
                self.margin,
            )
            if verdict.fast is None:
                if not self.wins:
                    why = "the original was faster in a first trial; the next call decides"
                    self._note(False, why, speedup_x=verdict.speedup_x)
                return False
            if not verdict.fast:
                return self._refuse(size, "the original is faster here", speedup_x=verdict.speedup_x)
            self.verdicts[size] = True
            if macs >= GRADIENT_MACS:
                self.heavy.add(size)
            self.wins += 1
            self._accept(pack, dtype, verdict.speedup_x)
            return True

    def _fresh_pack(
        self, module: nn.Module, part: Any, tensors: Tensors, dtype: torch.dtype
    ) -> packs.Pack | None:
        """A pack that fits and was seen to be right on ``part``; None where that cannot be had now."""
        kind = (self.kind(module, tensors, dtype), self.variant())
        sources = self.sources(tensors)
        pack = packs.find(kind, *sources)
        if pack is None:
            why = packs.refusal(*sources) or ("the set-up budget is spent" if set_up.is_spent() else None)
            if why is not None:
                self._note(False, why)
                return None
            if packs.lives_are_short(kind) and self.waiting == 0:
                self.waiting = 1  # weights that live for one call are not worth packing: see them twice first
                return None
            pack = packs.keep(kind, *self.make(module, tensors, dtype), *sources)
        if pack is not self.pack and not self._is_right(module, part, pack, tensors, dtype):
            return None
        self.pack = pack
        return pack

    def _is_right(
        self, module: nn.Module, part: Any, pack: packs.Pack, tensors: Tensors, dtype: torch.dtype
    ) -> bool:
        wanted = _flat(self.original(module, part))
        got = _flat(self.run(module, part, pack.content, tensors))
        if [_form(y) for y in got] != [_form(y) for y in wanted]:
            self._give_up(module, "the fast result has another dtype, shape or strides")
            return False
        errors = [guards.relative_error(y, w) for y, w in zip(got, wanted, strict=True)]
        if None in errors:
            return False  # the live data are not finite: nothing can be said yet
        error = max(error for error in errors if error is not None)
        if error > guards.LIMITS[dtype]:
            self._give_up(module, "not accurate enough on live data", error_relative=error)
            return False
        self.error = error
        return True

    def _pack_again(self, module: nn.Module, x: Any, tensors: Tensors) -> packs.Pack | None:
        """The weights changed. Weights that change each call are left alone, for twice as long each time."""
        if self.waiting > 0:
            self.waiting -= 1
            return None
        old, self.pack = self.pack, None
        if old is not None:
            self.misses = self.misses + 1 if old.life.uses < 4 else 0
            if self.misses >= 2:
                self.waiting = min(1 << self.misses, 1 << 16)
                self._note(False, "the weights change too often to be worth packing")
                return None
        with set_up.timed(), torch.no_grad():
            dtype = self.plan(x, tensors)
            if isinstance(dtype, str):
                self.verdicts.clear()
                return None
            return self._fresh_pack(module, self.sample(module, x)[0], tensors, dtype)

    def post_name(self) -> str:
        """What is fused behind the operator; part of the question that a trial answers."""
        return ""

    # Saying so --------------------------------------------------------------------------------------------

    def _accept(self, pack: packs.Pack, dtype: torch.dtype, speedup: float) -> None:
        self.account.packed_bytes = pack.life.bytes
        self.account.weight_bytes = sum(tensor.nbytes for tensor, *_ in pack.stamps if tensor is not None)
        self._note(
            True,
            f"{str(dtype).removeprefix('torch.')} weights, packed once",
            speedup_x=round(speedup, 2),
            error_relative=self.error,
            memory_mb=pack.life.bytes / 1e6,
        )

    def _refuse(self, size: Hashable, why: str, **figures: float) -> bool:
        self.verdicts[size] = False
        if not self.wins:
            self._note(False, why, **figures)
        return False

    def _let_go(self, module: nn.Module) -> None:
        """Count a call that the original won; after enough of them, this module is not looked at again."""
        self.losses += 1
        if not self.wins and self.losses >= PATIENCE:
            self._leave(module)

    def is_hopeless(self) -> bool:
        """Whether it lost often enough, or was given up."""
        return isinstance(self.verdicts, _Never) or (not self.wins and self.losses >= PATIENCE)

    def _leave(self, module: nn.Module) -> None:
        if not self.shares_module:
            module.__dict__["_compiled_call_impl"] = None

    def _give_up(self, module: nn.Module, why: str, **figures: float) -> None:
        self._leave(module)
        self.verdicts = _Never()
        self.pack = None
        self._note(False, why, **figures)

    def _failed(self, error: Exception) -> None:
        self.verdicts = _Never()
        self.pack = None
        self._note(False, f"slipstream failed and the original runs: {type(error).__name__}: {error}")

    def _note(self, taken: bool, why: str, **figures: float) -> None:
        self.account.tier = "chain" if self.post_name() else "leaf"
        accounts.enter(f"{self.name}: {self.act}", self.account)
        log.note(f"{self.name}: {self.act}", taken, why, **figures)

    error: float = math.nan

    shares_module = False
    """Whether another piece answers for this module as well, so that giving up must not take the module's slot."""


class _Replayed(torch.autograd.Function):
    """The fast forward with the gradient of the original, which is computed again when one is asked for."""

    @staticmethod
    def forward(ctx: Any, piece: Piece, module: nn.Module, content: Any, x: torch.Tensor, *tensors: Any) -> Any:
        ctx.piece, ctx.module = piece, module
        ctx.save_for_backward(x, *tensors)
        return piece.run(module, x, content, tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        needed = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            # Views, so that a weight that also stands behind x gets from here only what comes directly.
            inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in ctx.saved_tensors]
            y = ctx.piece.replay(ctx.module, inputs[0], tuple(inputs[1:]))
        wanted: Any = [tensor for tensor, wants in zip(inputs, needed, strict=True) if wants]
        again = torch.is_grad_enabled()
        found = iter(torch.autograd.grad(y, wanted, gradients, create_graph=again, allow_unused=True))
        return None, None, None, *(next(found) if wants else None for wants in needed)


class _Never(dict[Hashable, bool]):
    """The verdicts of a piece that was given up: no, whatever the size."""

    def get(self, key: Hashable, default: Any = None) -> bool:
        return False


def _flat(value: Any) -> list[torch.Tensor]:
    """The tensors in a result: a tensor, or tuples of them."""
    return [value] if isinstance(value, torch.Tensor) else [y for part in value for y in _flat(part)]


def _form(y: torch.Tensor) -> tuple[Any, ...]:
    return y.dtype, y.shape, y.stride()


def _wants_grad(x: Any, tensors: Tensors) -> bool:
    inputs = (x,) if isinstance(x, torch.Tensor) else x
    return any(tensor is not None and tensor.requires_grad for tensor in (*inputs, *tensors))
