# SPDX-License-Identifier: Apache-2.0
"""What linear layers and convolutions have in common as pieces: a weight, a bias, and followers to fold in or to fuse."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import nn

from slipstream.decision import log
from slipstream.kernels.attention import parts_for
from slipstream.kernels.linear import PARTS, Held, asked_precision, best_held, in_words
from slipstream.kernels.operands import DTYPES
from slipstream.optimize import guards, one_copy
from slipstream.optimize.options import Options
from slipstream.optimize.pieces.followers import Followers
from slipstream.optimize.pieces.piece import Piece, Tensors


class PrecisionPiece(Piece):
    """Matrix products that obey torch's float32 matmul precision, which has to be part of what `size_of` and `kind` say."""

    held = Held(torch.float32)
    precision: str | None = None
    """That for which float32 weights are held so; None where the dtype was chosen otherwise."""

    def hold(self, dtype: torch.dtype, rows: int) -> torch.dtype:
        """For `plan`: choose how to hold weights that would be packed in ``dtype``; returns the dtype to multiply in.

        A weight that is in parts already stays so for fewer rows.
        """
        self.precision = asked_precision() if dtype == torch.float32 else None
        if self.precision is None:
            self.held = Held(dtype)
            return dtype
        held = best_held(self.precision, rows)
        if self.held.parts == PARTS.get(self.precision):
            held = self.held
        if self.precision == "medium" or held.parts > 1:
            taken = held != Held(torch.float32)
            log.note(f"float32 matmul precision {self.precision}", taken, in_words(self.precision, held))
        self.held = held
        return held.dtype

    def parts(self, dtype: torch.dtype) -> int:
        """For `make`."""
        return self.held.parts if dtype == torch.float32 else 1

    def parts_of_attention(self, dtype: torch.dtype, query: torch.Tensor, key: torch.Tensor) -> int:
        """For attention between weights that are held so, where it has rows enough."""
        split = self.precision is not None and self.parts(dtype) > 1
        return parts_for(self.precision or "highest", query, key) if split else 1

    def limit(self, dtype: torch.dtype) -> float:
        if dtype == torch.float32 and self.precision == "high":
            return guards.HIGH_LIMIT
        return super().limit(dtype)

    def how(self, dtype: torch.dtype) -> str:
        if self.held.parts > 1:
            return f"float32 weights in {self.held.parts} parts of bfloat16, packed once"
        if self.precision == "medium" and dtype == torch.bfloat16:
            return "bfloat16 weights, packed once: float32 matmul precision is medium"
        return super().how(dtype)


class WeightLayerPiece(Piece):
    """Packs depend on the weight alone, and with a norm behind it on all that the norm folds into the weight."""

    has_replay = True

    def __init__(self, module: nn.Module, name: str, options: Options, followers: Followers | None = None) -> None:
        super().__init__(module, name, options)
        self.followers = followers or Followers()
        self.act = f"{type(self).act}{self.followers.words()}{', in autocast' if options.autocast else ''}"

    def again(self, module: nn.Module, options: Options) -> Piece:
        return type(self)(module, self.name, options, self.followers)

    def tensors(self, module: nn.Module) -> Tensors | None:
        parameters = module.__dict__["_parameters"]
        weight = parameters.get("weight")
        if weight is None or not self.followers.still_hold():
            return None
        return (weight, parameters.get("bias"), *self.followers.tensors())

    def weight_dtype(self, x: torch.Tensor, tensors: Tensors) -> torch.dtype | str:
        """The dtype to multiply in as far as the dtypes of input and weights decide, or why they do not fit."""
        weight = tensors[0]
        assert weight is not None
        given = {tensor.dtype for tensor in (x, *tensors) if tensor is not None}
        if not given <= set(DTYPES):
            return f"no kernel for {weight.dtype}" if len(given) == 1 else "input, weight and bias differ in dtype"
        if len(given) > 1 and not self.options.autocast:
            return "input, weight and bias differ in dtype"
        return torch.bfloat16 if weight.dtype == torch.bfloat16 else self.options.dtype

    def would_be_a_copy(self, tensors: Tensors, dtype: torch.dtype) -> bool:
        """Whether a pack in this dtype is what ``low_memory`` forbids: a second float32 copy that stays."""
        weight = tensors[0]
        assert weight is not None
        if not self.options.low_memory or not dtype == weight.dtype == torch.float32:
            return False
        return one_copy.obstacle(weight) is not None

    def details(self, tensors: Tensors) -> Hashable:
        form = self.followers.form
        return (form.attribute, form.algorithm)

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors if self.followers.norm is not None else tensors[:1]

    def variant(self) -> Hashable:
        return None if self.followers.norm is None else id(self.followers.norm)

    def post_name(self) -> str:
        return self.followers.words()

    def original(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return self.followers.apply(module.forward(x))
