# SPDX-License-Identifier: Apache-2.0
"""nn.Linear on packed weights: our kernel, or torch's own prepacked bfloat16 one without the extension."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from slipstream.kernels import linear as kernel
from slipstream.kernels import native
from slipstream.kernels.linear import asked_precision
from slipstream.optimize import guards
from slipstream.optimize.options import Options
from slipstream.optimize.pieces.followers import Followers
from slipstream.optimize.pieces.piece import Tensors
from slipstream.optimize.pieces.weight_layer import PrecisionPiece, WeightLayerPiece
from slipstream.runtime import isa


def onednn_has_bfloat16() -> bool:
    """Whether torch's own oneDNN multiplies bfloat16 on this machine, and not by emulation.

    With AVX-512 alone it converts at every product, which takes four to five times as long as float32 (measured).
    """
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if native.available():
        return native.active_level() not in ("baseline", *native.WITHOUT_BFLOAT16)
    return bool(isa.cpu_flags() & {"avx512_bf16", "amx_bf16", "avx_ne_convert"})


def onednn_product(dtype: torch.dtype) -> torch.dtype:
    """What oneDNN is to multiply in a graph for ``dtype``: float32 where it would emulate bfloat16, or refuse, as at AVX2."""
    return torch.float32 if dtype is torch.bfloat16 and not onednn_has_bfloat16() else dtype


class LinearPiece(PrecisionPiece, WeightLayerPiece):
    act = "packed linear"
    depth_axis = 1

    def __init__(
        self, module: nn.Linear, name: str, options: Options, followers: Followers | None = None
    ) -> None:
        super().__init__(module, name, options, followers)
        self.depth = module.in_features
        self.width = module.out_features

    def size_of(self, module: nn.Module, x: torch.Tensor) -> Hashable | None:
        if x.dim() == 0 or x.size(-1) != self.depth:
            return None
        if self.followers.norm is not None and x.dim() != 2:
            return None  # a BatchNorm1d behind a 3-D input normalizes the middle axis, not the features
        rows = x.numel() // self.depth if self.depth else 0
        return (x.dtype, rows.bit_length(), asked_precision()) if rows else None

    def plan(self, x: torch.Tensor, tensors: Tensors) -> torch.dtype | str:
        dtype = self.weight_dtype(x, tensors)
        if isinstance(dtype, str):
            return dtype
        dtype = self.hold(dtype, x.numel() // self.depth)
        weight = tensors[0]
        assert weight is not None
        if weight.dim() != 2 or weight.shape[self.depth_axis] != self.depth:
            return "the weight has another shape than its layer"
        if not native.available() and dtype == torch.float32:
            return f"float32 is left to torch: {native.reason()}"
        if not native.available() and not onednn_has_bfloat16():
            return f"no bfloat16 multiplication here: {native.reason()}"
        if self.would_be_a_copy(tensors, dtype):
            return "low memory: a float32 pack would be a second copy"
        return dtype

    def kind(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> Hashable:
        weight = tensors[0]
        assert weight is not None
        name = "linear" if self.depth_axis else "transposed linear"
        return (name, tuple(weight.shape), dtype, self.held.parts, self.followers.norm is not None)

    def make(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> tuple[Any, int]:
        weight, bias, *rest = tensors
        assert weight is not None
        rows = weight.detach() if self.depth_axis else weight.detach().t()
        weight, shift = self.followers.fold(rows, bias, tuple(rest))
        if native.available():
            packed = kernel.pack(weight, dtype=dtype, parts=self.parts(dtype))
            return (packed, shift), packed.data.numel() * packed.data.element_size()
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
        return (reordered, shift), weight.numel() * dtype.itemsize

    def run(self, module: nn.Module, x: torch.Tensor, content: Any, tensors: Tensors) -> torch.Tensor:
        packed, shift = content
        bias = tensors[1] if self.followers.norm is None else shift
        form = self.followers.form
        if isinstance(packed, kernel.PackedLinear):
            out = self.out_dtype(x.dtype)
            return kernel.linear(x, packed, bias, post_op=form.post_op or "none", out_dtype=out)
        x16 = x.to(torch.bfloat16)
        y = torch.ops.mkldnn._linear_pointwise(
            x16, packed, bias, form.attribute, list(form.scalars), form.algorithm
        )
        return y.to(self.out_dtype(x.dtype))  # type: ignore[no-any-return]

    def sample(self, module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        row_macs = max(1, self.depth * self.width)
        rows = x.numel() // self.depth
        wanted = max(1, int(guards.TRIAL_MACS // row_macs))
        part = x if rows <= wanted else x.reshape(rows, self.depth)[:wanted]
        return part.detach(), float(rows * row_macs)

    def replay(self, module: nn.Module, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        weight, bias, *rest = tensors
        assert weight is not None
        return self.followers.replay(nn.functional.linear(x, weight, bias), tuple(rest))


class TransposedLinearPiece(LinearPiece):
    """transformers' `Conv1D`, a linear layer with its weight as [in, out]: GPT-2 and its relatives are made of it."""

    act = "packed linear (Conv1D)"
    depth_axis = 0

    def __init__(self, module: Any, name: str, options: Options, followers: Followers | None = None) -> None:
        WeightLayerPiece.__init__(self, module, name, options, followers)
        self.depth, self.width = module.weight.shape

    def size_of(self, module: nn.Module, x: torch.Tensor) -> Hashable | None:
        return super().size_of(module, x) if x.is_contiguous() else None  # the original's `view` may refuse it

    def replay(self, module: nn.Module, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        weight, bias = tensors
        assert weight is not None and bias is not None
        return torch.addmm(bias, x.reshape(-1, self.depth), weight).reshape(*x.shape[:-1], self.width)
