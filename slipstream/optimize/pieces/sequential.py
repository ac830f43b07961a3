# SPDX-License-Identifier: Apache-2.0
"""nn.Sequential: weight layer, batch norm and activation in a row become one fused piece.

The row is known here without any tracing. A member that has hooks, trains, or was replaced is called the way
`nn.Sequential` calls it, and so is every member that belongs to no row.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from torch import nn

from slipstream.optimize import gates, names
from slipstream.optimize.options import Options
from slipstream.optimize.pieces.convolution import ConvolutionPiece
from slipstream.optimize.pieces.followers import Followers, fusable
from slipstream.optimize.pieces.linear import LinearPiece
from slipstream.optimize.pieces.piece import PATIENCE, Piece

NORM_AFTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
}
"""Weight layer → the norm whose channels are that layer's outputs. Never Linear with the 2d or 3d norm."""


@dataclass(frozen=True)
class Row:
    """How many consecutive members there are, and the piece that answers for them, if one does."""

    length: int
    piece: Piece | None

    def __call__(self, members: list[Any], x: Any) -> Any:
        first: Any = members[0]
        if (
            self.piece is not None
            and id(self.piece.module()) == id(first)
            and gates.tensor_is_plain(x)
            and all(not member.training and gates.may_be_passed_over(member) for member in members)
        ):
            y = self.piece.answer(first, x)
            if y is not None:
                return y
        for member in members:
            x = member(x)
        return x


class SequentialPiece:
    """Answers for a Sequential by its rows. The members are asked of the module on each call, not kept."""

    def __init__(self, module: nn.Module, name: str, options: Options) -> None:
        self.module = weakref.ref(module)
        self.name = name
        self.options = options
        self.arranged_for: list[int] = []
        self.rows: list[Row] = []
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module()
        assert module is not None  # it is being called
        if len(args) == 1 and not kwargs and gates.module_is_plain(module):
            x = args[0]
            if gates.tensor_is_plain(x) and gates.call_is_plain():
                members: list[Any] = list(module._modules.values())
                numbers = [id(member) for member in members]
                if numbers != self.arranged_for:
                    self._arrange(module._modules)
                    self.arranged_for = numbers
                if self.rows and self._is_worth_it():
                    return self._through(members, x)
                self._leave(module)
        return module._call_impl(*args, **kwargs)

    @staticmethod
    def _leave(module: nn.Module) -> None:
        """Nothing to fuse: the members answer for themselves. What watches the whole for a graph goes on without this piece."""
        watching = module.__dict__.get("_compiled_call_impl")
        if watching is None:
            module.__dict__["_compiled_call_impl"] = None
        else:
            watching.inner = None

    def _is_worth_it(self) -> bool:
        """Looked at now and then: whether a fused row has won, or may yet."""
        self.calls += 1
        return self.calls % PATIENCE > 0 or not all(
            row.piece is None or row.piece.is_hopeless() for row in self.rows
        )

    def _through(self, members: list[Any], x: Any) -> Any:
        start = 0
        for row in self.rows:
            stop = start + row.length
            x = row(members[start:stop], x)
            start = stop
        return x

    def _arrange(self, modules: dict[str, Any]) -> None:
        """Find the rows; none at all if no two members go together."""
        paths, members = list(modules), list(modules.values())
        rows: list[Row] = []
        index = 0
        while index < len(members):
            row = find_row(members[index : index + 3], f"{self.name}.{paths[index]}", self.options)
            rows.append(row)
            index += row.length
        self.rows = rows if any(row.piece is not None for row in rows) else []


def find_row(members: list[Any], name: str, options: Options) -> Row:
    """The longest row at the head of up to three members: weight layer, then norm, then activation."""
    first, *others = members
    if type(first) not in NORM_AFTER or not names.are_wanted(name):
        return Row(1, None)
    norm = activation = None
    if others and _is_norm_of(first, others[0]):
        norm = others.pop(0)
    if others and _is_activation_for(first, others[0]):
        activation = others[0]
    followers = tuple(member for member in (norm, activation) if member is not None)
    if not followers:
        return Row(1, None)
    make: Any = LinearPiece if type(first) is nn.Linear else ConvolutionPiece
    piece = make(first, name, options, Followers(norm, activation))
    piece.shares_module = True  # the layer also has a piece of its own, for when it is called by itself
    return Row(1 + len(followers), piece)


def may_go_on(first: nn.Module, member: nn.Module) -> bool:
    """Whether a row that begins with the first of these may have the other in it."""
    return type(first) in NORM_AFTER and (_is_norm_of(first, member) or _is_activation_for(first, member))


def _is_norm_of(layer: Any, member: Any) -> bool:
    """Whether its channels are the layer's outputs."""
    if type(member) is not NORM_AFTER[type(layer)]:
        return False
    channels = layer.out_features if type(layer) is nn.Linear else layer.out_channels
    return bool(member.num_features == channels)


def _is_activation_for(layer: Any, member: Any) -> bool:
    found = fusable(member)
    return found is not None and (found.post_op is not None or type(layer) is not nn.Linear)
