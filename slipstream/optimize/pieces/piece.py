# SPDX-License-Identifier: Apache-2.0
"""A piece: one module of a user's model that may be answered by a faster implementation.

`Piece` holds everything that does not depend on the operator: when to answer, when to pack, what to do when
weights change, when to give up. Each operator fills in five methods. A piece never changes its module; it
answers a call or returns None, upon which the caller runs the original.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from slipstream.decision import log
from slipstream.optimize import accounts, gates, guards, packs
from slipstream.optimize.options import Options, clocks, elapsed, fair, say_once, set_up
from slipstream.optimize.pieces import deciding
from slipstream.optimize.unrecorded.deferred import differentiated, owned

PATIENCE = 32
"""Calls after which a piece that never won is let go for good, so that it costs nothing any more."""

Tensors = tuple[torch.Tensor | None, ...]


class Piece:
    """Answers calls of one module; see the module's docstring. Subclasses are one operator each."""

    act = "fast"

    def __init__(self, module: nn.Module, name: str, options: Options) -> None:
        self.module: weakref.ref[nn.Module] = weakref.ref(module)
        self.name = name
        self.options = options
        self.pack: packs.Pack | None = None
        self.unchecked: packs.Pack | None = None
        self.saves_s = 0.0
        self.moved = False
        self.owes_next = self.owes_since = 0
        self.verdicts: dict[Hashable, bool] = {}
        self.light: set[Hashable] = set()
        self.lock = threading.Lock()
        self.wins = 0
        self.losses = 0
        self.misses = 0
        self.refusals = 0
        self.waiting = 0
        self.seen_before = False
        self.account = accounts.Account(type(module).__name__)
        self.other: Piece | None = None
        if options.autocast:
            self.act += ", in autocast"

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

    def excerpt(self, module: nn.Module, part: Any) -> Any:
        """What of a sample is enough to compare results on."""
        return part

    def kind(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> Hashable:
        """What packs depend on beside the weights, and equal pieces share: operator, shapes, settings."""
        raise NotImplementedError

    def details(self, tensors: Tensors) -> Hashable:
        """What else the speed depends on, of which packs know nothing: what is fused behind, a weight's layout."""
        return ()

    def sources(self, tensors: Tensors) -> Tensors:
        """Those of the tensors, from the first on, that the packed weights are made from; none where nothing is packed."""
        return tensors[:1]

    def variant(self) -> Hashable:
        """What else tells two packs of one weight apart, without mattering to the speed."""
        return None

    def how(self, dtype: torch.dtype) -> str:
        """For the report: what the fast answers come from."""
        return f"{str(dtype).removeprefix('torch.')} weights, packed once"

    def limit(self, dtype: torch.dtype) -> float:
        """How far a fast answer may be off the original's."""
        return guards.LIMITS[dtype]

    def replay(self, module: nn.Module, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """The same from torch's functions, for the gradient; only where ``has_replay``."""
        raise NotImplementedError

    has_replay = False

    margin = 1.0
    """How many times faster than the original a trial has to find it."""

    def original(self, module: nn.Module, x: Any) -> Any:
        """The module's own forward, for comparison."""
        return module.forward(x)

    def again(self, module: nn.Module, options: Options) -> Piece:
        """A piece like this one for the same module, of which nothing is known yet."""
        return type(self)(module, self.name, options)

    def out_dtype(self, given: torch.dtype) -> torch.dtype:
        """The result's dtype for an input of this one, where the operator is one that autocast casts for."""
        return torch.bfloat16 if self.options.autocast else given

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
            self.note(False, gates.why_not_plain(module, args, kwargs))
        return module._call_impl(*args, **kwargs)

    def wait(self, module: nn.Module, x: Any) -> Any:
        """The original's answer to a plain call, while there is no time for reading what this piece is part of."""
        if not self._may_be_worth_it(module, x):
            return self(x)  # which will be let go
        self.note_first(deciding.WAITS)
        start = clocks()
        y = self.original(module, x)
        set_up.allowance.earn(fair(elapsed(start)))
        return y

    def _may_be_worth_it(self, module: nn.Module, x: Any) -> bool:
        try:
            if self.tensors(module) is None or self.size_of(module, x) is None:
                return False  # the weight is parametrized, or the original must take x
            return self.sample(module, x)[1] >= guards.SMALL_MACS
        except Exception as error:  # noqa: BLE001 - a failure of ours: the original runs, the report says so
            self._failed(error)
            return False

    def answer(self, module: nn.Module, x: Any) -> Any:
        """The answer: fast, or while that is being decided also the original's; None where the original has to run."""
        now = None
        if gates.in_autocast() is not self.options.autocast:
            return self._for_autocast(module).answer(module, x)
        try:
            tensors = self.tensors(module)
            if tensors is None:
                return None
            recorded = torch.is_grad_enabled() and _wants_grad(x, tensors)
            if recorded and (not self.has_replay or x.is_inference()):
                return None
            size = self.size_of(module, x)
            if size is None or (recorded and size in self.light):
                return None
            verdict = self.verdicts.get(size)
            if verdict:
                pack = self.pack
                if pack is not None and pack.fits(tensors):
                    return self.serve(module, x, pack, tensors, recorded)
            elif verdict is not None:
                self._let_go(module)
                return None
            now = deciding.turn(self, module, x, tensors, size, recorded)
            if now is None:
                return None
            if now.fast:
                return deciding.answer_fast(self, module, x, tensors, recorded, now)
        except Exception as error:  # noqa: BLE001 - a failure of ours: the original runs, the report says so
            self._failed(error)
            return None
        return self._learn_from_original(module, x, tensors, now)

    def _for_autocast(self, module: nn.Module) -> Piece:
        """What answers inside the script's own autocast: with packs, verdicts and an account of its own."""
        other = self.other
        if other is None:
            options = dataclasses.replace(self.options, dtype=torch.bfloat16, autocast=True)
            other = self.again(module, options)
            other.shares_module = self.shares_module
            other.other, self.other = self, other
        return other

    def serve(self, module: nn.Module, x: Any, pack: packs.Pack, tensors: Tensors, recorded: bool) -> Any:
        """The fast answer from this pack; None from who only decides."""
        pack.life.uses += 1
        account = self.account
        account.calls += 1
        if self.options.decides_only:
            return None
        if self.owes_next > 0:
            self.owes_next -= 1
            if self.owes_next == 0:
                self.owes_next = 1  # unless it can be done now
                deciding.free_originals(self, tensors)
        if set_up.wanted > 0:
            set_up.wanted -= 1
            set_up.allowance.save(self.saves_s)
        if recorded:
            say_once("gradients", "inference runs with gradients on: torch.no_grad() saves time and memory")
            return _Replayed.apply(self, module, pack.content, x, *tensors)
        if account.calls == account.next_timed:
            return accounts.timed(account, self.run, module, x, pack.content, tensors)
        return self.run(module, x, pack.content, tensors)

    def _learn_from_original(self, module: nn.Module, x: Any, tensors: Tensors, now: deciding.Turn) -> Any:
        start = clocks()
        y = self.original(module, x)  # what it raises is the script's
        spent = elapsed(start)
        try:
            deciding.learn(self, module, x, y, tensors, now, spent)
        except Exception as error:  # noqa: BLE001 - as above; the answer is there
            self._failed(error)
        return y

    def post_name(self) -> str:
        """What is fused behind the operator; part of the question that a trial answers."""
        return ""

    # Saying so --------------------------------------------------------------------------------------------

    def accept(
        self, size: Hashable, pack: packs.Pack, dtype: torch.dtype, verdict: guards.Verdict, plain_s: float
    ) -> None:
        """From now on the fast way answers inputs of this size, with which the original takes ``plain_s``."""
        self.saves_s = plain_s * (1 - 1 / verdict.speedup_x)
        self.verdicts[size] = True
        self.wins += 1
        if self.options.low_memory:
            self.owes_next, self.owes_since = 1, 0
        self.account.packed_bytes = pack.life.bytes
        self.account.weight_bytes = sum(tensor.nbytes for tensor, *_ in pack.stamps if tensor is not None)
        self.note(
            True,
            self.how(dtype) + verdict.when(),
            speedup_x=round(verdict.speedup_x, 2),
            error_relative=self.error,
            memory_mb=pack.life.bytes / 1e6,
        )

    def keep_only(self, kind: Hashable) -> None:
        """A pack of another kind is not used any more, nor what was found with it."""
        if self.pack is not None and self.pack.life.kind != kind:
            self.pack = None
            if not self.is_given_up():
                self.verdicts = {}

    def refuse(self, size: Hashable, why: str, **figures: float) -> None:
        """From now on the original answers inputs of this size."""
        self.verdicts[size] = False
        if not self.wins:
            self.note(False, why, **figures)

    def _let_go(self, module: nn.Module) -> None:
        """Count a call that the original won; after enough of them, this module is not looked at again."""
        self.losses += 1
        if not self.wins and self.losses >= PATIENCE:
            self._leave(module)

    def is_given_up(self) -> bool:
        return isinstance(self.verdicts, _Never)

    def is_hopeless(self) -> bool:
        """Whether it lost often enough, or was given up."""
        return self.is_given_up() or (not self.wins and self.losses >= PATIENCE)

    def _leave(self, module: nn.Module) -> None:
        if not self.shares_module and (self.other is None or not self.other.verdicts or self.other.is_hopeless()):
            module.__dict__["_compiled_call_impl"] = None

    def give_up(self, module: nn.Module, why: str, **figures: float) -> None:
        """The fast way is not fit for this module, whatever the size."""
        self._leave(module)
        self.verdicts = _Never()
        self.pack = self.unchecked = None
        self.note(False, why, **figures)

    def _failed(self, error: Exception) -> None:
        self.verdicts = _Never()
        self.pack = self.unchecked = None
        self.note(False, f"slipstream failed and the original runs: {type(error).__name__}: {error}")

    def note(self, taken: bool, why: str, **figures: float) -> None:
        self.account.tier = "chain" if self.post_name() else "leaf"
        accounts.enter(f"{self.name}: {self.act}", self.account)
        log.note(f"{self.name}: {self.act}", taken, why, **figures)

    def note_first(self, why: str) -> None:
        """Say where things stand, as long as nothing has won yet."""
        if not self.wins:
            self.note(False, why)

    error: float = math.nan

    shares_module = False
    """Whether another piece answers for this module as well, so that giving up must not take the module's slot."""


class _Replayed(torch.autograd.Function):
    """The fast forward with the gradient of the original, which is computed again when one is asked for."""

    @staticmethod
    def forward(ctx: Any, piece: Piece, module: nn.Module, content: Any, x: torch.Tensor, *tensors: Any) -> Any:
        ctx.piece, ctx.module = piece, module
        ctx.save_for_backward(x, *tensors)
        return owned(piece.run(module, x, content, tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        needed = ctx.needs_input_grad[3:]
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=ctx.piece.options.autocast):
            # Views, so that a weight that also stands behind x gets from here only what comes directly.
            inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in ctx.saved_tensors]
            y = ctx.piece.replay(ctx.module, inputs[0], tuple(inputs[1:]))
        return None, None, None, *differentiated(y, gradients, inputs, needed)


class _Never(dict[Hashable, bool]):
    """The verdicts of a piece that was given up: no, whatever the size."""

    def get(self, key: Hashable, default: Any = None) -> bool:
        return False


def _wants_grad(x: Any, tensors: Tensors) -> bool:
    inputs = (x,) if isinstance(x, torch.Tensor) else x
    return any(tensor is not None and tensor.requires_grad for tensor in (*inputs, *tensors))
