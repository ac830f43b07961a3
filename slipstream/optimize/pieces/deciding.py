# SPDX-License-Identifier: Apache-2.0
"""What happens on the calls of a piece before its fast way has the verdict for inputs of that size.

The original answers, is timed, and earns an allowance. As far as that goes, the weights are packed and the fast way is
compared with the original; then calls go to both in turn until it is clear which is faster. Nothing of the script runs twice
for that, but samples on which results are compared.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from slipstream.optimize import guards, one_copy, packs
from slipstream.optimize.allowance import costs
from slipstream.optimize.options import clocks, elapsed, fair, say_once, set_up

if TYPE_CHECKING:
    from slipstream.optimize.pieces.piece import Piece, Tensors

GRADIENT_MACS = 4e6
"""Below this a call that records a gradient stays torch's: recording ours costs some 15 µs, and this takes 40."""

CACHED = 32
"""Multiply-adds for a byte of packed weights from which it does not matter that a new pack still lies in the cache."""

FREE_REFUSALS = 8
"""So often is asked again at the next call whether weights may be packed now; then ever more seldom."""


WANTED = 512
"""For so many fast answers after a step of set-up had to wait, what they save is put by."""

WAITS = "set-up waits until the original's calls have earned the time"


@dataclass(frozen=True)
class Turn:
    """Who answers one call, and what for."""

    question: Hashable
    dtype: torch.dtype
    part: Any
    macs: float
    pack: packs.Pack | None
    fast: bool
    tried: bool = False
    """Whether it was seen already that no pack is to be had at this call."""
    counts: bool = True
    """Whether its time says something: that of a pack just made does not, where reading the weights is most of it."""


def turn(piece: Piece, module: nn.Module, x: Any, tensors: Tensors, size: Hashable, recorded: bool) -> Turn | None:
    """Plan the call; None where the original runs and nothing is learnt from it."""
    if piece.waiting > 0:
        piece.waiting -= 1
        return None
    if _changes_too_often(piece, tensors):
        return None
    with torch.no_grad():
        dtype = piece.plan(x, tensors)
        if isinstance(dtype, str):
            piece.refuse(size, dtype)
            return None
        part, macs = piece.sample(module, x)
        if macs < guards.SMALL_MACS:
            piece.refuse(size, "too small for any kernel to repay the way to it")
            return None
        if recorded and macs < GRADIENT_MACS:
            piece.light.add(size)
            say_once("small layers", "left alone while they record gradients: torch.no_grad() makes them fast")
            return None
        kind, details = piece.kind(module, tensors, dtype), piece.details(tensors)
        piece.keep_only((kind, piece.variant()))
        question = (kind, details, size, piece.post_name(), torch.get_num_threads(), piece.options.autocast)
        if piece.options.decides_only:
            _inspect(piece, module, x, tensors, size, Turn(question, dtype, part, macs, None, False))
            return None
        verdict = guards.speed.known(question)
        if piece.moved and piece.pack is not None:
            verdict = guards.Verdict(True, 1.0)  # the original would bring its weight back into memory
        if verdict is not None and not verdict.fast:
            piece.refuse(size, f"the original is faster here{verdict.when()}", speedup_x=verdict.speedup_x)
            return None
        pack, is_new = piece.pack, False
        plain_s = guards.speed.expected_s(question, macs)
        if verdict is None:
            wanted = guards.speed.is_fasts_turn(question)
        else:
            wanted = not _is_cheaper_after(verdict, piece.excerpt(module, part), x)
        if pack is None and wanted:
            undecided = Turn(question, dtype, part, macs, None, False)
            pack, is_new = _prepare(piece, module, x, tensors, undecided, credit=guards.credit(verdict, plain_s)), True
        if pack is None:
            return None if piece.is_given_up() else Turn(question, dtype, part, macs, None, False, is_new)
        if verdict is not None:
            if is_new and verdict.earlier:
                set_up.allowance.earn(plain_s)  # as if the original had answered
            piece.accept(size, pack, dtype, verdict, plain_s)
            return Turn(question, dtype, part, macs, pack, True, counts=False)
        fast = guards.speed.is_fasts_turn(question) and set_up.affords(plain_s / 2)
        counts = not (is_new and macs < CACHED * pack.life.bytes)
        return Turn(question, dtype, part, macs, pack, fast, counts=counts)


