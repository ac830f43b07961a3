# SPDX-License-Identifier: Apache-2.0
"""From a captured graph to one of our operators: the passes in order."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.autocast import remember_regions
from slipstream.optimize.graph.capturing.refusals import CaptureRefused, NothingToGain
from slipstream.optimize.graph.composites.einsum import spell_einsums
from slipstream.optimize.graph.composites.encoder_layer import spell_encoder_layers
from slipstream.optimize.graph.composites.multihead import spell_multihead
from slipstream.optimize.graph.composites.transposed_linear import spell_transposed_linears
from slipstream.optimize.graph.experts.fuse_experts import fuse_experts
from slipstream.optimize.graph.features.fuse_features import fuse_features
from slipstream.optimize.graph.fuse import fuse
from slipstream.optimize.graph.join import join
from slipstream.optimize.graph.makers.aten import speak_torch
from slipstream.optimize.graph.makers.constants import fold_constants
from slipstream.optimize.graph.makers.convolution_nd import fuse_convolutions
from slipstream.optimize.graph.makers.gates import read_gates
from slipstream.optimize.graph.makers.group_norm import fuse_group_norms
from slipstream.optimize.graph.makers.one_pass import fuse_channel_gates, fuse_inverted_residuals
from slipstream.optimize.graph.makers.share import share
from slipstream.optimize.graph.makers.written_out import read_written_out
from slipstream.optimize.graph.makers.written_out_attention import read_attention
from slipstream.optimize.graph.mutation import make_pure
from slipstream.optimize.graph.nodes import tensor
from slipstream.optimize.graph.normed.fuse_norms import fuse_norms
from slipstream.optimize.graph.normed.normed_linear import NormedLinear
from slipstream.optimize.graph.operators.attention import Attention
from slipstream.optimize.graph.operators.constant import Constant
from slipstream.optimize.graph.operators.operator import PackedOperator, WeightOperator
from slipstream.optimize.graph.precision import keep_bfloat16
from slipstream.optimize.graph.results import restore
from slipstream.optimize.graph.rows.order import keep_order
from slipstream.optimize.graph.simplify import simplify
from slipstream.optimize.options import Options


@dataclass(frozen=True)
class Lowered:
    """``reference`` is the script's own arithmetic without in-place operations, ``fast`` ours; both are pure.

    ``product`` is the least precise dtype that is multiplied in or results are made in, ``regions`` whether there is autocast
    within.
    """

    reference: fx.GraphModule
    fast: fx.GraphModule
    operators: int
    product: torch.dtype = torch.float32
    regions: bool = False


def lower(captured: fx.GraphModule, inputs: list[Any], options: Options, own: Collection[int] = ()) -> Lowered:
    """Lower a graph and pack its weights; ``own`` are the numbers of those inputs that are parameters or buffers of the model.

    Raises CaptureRefused where it is impure, its sizes depend on values, or nothing in it is ours; with ``options.low_memory``
    also where it would need packs that the layers do not have.
    """
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    try:
        return _lower(captured, inputs, options, own)
    except GuardOnDataDependentSymNode:
        raise CaptureRefused("sizes in it depend on values") from None


def _lower(captured: fx.GraphModule, inputs: list[Any], options: Options, own: Collection[int]) -> Lowered:
    dtype = options.dtype
    pure = _copy(captured.graph)
    speak_torch(pure)
    make_pure(pure)
    regions = remember_regions(pure)
    reference = fx.GraphModule(captured, pure)
    graph = _copy(pure)
    simplify(graph)
    spell_multihead(graph)
    spell_encoder_layers(graph)
    spell_transposed_linears(graph, _placeholders(graph, own))
    spell_einsums(graph, _placeholders(graph, own))
    folds = not regions and not options.low_memory
    if folds:
        fold_constants(graph, _placeholders(graph, own))
    read_gates(graph)
    read_written_out(graph)
    if not regions:
        keep_order(graph)
    operators = read_attention(graph, dtype) + fuse_convolutions(graph, dtype) + fuse_group_norms(graph) + fuse(graph, dtype)
    operators += fuse_experts(graph, dtype)
    operators += fuse_features(graph, torch.float32 if options.low_memory else dtype)
    if not operators:
        raise NothingToGain("no operation in it is faster here")
    if not regions:
        share(graph)
    low = keep_bfloat16(graph) if dtype is torch.bfloat16 else set()
    operators -= join(graph) + fuse_inverted_residuals(graph)
    fuse_channel_gates(graph)
    if folds:
        fold_constants(graph, _placeholders(graph, own))  # casts and tables that have come
    restore(graph, low)
    operators -= fuse_norms(graph)
    graph.lint()
    fast = fx.GraphModule(captured, graph)
    _pack(graph, inputs, only_shared=options.low_memory)
    return Lowered(reference, fast, operators, _coarsest(graph, kept=bool(low)), regions)


def _coarsest(graph: fx.Graph, kept: bool) -> torch.dtype:
    """bfloat16 if anything is multiplied in it, kept by us, or made by the script itself, in it; otherwise float32."""
    products = WeightOperator | NormedLinear | Attention
    multiplied = any(node.target.product is torch.bfloat16 for node in graph.nodes if isinstance(node.target, products))
    made = any(node.op not in ("placeholder", "get_attr") and _is_bfloat16(node) for node in graph.nodes)
    return torch.bfloat16 if kept or multiplied or made else torch.float32


def _is_bfloat16(node: fx.Node) -> bool:
    made = tensor(node)
    return made is not None and made.dtype is torch.bfloat16


def _copy(graph: fx.Graph) -> fx.Graph:
    new = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    result = new.graph_copy(graph, values)
    new.output(result)
    return new


def _placeholders(graph: fx.Graph, numbers: Collection[int]) -> set[fx.Node]:
    given = [node for node in graph.nodes if node.op == "placeholder"]
    return {given[number] for number in numbers}


def _pack(graph: fx.Graph, inputs: list[Any], *, only_shared: bool) -> None:
    """Pack now, off the way of any call; operators that must not pack do without."""
    given = dict(zip((node for node in graph.nodes if node.op == "placeholder"), inputs, strict=True))
    for node in graph.nodes:
        if isinstance(node.target, PackedOperator):
            weights = tuple(given.get(weight) for weight in node.args[node.target.first_weight :])
            if only_shared and not node.target.is_shared(weights):
                raise CaptureRefused(f"low memory: the pack of its {node.target.kind} would be a second copy")
            content = node.target.content(weights)
            if isinstance(node.target, Constant):
                given[node] = node.target(*weights) if content is None else content[0]
