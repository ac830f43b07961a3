# SPDX-License-Identifier: Apache-2.0
"""The engine as an API on one model: `optimize_model`."""

from __future__ import annotations

import copy

import torch
from torch import nn

from slipstream.decision import log
from slipstream.errors import UsageError
from slipstream.optimize import leaf_tier, names
from slipstream.optimize.graph import tier
from slipstream.optimize.graph.torchscript import slot
from slipstream.optimize.options import Options

DTYPES = (torch.float32, torch.bfloat16)


def optimize_model(
    model: nn.Module, *, dtype: torch.dtype | None = None, inplace: bool = False, graph: bool = True
) -> nn.Module:
    """Make a model answer faster in inference; what it returns keeps dtype, shape and strides.

    Linear layers, convolutions, LSTMs, and their rows in ``nn.Sequential`` run on packed weights from their
    first call on. ``dtype`` is what float32 weights are packed in: bfloat16 is faster and has three
    significant digits; None and float32 keep float32. In training nothing changes, and a weight that changes
    is seen. With ``graph``, a model that is called for long enough is captured as a whole in a thread beside
    the script, and its graph answers where it is faster (docs/codeless.md). The model stays what it is: class,
    parameters, hooks, ``state_dict``; a copy of it made later, or loaded from a file, is a plain model again.

    Returns a deep copy of ``model``, or with ``inplace`` the model itself. Raises UsageError for another dtype,
    or for something that is no module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError.of("model", f"of type {type(model).__name__}", "must be a torch.nn.Module")
    if dtype not in (None, *DTYPES):
        raise UsageError.of("dtype", dtype, (*DTYPES, None))
    target = model if inplace else copy.deepcopy(model)
    kind = type(target).__name__
    leaf_tier.open_slots()
    options = Options(dtype or torch.float32, graph=graph)
    if slot.is_graph(target):
        slot.notice(target, names.of(target), options)
        log.note(kind, graph, "it has no layers of Python, only a graph")
        return target
    if graph:
        slot.cover_copies_of(target, options)
    pieces = [leaf_tier.adopt(module, f"{kind}.{name}", options) for name, module in target.named_modules()]
    found = sum(piece is not None for piece in pieces)
    tier.notice(target, kind, options, leaf_tier.piece_of)
    log.note(kind, found > 0, f"{found} modules are looked at when they are first called")
    return target
