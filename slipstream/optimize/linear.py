# SPDX-License-Identifier: Apache-2.0
"""nn.Linear on packed weights: our kernel, or torch's own prepacked bfloat16 one without the extension."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from slipstream.kernels import linear as kernel
from slipstream.kernels import native
from slipstream.optimize import guards
from slipstream.optimize.options import Options
from slipstream.optimize.piece import Piece, Tensors

PLAIN_ACTIVATIONS = {
    "none": lambda y: y, "relu": functional.relu, "gelu_erf": functional.gelu, "silu": functional.silu, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
}  # fmt: skip
ONEDNN_NAMES = {
    "none": ("none", ""), "relu": ("relu", ""), "gelu_erf": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""), "tanh": ("tanh", ""), "sigmoid": ("sigmoid", ""),
}  # fmt: skip
"""Our post-op → (attribute, algorithm) of torch's oneDNN operators."""


def onednn_has_bfloat16() -> bool:
    """Whether torch's own oneDNN multiplies bfloat16 on this machine."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class LinearPiece(Piece):
    act = "packed linear"

    def __init__(self, module: nn.Linear, name: str, options: Options, post_op: str = "none") -> None:
        super().__init__(module, name, options)
        self.depth = module.in_features
        self.width = module.out_features
        self.post_op = post_op

    def tensors(self, module: nn.Module) -> Tensors | None:
        parameters = module.__dict__["_parameters"]
        weight = parameters.get("weight")
        return None if weight is None else (weight, parameters.get("bias"))

    def size_of(self, module: nn.Module, x: torch.Tensor) -> Hashable | None:
        if x.dim() == 0 or x.size(-1) != self.depth:
            return None
        rows = x.numel() // self.depth if self.depth else 0
        return (x.dtype, rows.bit_length()) if rows else None

    def plan(self, x: torch.Tensor, tensors: Tensors) -> torch.dtype | str:
        weight, bias = tensors
        assert weight is not None
        if x.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
            return "input, weight and bias differ in dtype"
        if weight.dtype not in (torch.float32, torch.bfloat16):
            return f"no kernel for {weight.dtype}"
        if weight.dim() != 2 or weight.shape[1] != self.depth:
            return "the weight has another shape than its layer"
        dtype = torch.bfloat16 if weight.dtype == torch.bfloat16 else self.options.dtype
        if not native.available() and dtype == torch.float32:
            return f"float32 is left to torch: {native.reason()}"
        if not native.available() and not onednn_has_bfloat16():
            return f"no bfloat16 multiplication here: {native.reason()}"
        if self.options.low_memory and dtype == weight.dtype == torch.float32:
            return "low memory: a float32 pack would be a second copy"
        return dtype

    def kind(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> Hashable:
        weight = tensors[0]
        assert weight is not None
        return ("linear", tuple(weight.shape), dtype)

    def post_name(self) -> str:
        return self.post_op

    def make(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> tuple[Any, int]:
        weight = tensors[0]
        assert weight is not None
        if native.available():
            packed = kernel.pack(weight.detach(), dtype=dtype)
            return packed, packed.data.numel() * packed.data.element_size()
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype))
        return reordered, weight.numel() * dtype.itemsize

    def run(self, module: nn.Module, x: torch.Tensor, content: Any, tensors: Tensors) -> torch.Tensor:
        if isinstance(content, kernel.PackedLinear):
            return kernel.linear(x, content, tensors[1], post_op=self.post_op)
        attribute, algorithm = ONEDNN_NAMES[self.post_op]
        x16 = x.to(torch.bfloat16)
        y = torch.ops.mkldnn._linear_pointwise(x16, content, tensors[1], attribute, [], algorithm)
        return y.to(x.dtype)  # type: ignore[no-any-return]

    def sample(self, module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        row_macs = max(1, self.depth * self.width)
        rows = x.numel() // self.depth
        wanted = max(1, int(guards.TRIAL_MACS // row_macs))
        part = x if rows <= wanted else x.reshape(rows, self.depth)[:wanted]
        return part.detach(), float(rows * row_macs)

    def original(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return PLAIN_ACTIVATIONS[self.post_op](module.forward(x))