def _is_cheaper_after(verdict: guards.Verdict, excerpt: Any, x: Any) -> bool:
    """Whether to let the original answer a first call, because the whole of that answer is what the check needs."""
    return verdict.earlier and _first(excerpt).shape == _first(x).shape


def free_originals(piece: Piece, tensors: Tensors) -> None:
    """--low-memory: from memory to a file with the weights that are packed, as soon as nothing else holds them."""
    left = [weight for weight in piece.sources(tensors) if weight is not None and one_copy.obstacle(weight) is None]
    size = sum(weight.nbytes for weight in left)
    if not set_up.affords(costs.expected_s("one copy", size)):
        set_up.wanted = WANTED
        return
    try:
        with set_up.timed():
            start = clocks()
            moved = [weight for weight in left if one_copy.move(weight)]
            costs.saw("one copy", size, fair(elapsed(start)))
    except OSError as error:
        say_once("low memory", f"a weight stays in memory beside its pack: {error}")
        piece.owes_next = 0
        return
    piece.moved = piece.moved or bool(moved)
    piece.owes_since += 1
    piece.owes_next = 0 if len(moved) == len(left) else min(1 << piece.owes_since, 1 << 10)


def answer_fast(piece: Piece, module: nn.Module, x: Any, tensors: Tensors, recorded: bool, now: Turn) -> Any:
    """The fast answer, timed."""
    assert now.pack is not None
    start = clocks()
    y = piece.serve(module, x, now.pack, tensors, recorded)
    spent = elapsed(start)
    set_up.allowance.save(guards.speed.expected_s(now.question, now.macs) - fair(spent))
    if now.counts:
        guards.speed.saw(now.question, True, spent, now.macs, piece.margin)
    return y


def learn(
    piece: Piece, module: nn.Module, x: Any, y: Any, tensors: Tensors, now: Turn, spent: tuple[float, float]
) -> None:
    """The original answered with y. What that earned may do for packing the weights."""
    guards.speed.saw(now.question, False, spent, now.macs, piece.margin)
    set_up.allowance.earn(fair(spent))
    if now.pack is None and not now.tried and piece.waiting == 0:
        with torch.no_grad():
            _prepare(piece, module, x, tensors, now, y)


def _inspect(piece: Piece, module: nn.Module, x: Any, tensors: Tensors, size: Hashable, now: Turn) -> None:
    """Decide at once, for who only wants to know."""
    pack = piece.pack or _prepare(piece, module, x, tensors, now)
    if pack is None:
        return
    with set_up.timed():
        verdict = guards.speed.settle(
            now.question,
            lambda: piece.run(module, now.part, pack.content, tensors),
            lambda: piece.original(module, now.part),
            now.macs,
            piece.margin,
        )
    if verdict.fast:
        piece.accept(size, pack, now.dtype, verdict, 0.0)
        piece.serve(module, x, pack, tensors, False)  # which counts, and leaves the answer to the original
    else:
        piece.refuse(size, "the original is faster here", speedup_x=verdict.speedup_x)


def _changes_too_often(piece: Piece, tensors: Tensors) -> bool:
    """Weights that change each call are left alone, for twice as long each time."""
    old = piece.pack
    if old is None or old.fits(tensors):
        return False
    piece.pack = None
    piece.misses = piece.misses + 1 if old.life.uses < 4 else 0
    if piece.misses < 2:
        return False
    piece.waiting = min(1 << piece.misses, 1 << 16)
    piece.note(False, "the weights change too often to be worth packing")
    return True


