# SPDX-License-Identifier: Apache-2.0
"""Reads what reshapes, permutations, rolls, cuts and the like do, together, to the rows of one tensor.

They are not interpreted one by one: they are run, on the numbers of the elements. Where those come out row by row, the moves
are one order of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.nodes import arguments, name_of, tensor

MOST_ELEMENTS = 1 << 24
"""Larger tensors are left alone: their numbers would take 64 MB while they are read."""

_MOVES = frozenset(
    {
        "reshape", "view", "transpose", "permute", "flatten", "unflatten", "squeeze", "unsqueeze", "getitem", "narrow",
        "select", "movedim", "swapaxes", "contiguous", "clone", "roll", "flip", "pad", "cat", "concat",
    }
)  # fmt: skip


_OUR_LAYOUT = frozenset({"scaled_dot_product_attention"})
"""What gives results in a layout of its own, in which other moves are views than in the captured one."""


@dataclass(frozen=True)
class Rows:
    """Row r of a tensor is row ``index[r]`` of ``source``, a row being what ``source`` has along its last axis.

    ``index`` is int32, or None where rows stay in their order; ``copies`` says whether torch moves memory on the way.
    """

    source: fx.Node
    index: torch.Tensor | None
    copies: bool
    between: tuple[fx.Node, ...]


def rows_of(node: fx.Node) -> Rows | None:
    """Where the rows of a tensor come from; from itself where no move made it. None where rows are broken up, or not known."""
    between = _moves_above(node)
    if between is None:
        return None
    if not between:
        return Rows(node, None, False, ())
    source = next(above for move in between for above in move.all_input_nodes if above not in between)
    whole = tensor(source)
    if whole is None or name_of(source) in _OUR_LAYOUT or not _may_be_read(whole):
        return None
    numbers = torch.arange(whole.numel(), dtype=torch.int32)
    made = _run(between, source, numbers.view(whole.shape))
    found = None if made is None else _by_rows(made, whole.shape[-1])
    if made is None or found is None:
        return None
    stays = len(found) * whole.shape[-1] == len(numbers) and is_order_of_all(found, kept=True)
    copies = made.untyped_storage().data_ptr() != numbers.untyped_storage().data_ptr()
    return Rows(source, None if stays else found, copies, between)


def is_order_of_all(index: torch.Tensor, *, kept: bool = False) -> bool:
    """Whether each row is there just once; ``kept``: and in its place."""
    rows = index if kept else index.sort().values
    return bool(torch.equal(rows, torch.arange(len(index), dtype=index.dtype)))


def _may_be_read(made: torch.Tensor) -> bool:
    known = made.is_floating_point() and made.dim() > 0 and all(isinstance(length, int) for length in made.shape)
    return known and 0 < made.numel() <= MOST_ELEMENTS


def _moves_above(node: fx.Node) -> tuple[fx.Node, ...] | None:
    """The moves that make a tensor of one source, in order; None where there are several sources."""
    found: dict[fx.Node, None] = {}
    sources: set[fx.Node] = set()

    def visit(above: fx.Node) -> None:
        if above in found or above in sources:
            return
        if _is_move(above):
            for further in above.all_input_nodes:
                visit(further)
            found[above] = None
        else:
            sources.add(above)

    visit(node)
    return tuple(found) if len(sources) == 1 else None


def _is_move(node: fx.Node) -> bool:
    name = name_of(node)
    if name not in _MOVES or tensor(node) is None:
        return False
    if name == "pad":
        given = arguments(node)
        return given is not None and given.get("mode", "constant") == "constant" and not given.get("value")
    if name in ("cat", "concat"):
        return True
    return len(node.all_input_nodes) == 1 and tensor(node.args[0]) is not None  # nothing else that is not known before


def _run(between: tuple[fx.Node, ...], source: fx.Node, numbers: torch.Tensor) -> torch.Tensor | None:
    """What the moves make of the numbers; -1 where a pad put zeros."""
    made: dict[fx.Node, torch.Tensor] = {source: numbers}
    for move in between:
        args, kwargs = fx.map_arg((move.args, move.kwargs), made.__getitem__)
        function: Any = getattr(args[0], str(move.target)) if move.op == "call_method" else move.target
        if name_of(move) == "pad":
            given = arguments(move)
            assert given is not None
            made[move] = torch.nn.functional.pad(made[given["input"]], given["pad"], value=-1)
        elif move.op == "call_method":
            made[move] = function(*args[1:], **kwargs)
        else:
            made[move] = function(*args, **kwargs)
    result = made[between[-1]]
    expected = tensor(between[-1])
    return result if expected is not None and result.shape == expected.shape else None


def _by_rows(made: torch.Tensor, columns: int) -> torch.Tensor | None:
    """The rows' numbers, where elements come in whole rows of ``columns``."""
    if not columns or made.dim() < 1 or not made.numel() or math.prod(made.shape) % columns or made.shape[-1] % columns:
        return None
    rows = made.reshape(-1, columns)
    first = rows[:, 0]
    if bool((first < 0).any()) or bool((first % columns != 0).any()):
        return None
    steps = torch.arange(columns, dtype=made.dtype)
    return first.div(columns, rounding_mode="floor") if bool((rows - first[:, None] == steps).all()) else None
