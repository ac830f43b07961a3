# SPDX-License-Identifier: Apache-2.0
"""A weight layer that does the work of the modules its result is handed to, called from where that is proven.

`HandOverPiece` answers for the layer. Called from the very place that `dataflow` read, it runs layer, norm and
activation as one fused piece and remembers the result; the followers, asked next, see that very tensor and pass
it on. Called from anywhere else, or with a follower that trains or has hooks, the layer is a layer.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn

from slipstream.decision import log
from slipstream.optimize import gates
from slipstream.optimize.chain import dataflow
from slipstream.optimize.options import set_up
from slipstream.optimize.pieces.piece import Piece
from slipstream.optimize.pieces.sequential import find_row, may_go_on

SLOT = "_compiled_call_impl"

CALLER_DEPTH = 2
"""From a piece's __call__: nn.Module._wrapped_call_impl, then whoever called the module."""


READING_S = 2e-4
"""Reading one method's source takes about so long; where its syntax tree is known already, a quarter of that."""


class _Expected(threading.local):
    """What this thread's last fused answer was, and who is to be handed it."""

    result: torch.Tensor | None = None
    followers: tuple[Any, ...] = ()


_expected = _Expected()
_answering: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class FollowerPiece:
    """In a follower's call slot: passes on what is already done, runs the module for anything else."""

    def __init__(self, module: nn.Module) -> None:
        self.module = weakref.ref(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module()
        assert module is not None  # it is being called
        if (
            _expected.result is not None
            and len(args) == 1
            and args[0] is _expected.result
            and _expected.followers[0] is module
        ):
            _expected.followers = _expected.followers[1:]
            if not _expected.followers:
                _expected.result = None
            return args[0]
        return module._call_impl(*args, **kwargs)


class HandOverPiece:
    """Answers for a layer: fused where that is proven, else by its plain piece."""

    def __init__(self, plain: Piece, settle: Callable[[Piece], None]) -> None:
        """``settle(plain)`` is called, once, when the first call shows that there is nothing to be fused."""
        self.module = plain.module
        self.plain = plain
        self.settle = settle
        self.chain: _Chain | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module()
        assert module is not None  # it is being called
        if len(args) == 1 and not kwargs and gates.tensor_is_plain(args[0]) and gates.call_is_plain():
            caller = sys._getframe(CALLER_DEPTH)
            chain = self.chain
            if chain is None:
                if not _may_be_followed(module, caller):
                    self.settle(self.plain)
                    return self.plain(args[0])
                if not set_up.allowance.affords(READING_S) and gates.module_is_plain(module):
                    return self.plain.wait(module, args[0])
                chain = self._find_chain(module, caller)
            if chain is not None and gates.module_is_plain(module):
                followers = chain.ready_followers(caller)
                if followers:
                    y = chain.fused.answer(module, args[0])
                    if y is not None:
                        _expected.result, _expected.followers = y, followers
                        return y
        return self.plain(*args, **kwargs)

    def _find_chain(self, module: nn.Module, caller: FrameType) -> _Chain | None:
        try:
            with set_up.timed():
                self.chain = _read_chain(self.plain, module, caller)
        except Exception as error:  # noqa: BLE001 - a failure of ours: the layer stays a layer, the report says so
            log.note(f"{self.plain.name}: chain", False, f"slipstream failed: {error!r}")
        if self.chain is None:
            self.settle(self.plain)
        return self.chain


class _Chain:
    """A proof, and the fused piece that stands on it."""

    def __init__(
        self, fused: Piece, proof: dataflow.HandOver, parent: nn.Module, followers: tuple[nn.Module, ...]
    ) -> None:
        self.fused = fused
        self.proof = proof
        self.parent = weakref.ref(parent)
        self.followers = tuple(weakref.ref(follower) for follower in followers)
        self.names = proof.followers[: len(followers)]

    def ready_followers(self, caller: FrameType) -> tuple[Any, ...]:
        """The modules themselves, where the proof speaks of this call and each of them may be passed over unseen."""
        parent = self.parent()
        if (
            caller.f_code is not self.proof.code
            or caller.f_lineno not in self.proof.lines
            or parent is None
            or owner_of(caller) is not parent
            or not self.proof.still_holds(parent)
        ):
            return ()
        followers = tuple(parent._modules.get(name) for name in self.names)
        for follower, reference in zip(followers, self.followers, strict=True):
            if follower is None or follower is not reference() or not gates.may_be_passed_over(follower):
                return ()
            if type(follower.__dict__.get(SLOT)) is not FollowerPiece:
                return ()  # somebody else's by now: Module.compile() puts its result there
        return followers


def _may_be_followed(layer: nn.Module, caller: FrameType) -> bool:
    """Whether whoever calls has a module that could be behind the layer in a row: else there is nothing to read."""
    parent = owner_of(caller)
    if not isinstance(parent, nn.Module):
        return False
    return any(module is not None and module is not layer and may_go_on(layer, module) for module in parent._modules.values())


def _read_chain(plain: Piece, layer: nn.Module, caller: FrameType) -> _Chain | None:
    """What the source of the calling method proves, if a fused piece can be made of it."""
    parent = owner_of(caller)
    if not isinstance(parent, nn.Module):
        return None
    name = next((name for name, module in parent._modules.items() if module is layer), None)
    proof = None if name is None else dataflow.find(caller.f_code, caller.f_lineno, parent, name)
    if proof is None:
        return None
    modules = [parent._modules[follower] for follower in proof.followers]
    row = find_row([layer, *modules[:2]], plain.name, plain.options)
    followers = tuple(module for module in modules[: row.length - 1] if module is not None)
    if row.piece is None or not all(answer_for(follower) for follower in followers):
        return None
    row.piece.shares_module = True
    return _Chain(row.piece, proof, parent, followers)


def owner_of(frame: FrameType) -> Any:
    """The first argument of the method that a frame runs."""
    if not frame.f_code.co_argcount:
        return None  # perhaps a module's frame: its f_locals are no snapshot but the script's own variables
    values = frame.f_locals
    owner = values.get(frame.f_code.co_varnames[0])
    if sys.version_info < (3, 13):
        values.clear()  # a snapshot that the frame would keep, and with it every tensor in it, until the method ends
    return owner


def answer_for(follower: nn.Module) -> bool:
    """Put a `FollowerPiece` into a module's slot; False where somebody else's is there."""
    present = follower.__dict__.get(SLOT)
    if present is not None and type(present) is not FollowerPiece:
        return False
    if present is None:
        follower.__dict__[SLOT] = FollowerPiece(follower)
        _answering.add(follower)
    return True


def let_all_go() -> None:
    """Undo every `answer_for`."""
    for follower in list(_answering):
        if type(follower.__dict__.get(SLOT)) is FollowerPiece:
            del follower.__dict__[SLOT]
    _answering.clear()
