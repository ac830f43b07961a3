# SPDX-License-Identifier: Apache-2.0
"""The leaf tier: leaf classes answer their calls from packed weights, through nn.Module's own call slot.

`nn.Module.__call__` asks ``self._compiled_call_impl`` and calls what it finds there; that is where
`Module.compile()` puts its result. `install` places a descriptor of that name in the leaf classes. No class
loses its ``forward`` or ``__call__``; modules that are no leaves pay nothing; a script's own
``module.compile()`` lands in the instance and wins; pickle, deepcopy and `torch.jit` pass the slot over.
"""

from __future__ import annotations

import math
import sys
import weakref
from typing import Any

import torch
from torch import nn

from slipstream import decision
from slipstream.kernels import native
from slipstream.optimize import choices, dynamo, gates, guards, names, own_forward, packs
from slipstream.optimize.allowance import SHARE
from slipstream.optimize.chain.hand_over import HandOverPiece, let_all_go
from slipstream.optimize.graph import tier
from slipstream.optimize.graph.torchscript import slot
from slipstream.optimize.options import Options, compute_dtype, forget_what_was_said, say_once, set_up
from slipstream.optimize.pieces import dropout
from slipstream.optimize.pieces.convolution import ConvolutionPiece
from slipstream.optimize.pieces.encoder_layer import EncoderLayerPiece
from slipstream.optimize.pieces.group_norm import GroupNormPiece
from slipstream.optimize.pieces.linear import LinearPiece, TransposedLinearPiece
from slipstream.optimize.pieces.lstm import LstmPiece
from slipstream.optimize.pieces.multihead import MultiheadPiece
from slipstream.optimize.pieces.norm import CLASSES as NORMS
from slipstream.optimize.pieces.norm import NormPiece
from slipstream.optimize.pieces.recurrent import RecurrentPiece
from slipstream.optimize.pieces.recurrent_cell import KINDS as CELLS
from slipstream.optimize.pieces.recurrent_cell import RecurrentCellPiece
from slipstream.optimize.pieces.sequential import NORM_AFTER, SequentialPiece

SLOT = "_compiled_call_impl"

PIECES: dict[type[nn.Module], type[Any]] = {
    nn.Linear: LinearPiece,
    nn.Conv1d: ConvolutionPiece,
    nn.Conv2d: ConvolutionPiece,
    nn.Conv3d: ConvolutionPiece,
    nn.ConvTranspose1d: ConvolutionPiece,
    nn.ConvTranspose2d: ConvolutionPiece,
    nn.ConvTranspose3d: ConvolutionPiece,
    nn.LSTM: LstmPiece,
    nn.GRU: RecurrentPiece,
    nn.RNN: RecurrentPiece,
    **dict.fromkeys(CELLS, RecurrentCellPiece),
    nn.MultiheadAttention: MultiheadPiece,
    nn.TransformerEncoderLayer: EncoderLayerPiece,
    nn.Sequential: SequentialPiece,
    **dict.fromkeys(NORMS, NormPiece),
    nn.GroupNorm: GroupNormPiece,
    **dict.fromkeys(dropout.RANKS, dropout.DropoutPiece),
}
"""Leaf class → what answers for it."""

FORWARD = ("forward", "_conv_forward")

CALL_PATH = ("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__iter__")
"""What a subclass must not have replaced, besides its forward, if it is to count as its leaf class."""

_grad_is_enabled = torch.is_grad_enabled
_pieces: dict[int, Any] = {}
_everywhere: list[Options] = []


class _Slot:
    """The class attribute. For a module in training it is what it always was: None."""

    def __get__(self, module: nn.Module | None, owner: type | None = None) -> Any:
        if module is None:
            return None
        if module.training:
            if not _grad_is_enabled():
                say_once("training mode", "inference on modules in training mode is left alone: call model.eval()")
            return None
        piece = _pieces.get(id(module))
        return piece if piece is not None else _meet(module)


def install(settings: Any) -> None:
    """Cover every module of the process. ``settings`` is autopatch's Settings."""
    set_up.budget_s = settings.budget_s
    if settings.decides_only or settings.at_once:
        set_up.allowance.share = math.inf
    guards.speed.trusting = settings.at_once
    choices.memory.reads = not settings.decides_only
    early = settings.early_graphs or settings.at_once
    options = Options(compute_dtype(settings), settings.low_memory, settings.decides_only, settings.graph_mode, early)
    _everywhere[:] = [options]
    slot.cover_all(options)
    open_slots()
    decision.log.note("native kernels", native.available(), native.reason())