def _prepare(
    piece: Piece, module: nn.Module, x: Any, tensors: Tensors, now: Turn, y: Any = None, credit: float = 0.0
) -> packs.Pack | None:
    """A pack that fits and was seen to be right; None where that cannot be had, or not yet. ``y`` is the original's answer,
    ``credit`` the seconds that may be spent besides what was earned.
    """
    kind = (piece.kind(module, tensors, now.dtype), piece.variant())
    sources = piece.sources(tensors)
    pack = packs.find(kind, *sources) if sources else packs.of_nothing(kind)
    if pack is None and not _may_pack(piece, kind, sources):
        return None
    size = sum(tensor.nbytes for tensor in sources if tensor is not None)
    excerpt = piece.excerpt(module, now.part)
    whole = y if y is not None and _first(excerpt).shape == _first(x).shape else None
    runs = 1 if whole is not None else 2
    check_s = runs * guards.speed.expected_s(now.question, min(now.macs, guards.TRIAL_MACS))
    if not set_up.affords(check_s + (costs.expected_s(piece.act, size) if pack is None else 0.0) - credit):
        piece.note_first(WAITS)
        set_up.wanted = WANTED
        return None
    if not piece.lock.acquire(blocking=False):
        return None  # another thread is at it
    try:
        with set_up.timed():
            if pack is None:
                start = clocks()
                pack = packs.make(kind, lambda: piece.make(module, tensors, now.dtype), *sources)
                costs.saw(piece.act, size, fair(elapsed(start)))
            piece.unchecked = pack  # held, for data with which it can be checked
            if not _is_right(piece, module, excerpt, whole, pack, tensors, now) or not pack.fits(tensors):
                return None
            piece.pack, piece.unchecked = pack, None
            piece.note_first("packed; the next calls decide which is faster")
            return pack
    finally:
        piece.lock.release()


def _may_pack(piece: Piece, kind: Hashable, sources: Tensors) -> bool:
    why = packs.refusal(*sources) or ("the set-up budget is spent" if set_up.is_spent() else None)
    if why is not None:
        piece.note(False, why)
        piece.refusals += 1
        if piece.refusals > FREE_REFUSALS:
            piece.waiting = min(1 << (piece.refusals - FREE_REFUSALS), 1 << 10)
        return False
    if packs.lives_are_short(kind) and not piece.seen_before:
        piece.seen_before = True  # weights that live for one call are not worth packing: see them twice first
        return False
    return True


def _is_right(
    piece: Piece, module: nn.Module, excerpt: Any, whole: Any, pack: packs.Pack, tensors: Tensors, now: Turn
) -> bool:
    """Compare on the excerpt; ``whole`` is what the original gave for it, if it did. Beyond the limit the piece is given up."""
    wanted = flat(piece.original(module, excerpt) if whole is None else whole)
    got = flat(piece.run(module, excerpt, pack.content, tensors))
    if [_form(one) for one in got] != [_form(one) for one in wanted]:
        piece.give_up(module, "the fast result has another dtype, shape or strides")
        return False
    errors = [guards.relative_error(one, want) for one, want in zip(got, wanted, strict=True)]
    if None in errors:
        return False  # the live data are not finite: nothing can be said yet
    error = max(error for error in errors if error is not None)
    if error > piece.limit(now.dtype):
        if pack.fits(tensors):  # else another thread changed the weights between the two
            piece.give_up(module, "not accurate enough on live data", error_relative=error)
        return False
    piece.error = error
    return True


def flat(value: Any) -> list[torch.Tensor]:
    """The tensors in a result: a tensor, or tuples of them."""
    return [value] if isinstance(value, torch.Tensor) else [y for part in value for y in flat(part)]


def _first(x: Any) -> torch.Tensor:
    tensor = x if isinstance(x, torch.Tensor) else x[0]
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _form(y: torch.Tensor) -> tuple[Any, ...]:
    return y.dtype, y.shape, y.stride()
