# SPDX-License-Identifier: Apache-2.0
"""Lets a block of operations work on rows in the order that one of them needs, instead of moving them there and back.

Attention in windows (Swin) cuts an image into windows, shifts it before, and undoes both, each a pass over memory; then it adds
the result to the image. Norms, linears, activations and sums do not care for the order of rows: here the image comes into the
windows' order once, the sum is made in that order, where it is a linear's residual, and what follows goes on in it. Between two
blocks one gather leads from the one order to the other.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.fuse import activation_of
from slipstream.optimize.graph.makers.replacing import are_given, called, terms_of
from slipstream.optimize.graph.nodes import arguments, name_of, tensor
from slipstream.optimize.graph.rows.gather import RowGather
from slipstream.optimize.graph.rows.moves import Rows, is_order_of_all, rows_of

FEWEST_COLUMNS = 32
"""Shorter rows are moved faster by strides than by an index."""

_NORMS = ("layer_norm", "rms_norm")


@dataclass(frozen=True)
class Ordered:
    """Row r of a tensor is row ``index[r]`` of ``base``."""

    base: fx.Node
    index: torch.Tensor

    def has_all(self) -> bool:
        """Whether each row of ``base`` is there just once."""
        made = tensor(self.base)
        assert made is not None
        return len(self.index) * made.shape[-1] == made.numel() and is_order_of_all(self.index)


def keep_order(graph: fx.Graph) -> int:
    """Rewrite in place, before operators are made; returns how many sums are made in another order now."""
    orders = _Orders(graph)
    for node in list(graph.nodes):
        if name_of(node) == "add":
            orders.sum(node)
        elif _is_row_wise(node):
            orders.row_wise(node)
    orders.give_back()
    graph.eliminate_dead_code()
    return orders.sums


def _is_row_wise(node: fx.Node) -> bool:
    """Whether it makes each row of the result out of the same row of its first argument alone."""
    if not node.args or not isinstance(node.args[0], fx.Node) or tensor(node) is None:
        return False
    given = arguments(node) or {}
    if name_of(node) in _NORMS:
        return len(given.get("normalized_shape", ())) == 1 and are_given(given.get("weight"), given.get("bias"))
    if name_of(node) == "linear":
        return are_given(given.get("weight"), given.get("bias"))
    return activation_of(node) is not None


class _Orders:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.sums = 0
        self.carried: dict[fx.Node, Ordered] = {}  # what is there in another order, by the node that it stands for
        self.gathered: dict[tuple[fx.Node, bytes], fx.Node] = {}
        self.moved: dict[fx.Node, fx.Node] = {}
        self.rows = functools.cache(rows_of)  # moves are run once; what they read is not changed here before the end

    def sum(self, node: fx.Node) -> None:
        """``x + moved(y)``, y's rows all being there once: in y's order, with x moved the other way."""
        terms = terms_of(node)
        if terms is None:
            return
        first, second = map(self._ordered, terms)
        if first is not None and second is not None and torch.equal(first.index, second.index):
            if first.has_all() and second.has_all():
                self._sum_of(node, first, first.base, self._shaped(second.base, first.base, node))
        elif any(_is_row_wise(user) for user in node.users):
            for x, there, y, here in ((terms[0], first, terms[1], second), (terms[1], second, terms[0], first)):
                if here is not None and self._is_moved(y) and len(y.users) == 1 and here.has_all():
                    self._sum_in(node, here, x, there)
                    return

    def _sum_in(self, node: fx.Node, here: Ordered, x: fx.Node, there: Ordered | None) -> None:
        """The sum in the order that one term is there in; ``x`` is the other."""
        back = torch.empty_like(here.index)
        back[here.index.long()] = torch.arange(len(back), dtype=back.dtype)
        base, index = (x, back) if there is None else (there.base, there.index[back.long()])
        self._sum_of(node, here, self._shaped(self._gather(base, index, node), here.base, node), here.base)

    def row_wise(self, node: fx.Node) -> None:
        """In the order of what it reads, or, where that was moved, on what one gather makes of it."""
        source: Any = node.args[0]
        found = self._ordered(source)
        if found is None:
            return
        if self._is_moved(source):
            moved = self._move(source, found, node)
            if moved is not None:
                node.replace_input_with(source, moved)
        else:
            self.carried[node] = Ordered(self._copy(node, found.base, node), found.index)

    def give_back(self) -> None:
        """What is read by others is put in its own order again."""
        for node, there in self.carried.items():
            readers = [user for user in node.users if user not in self.carried]
            if readers:
                own = self._shaped(self._gather(there.base, there.index, node), node, node)
                for user in readers:
                    user.replace_input_with(node, own)

    def _ordered(self, node: fx.Node) -> Ordered | None:
        """Where its rows are, if not in a tensor that is there in just their order, or that torch makes without a copy."""
        rows = self.rows(node)
        source = None if rows is None else tensor(rows.source)
        if rows is None or tensor(node) is None or source is None or not source.dim() or source.shape[-1] < FEWEST_COLUMNS:
            return None
        there = self.carried.get(rows.source)
        if there is not None:
            return there if rows.index is None else Ordered(there.base, there.index[rows.index.long()])
        if not rows.copies or rows.index is None:
            return None
        return Ordered(rows.source, rows.index)

    def _is_moved(self, node: fx.Node) -> bool:
        """Whether there is more than another shape between it and what it is made of, or rows were put together."""
        rows = self.rows(node)
        assert rows is not None
        return rows.index is not None or tensor(node).shape[-1] != tensor(rows.source).shape[-1]  # type: ignore[union-attr]

    def _sum_of(self, node: fx.Node, order: Ordered, first: fx.Node, second: fx.Node) -> None:
        with self.graph.inserting_before(node):
            made = self.graph.call_function(torch.add, (first, second))
        made.meta = _like(node, tensor(order.base).shape)  # type: ignore[union-attr]
        self.carried[node] = Ordered(made, order.index)
        self.sums += 1

    def _move(self, node: fx.Node, found: Ordered, reader: fx.Node) -> fx.Node | None:
        """The moved tensor by one gather; below a norm that nobody else reads, so that what others gather there is shared.

        None where nothing would be gained: it is moved once, out of its own order.
        """
        if node in self.moved:
            return self.moved[node]
        rows = self.rows(node)
        assert rows is not None
        norm = rows.source
        if name_of(norm) in _NORMS and _is_row_wise(norm) and _reads_alone(rows):
            below = self._ordered(norm.args[0]) if norm in self.carried else None  # type: ignore[arg-type]
            base = norm.args[0] if below is None else below.base
            made = self._copy(norm, self._gather(base, found.index, reader), reader)
        elif norm in self.carried:
            made = self._gather(found.base, found.index, reader)
        else:
            return None
        self.moved[node] = self._shaped(made, node, reader)
        return self.moved[node]

    def _gather(self, base: Any, index: torch.Tensor, reader: fx.Node) -> fx.Node:
        """Its rows in another order, made as early as can be, so that later readers find it."""
        made = tensor(base)
        assert made is not None
        if len(index) * made.shape[-1] == made.numel() and is_order_of_all(index, kept=True):
            return base  # type: ignore[no-any-return]
        key = base, index.numpy().tobytes()
        if key not in self.gathered:
            early = base.op != "placeholder"
            with self.graph.inserting_after(base) if early else self.graph.inserting_before(reader):
                gather = self.graph.call_function(RowGather(index, made.dtype), (base,))
            gather.meta = _like(base, (len(index), made.shape[-1]))
            if not early:
                return gather
            self.gathered[key] = gather
        return self.gathered[key]

    def _shaped(self, node: fx.Node, like: fx.Node, reader: fx.Node) -> fx.Node:
        have, want = tensor(node), tensor(like)
        assert have is not None
        assert want is not None
        if have.shape == want.shape:
            return node
        with self.graph.inserting_before(reader):
            return called(self.graph, "reshape", node, tuple(want.shape))

    def _copy(self, node: fx.Node, source: fx.Node, reader: fx.Node) -> fx.Node:
        """The same operation on another source."""
        before = node.args[0]
        with self.graph.inserting_before(reader):
            made = self.graph.node_copy(node, lambda above: source if above is before else above)
        made.meta = _like(node, (*tensor(source).shape[:-1], tensor(node).shape[-1]))  # type: ignore[union-attr]
        return made


def _like(node: fx.Node, shape: Any) -> dict[str, Any]:
    """What is known of a node, for a tensor of another shape."""
    made = tensor(node)
    assert made is not None
    return {**node.meta, "example_value": made.new_empty(tuple(shape))}


def _reads_alone(rows: Rows) -> bool:
    """Whether nobody but the moves reads what they move, on the way."""
    inside = {rows.source, *rows.between[:-1]}
    return all(user in rows.between for node in inside for user in node.users)
