# SPDX-License-Identifier: Apache-2.0
"""Finds features that are looked up or picked, then stacked or concatenated: they are written to their places at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from slipstream.kernels.concatenate import Kind
from slipstream.kernels.operands import DTYPES
from slipstream.optimize.graph.features.concatenation import Concatenation, column_numbers
from slipstream.optimize.graph.makers.replacing import are_given, dtype_of, product_for
from slipstream.optimize.graph.nodes import arguments, name_of, only_user, tensor
from slipstream.optimize.graph.operators.operator import Operator

_CONCATENATIONS = ("cat", "concat", "concatenate")
_MODES = {"sum": Kind.BAG_SUM, "mean": Kind.BAG_MEAN}
_BAG_DEFAULTS = {"max_norm": None, "per_sample_weights": None, "include_last_offset": False, "padding_idx": None}


@dataclass(frozen=True)
class _Part:
    """What `Concatenation` takes for it: values, a table where it is looked up, and what says which are picked."""

    kind: Kind
    values: tuple[fx.Node, ...]
    table: fx.Node | None = None
    indices: tuple[fx.Node, ...] = ()


def fuse_features(graph: fx.Graph, product: torch.dtype) -> int:
    """Rewrite in place; ``product`` is what float32 tables are held in where the result is bfloat16. Returns how many."""
    made = 0
    for node in list(graph.nodes):
        if name_of(node) in (*_CONCATENATIONS, "stack") and not isinstance(node.target, Operator):
            made += _fuse(graph, node, product)
    for node in list(graph.nodes):
        part = _picked(node) if tensor(node) is not None else None
        if part is not None:
            _replace(graph, node, [part], product, stacked=False)
            made += 1
    graph.eliminate_dead_code()
    return made


def _fuse(graph: fx.Graph, node: fx.Node, product: torch.dtype) -> int:
    sources, stacked = _sources(node)
    parts = [_part_of(source, node) for source in sources]
    found = [part for part in parts if part is not None]
    if len(found) < len(sources) or all(part.kind is Kind.ROWS for part in found):
        return 0
    _replace(graph, node, found, product, stacked=stacked)
    return 1


def _sources(node: fx.Node) -> tuple[Sequence[fx.Node], bool]:
    """What is put side by side along the last axis, and whether each has an axis of its own before that; () for all else."""
    made, given = tensor(node), arguments(node)
    if made is None or given is None or set(given) - {"tensors", "dim", "axis"}:
        return (), False
    stacked, sources = name_of(node) == "stack", given["tensors"]
    axis = given.get("dim", given.get("axis", 0))
    wanted = made.dim() - (2 if stacked else 1)
    if not isinstance(axis, int) or axis % made.dim() != wanted or not isinstance(sources, (tuple, list)):
        return (), False
    tensors = [tensor(source) for source in sources]
    fit = all(t is not None and t.dtype == made.dtype and t.dim() == made.dim() - stacked > 1 for t in tensors)
    return (sources, stacked) if fit and made.dtype in DTYPES and made.device.type == "cpu" else ((), False)


def _part_of(source: fx.Node, reader: fx.Node) -> _Part | None:
    """The source as what it is made of, where nobody else reads it, or as rows."""
    if only_user(source) is reader:
        part = _looked_up(source) or _picked(source)
        if part is not None:
            return part
    return _Part(Kind.ROWS, (source,))


def _looked_up(node: fx.Node) -> _Part | None:
    given = arguments(node) if name_of(node) in ("embedding", "embedding_bag") else None
    if given is None or given.get("max_norm") is not None or not are_given(given["weight"]):
        return None
    table, index = tensor(given["weight"]), tensor(given["input"])
    if table is None or index is None or table.dtype not in DTYPES or table.dim() != 2:
        return None
    if name_of(node) == "embedding":
        return _Part(Kind.EMBEDDING, (given["input"],), given["weight"])
    if any(given.get(name, default) != default for name, default in _BAG_DEFAULTS.items()):
        return None
    mode, offsets = _MODES.get(given.get("mode", "mean")), given.get("offsets")
    if mode is None or index.dim() != 1 or not isinstance(offsets, fx.Node) or tensor(offsets) is None:
        return None
    return _Part(mode, (given["input"], offsets), given["weight"])


def _picked(node: fx.Node) -> _Part | None:
    """``x[:, i]``, ``x[:, i, j]``, ...: for all axes but the first a tensor of numbers."""
    if name_of(node) != "getitem" or len(node.args) != 2 or not isinstance(node.args[1], tuple):
        return None
    source, (first, *indices) = node.args[0], node.args[1]
    x = tensor(source)
    if x is None or x.dtype not in DTYPES or first != slice(None) or not indices or x.dim() != 1 + len(indices):
        return None
    found = [tensor(index) for index in indices]
    if not all(t is not None and t.dim() == 1 and t.dtype in (torch.int64, torch.int32) for t in found):
        return None
    if not all(isinstance(size, int) for size in x.shape[1:]):
        return None
    return _Part(Kind.PICKED, (source,), indices=tuple(indices))  # type: ignore[arg-type]


def _replace(graph: fx.Graph, node: fx.Node, parts: list[_Part], product: torch.dtype, *, stacked: bool) -> None:
    operator = Concatenation(product_for(node, product), dtype_of(node), [part.kind for part in parts], stacked=stacked)
    with graph.inserting_before(node):
        values: list[Any] = []
        for part in parts:
            values += part.values
            if part.kind is Kind.PICKED:
                values.append(_numbers(graph, part))
        tables = [part.table for part in parts if part.table is not None]
        made = graph.call_function(operator, (*values, *tables))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _numbers(graph: fx.Graph, part: _Part) -> fx.Node:
    x, first = tensor(part.values[0]), tensor(part.indices[0])
    assert x is not None and first is not None
    made = graph.call_function(column_numbers, (tuple(x.shape[1:]), *part.indices))
    made.meta = {"example_value": first.new_empty(first.shape, dtype=torch.int32)}
    return made