def uninstall() -> None:
    """Undo `install`, and forget every piece and pack."""
    _everywhere.clear()
    for leaf in PIECES:
        if isinstance(leaf.__dict__.get(SLOT), _Slot):
            delattr(leaf, SLOT)
    packs.unwatch_data()
    gates.take_part_in_trace_checks()
    packs.drop_all()
    guards.speed.clear()
    guards.speed.trusting = False
    set_up.allowance.share = SHARE
    own_forward.let_go()
    let_all_go()
    tier.let_go()
    slot.let_go()
    forget_what_was_said()
    _pieces.clear()


def open_slots() -> None:
    """Put the descriptor into the leaf classes; twice does no harm."""
    know_transformers()
    packs.watch_data()
    gates.stand_aside_in_trace_checks()
    dynamo.leave_our_frames_alone()
    slot.open_slots()
    for leaf in PIECES:
        if SLOT not in leaf.__dict__:
            setattr(leaf, SLOT, _Slot())


def know_transformers() -> None:
    """Add transformers' own linear layer to the leaf classes, once transformers is there."""
    file = sys.modules.get("transformers.pytorch_utils")
    layer = getattr(file, "Conv1D", None)
    if layer is not None and layer not in PIECES:
        PIECES[layer] = TransposedLinearPiece
        gates.answers_stand_for(layer)
        if any(isinstance(leaf.__dict__.get(SLOT), _Slot) for leaf in PIECES):
            setattr(layer, SLOT, _Slot())


def adopt(module: nn.Module, name: str, options: Options) -> Any:
    """Let a piece answer for this module from now on; None where its class is not one that we know."""
    leaf, is_stock = _leaf_class(module)
    if leaf is None:
        return None
    number = id(module)

    def answer_by(piece: Any) -> None:
        _pieces[number] = piece

    piece: Any = PIECES[leaf](module, name, options) if is_stock else own_forward.adopt(module, leaf, name, options)
    if piece is None:
        return None
    answer_by(HandOverPiece(piece, answer_by) if is_stock and leaf in NORM_AFTER else piece)
    weakref.finalize(module, _pieces.pop, number, None).atexit = False
    return _pieces[number]


def piece_of(module: nn.Module) -> Any:
    """What answers for this module itself; None where nothing does."""
    return _pieces.get(id(module))


def _meet(module: nn.Module) -> Any:
    """First call of a module, out of training. Whatever fails here is ours, and the original runs."""
    if not _everywhere or _in_data_worker():
        return None
    try:
        with set_up.timed():
            root = names.outermost(module)
            name = names.of(module)
            piece = adopt(module, name, _everywhere[0]) if names.are_wanted(name) else None
            tier.notice(root, names.of(root), _everywhere[0], piece_of)
    except Exception as error:  # noqa: BLE001 - a failure of ours: the module is left alone and the report says so
        decision.log.note(f"{type(module).__name__}: meet", False, f"slipstream failed: {error!r}")
        piece = None
    if piece is None:
        module.__dict__[SLOT] = None  # nothing to be had: the descriptor is not asked again for this one
    return piece


def _leaf_class(module: nn.Module) -> tuple[type[nn.Module] | None, bool]:
    """The leaf class that this module belongs to, perhaps by a subclass, and whether it has that class's own forward."""
    kind = type(module)
    leaf = next((leaf for leaf in kind.__mro__ if leaf in PIECES), None)
    if leaf is None or not _has(kind, CALL_PATH, leaf):
        return None, False
    is_stock = gates.class_is_plain(leaf) and _has(kind, FORWARD, leaf)
    if is_stock:
        gates.answers_stand_for_like(kind, leaf)
    return leaf, is_stock


def _has(kind: type[nn.Module], attributes: tuple[str, ...], leaf: type[nn.Module]) -> bool:
    return all(getattr(kind, name, None) is getattr(leaf, name, None) for name in attributes)


def _in_data_worker() -> bool:
    return torch.utils.data.get_worker_info() is not None
