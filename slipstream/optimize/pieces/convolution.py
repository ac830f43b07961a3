# SPDX-License-Identifier: Apache-2.0
"""Convolutions, also transposed ones, on packed weights: our kernel's, or torch's oneDNN's.

Channels last inside, outside the strides that torch would give. A one-dimensional convolution runs as a
two-dimensional one of height one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from slipstream.kernels import convolution as first_kernel
from slipstream.kernels import native, transpose
from slipstream.kernels.channels_last import layer as last_kernel
from slipstream.optimize import guards
from slipstream.optimize.options import Options
from slipstream.optimize.pieces import layouts
from slipstream.optimize.pieces.followers import Followers
from slipstream.optimize.pieces.linear import onednn_has_bfloat16
from slipstream.optimize.pieces.piece import Tensors
from slipstream.optimize.pieces.weight_layer import WeightLayerPiece

_ops = torch.ops.mkldnn

LEAST_ROWS = 4
"""Of a result, to compare."""


class ConvolutionPiece(WeightLayerPiece):
    """nn.Conv1d, Conv2d, Conv3d and their transposes."""

    act = "prepacked convolution"
    margin = 1.05  # its scratch memory leaves less of the cache to its neighbours

    def __init__(
        self, module: nn.Module, name: str, options: Options, followers: Followers | None = None
    ) -> None:
        super().__init__(module, name, options, followers)
        conv: Any = module
        self.transposed: bool = conv.transposed
        self.rank = len(conv.kernel_size)
        self.settings = _settings(conv)
        self.in_channels: int = conv.in_channels
        self.numbers = _numbers(conv)

    def tensors(self, module: nn.Module) -> Tensors | None:
        return super().tensors(module) if _settings(module) == self.settings else None

    def size_of(self, module: nn.Module, x: torch.Tensor) -> Hashable | None:
        if x.dim() != self.rank + 2 or x.size(1) != self.in_channels or not x.numel():
            return None
        return x.dtype, self._comes_out_channels_last(x), x.numel().bit_length()

    def plan(self, x: torch.Tensor, tensors: Tensors) -> torch.dtype | str:
        dtype = self.weight_dtype(x, tensors)
        if isinstance(dtype, str):
            return dtype
        if isinstance(self.numbers, str):
            return self.numbers
        weight = tensors[0]
        assert weight is not None
        channels_last = self._comes_out_channels_last(weight)
        if dtype == torch.bfloat16 and not onednn_has_bfloat16() and self._our_kernel(weight, dtype, channels_last) is None:
            return "torch's oneDNN has no bfloat16 on this machine"
        if self.would_be_a_copy(tensors, dtype):
            return "low memory: a float32 pack would be a second copy"
        return dtype

    def kind(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> Hashable:
        weight = tensors[0]
        assert weight is not None
        norm = self.followers.norm
        return ("convolution", self.transposed, tuple(weight.shape), self.settings, dtype, norm is not None)

    def details(self, tensors: Tensors) -> Hashable:
        return (super().details(tensors), self._comes_out_channels_last(tensors[0]))

    def make(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> tuple[Any, int]:
        weight, bias, *rest = tensors
        assert weight is not None
        groups: Any = module.groups
        if self.transposed:
            weight, shift = self._fold_transposed(weight, bias, tuple(rest), groups)
        else:
            weight, shift = self.followers.fold(weight, bias, tuple(rest))
        channels_last = self._comes_out_channels_last(tensors[0])
        weight = weight.detach().to(dtype)
        if self.rank == 1:
            weight = weight.unsqueeze(2)
        size = weight.numel() * dtype.itemsize
        kernel = self._our_kernel(weight, dtype, channels_last)
        if kernel is not None:
            padding, stride, dilation = map(tuple, self.numbers)
            ours = kernel.pack(weight, dtype=dtype, stride=stride, padding=padding, dilation=dilation, groups=groups)
            return (ours, shift, channels_last, dtype), size
        if self.transposed:
            padding, output_padding, stride, dilation = self.numbers
            packed = _ops._reorder_convolution_transpose_weight(
                weight, padding, output_padding, stride, dilation, groups, None
            )
        else:
            padding, stride, dilation = self.numbers
            packed = _ops._reorder_convolution_weight(weight, padding, stride, dilation, groups, None)
        return (packed, shift, channels_last, dtype), size

    def _our_kernel(self, weight: torch.Tensor, dtype: torch.dtype, channels_last: bool) -> Any:
        """The module of our kernel where it is better than oneDNN's: in bfloat16, without tiles, which oneDNN's uses.

        Where dot products are fast, ours is for images with channels first; where bfloat16 is multiplied as float16, oneDNN's
        dot products take four times as long, and so does what it does where there are none.
        """
        if dtype != torch.bfloat16 or self.transposed or weight.dim() != 4 or self.followers.form.post_op is None:
            return None
        if native.active_level() in (*native.WITHOUT_BFLOAT16, native.FLOAT16):
            return last_kernel
        few = weight.shape[2] * weight.shape[3] <= first_kernel.MOST_TAPS
        return first_kernel if few and not channels_last and native.active_level() == "avx512_bf16" else None

    def _fold_transposed(
        self, weight: torch.Tensor, bias: torch.Tensor | None, rest: Tensors, groups: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A transposed weight is [in, out / groups, …]: fold group by group with the outputs in front."""
        if self.followers.norm is None:
            return weight, None
        grouped = weight.unflatten(0, (groups, -1)).transpose(1, 2)  # [groups, out / groups, in / groups, …]
        folded, shift = self.followers.fold(grouped.flatten(0, 1), bias, rest)
        return folded.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1), shift

    def run(self, module: nn.Module, x: torch.Tensor, content: Any, tensors: Tensors) -> torch.Tensor:
        packed, shift, weight_is_channels_last, dtype = content
        bias = tensors[1] if self.followers.norm is None else shift
        image = x.unsqueeze(2) if self.rank == 1 else x
        channels_last = weight_is_channels_last or self._comes_out_channels_last(x)
        if isinstance(packed, (first_kernel.PackedConvolution, last_kernel.PackedLayer)):
            bias = None if bias is None else bias.float()
            post_op = self.followers.form.post_op or "none"
            if isinstance(packed, last_kernel.PackedLayer):
                y = last_kernel.layer(image, packed, bias, post_op=post_op, out_dtype=dtype)
            else:
                y = first_kernel.convolution(image, packed, bias, post_op=post_op)
            y = layouts.as_expected(y, self.out_dtype(x.dtype), channels_last)
            return y.squeeze(2) if self.rank == 1 else y
        source = transpose.to_channels_last(image, dtype)
        form = self.followers.form
        tail = (form.attribute, list(form.scalars), form.algorithm)
        if self.transposed:
            padding, output_padding, stride, dilation = self.numbers
            y = _ops._convolution_transpose_pointwise(
                source, packed, bias, padding, output_padding, stride, dilation, module.groups, *tail
            )
        else:
            padding, stride, dilation = self.numbers
            y = _ops._convolution_pointwise(
                source, packed, bias, padding, stride, dilation, module.groups, *tail
            )
        y = layouts.as_expected(y, self.out_dtype(x.dtype), channels_last)
        return y.squeeze(2) if self.rank == 1 else y

    def sample(self, module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        weight: Any = module.__dict__["_parameters"]["weight"]
        conv: Any = module
        pixels = math.prod(x.shape[2:])
        if not self.transposed:
            pixels /= math.prod(conv.stride)
        macs = max(1.0, pixels * weight.numel())
        images = max(1, int(guards.TRIAL_MACS // macs))
        return (x if images >= x.shape[0] else x[:images]).detach(), macs * x.shape[0]

    def excerpt(self, module: nn.Module, part: torch.Tensor) -> torch.Tensor:
        """Rows from the middle of an image that is more than enough by itself; all of it where those rows are empty."""
        stride, _, dilation, *_ = self.settings
        conv: Any = module
        row_macs = self.sample(module, part)[1] / (part.shape[0] * part.shape[2])
        span = dilation[0] * (conv.kernel_size[0] - 1) + 1
        rows = max(span + LEAST_ROWS * stride[0], int(guards.TRIAL_MACS // row_macs))
        formats = (torch.contiguous_format, layouts.CHANNELS_LAST.get(part.dim(), torch.contiguous_format))
        lies = next((form for form in formats if part.is_contiguous(memory_format=form)), None)
        if part.shape[0] > 1 or rows >= part.shape[2] or lies is None:
            return part
        middle = part.narrow(2, (part.shape[2] - rows) // 2, rows).contiguous(memory_format=lies)
        return middle if bool(middle.any()) else part

    def _comes_out_channels_last(self, x: torch.Tensor | None) -> bool:
        """torch follows its input or its weight; in one dimension it makes both contiguous first."""
        if x is None:
            return False
        if self.rank > 1:
            return layouts.is_channels_last(x)
        # a contiguous row of pixels can still count as channels last, where there is one channel
        return 1 in x.shape and x.is_contiguous() and layouts.is_channels_last(x.unsqueeze(2))

    def replay(self, module: nn.Module, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        weight, bias, *rest = tensors
        conv: Any = module
        if self.transposed:
            function: Any = getattr(nn.functional, f"conv_transpose{self.rank}d")
            stride, padding, dilation, groups, _, output_padding = self.settings
            y = function(x, weight, bias, stride, padding, output_padding, groups, dilation)
        else:
            y = conv._conv_forward(x, weight, bias)
        return self.followers.replay(y, tuple(rest))


def _settings(conv: Any) -> tuple[Any, ...]:
    return (conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode, conv.output_padding)


def _numbers(conv: Any) -> Any:
    """What the operator takes: (padding, stride, dilation), transposed with output_padding; or why not."""
    if conv.padding_mode != "zeros":
        return f"no kernel for padding_mode={conv.padding_mode!r}"
    padding = conv.padding
    if padding == "valid":
        padding = (0,) * len(conv.kernel_size)
    elif padding == "same":
        spans = [dilation * (size - 1) for dilation, size in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(span % 2 for span in spans):
            return "padding='same' is not the same on both sides here"
        padding = tuple(span // 2 for span in spans)
    values = [list(value) for value in (padding, conv.stride, conv.dilation)]
    if len(conv.kernel_size) == 1:
        values = [[0, *values[0]], [1, *values[1]], [1, *values[2]]]
    if conv.transposed:
        output_padding = list(conv.output_padding)
        if len(conv.kernel_size) == 1:
            output_padding = [0, *output_padding]
        return (values[0], output_padding, values[1], values[2])
    return tuple(values)
