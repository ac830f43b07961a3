# SPDX-License-Identifier: Apache-2.0
"""Kernels as functions of what changes from call to call, with the rest looked up and checked beforehand.

A call between two kernels runs with cold caches and one thread of all, so what it costs counts as often as there are threads.
A graph's guards know the sizes and dtypes, native operators refuse what they cannot read, and nothing in a graph records
gradients: what is left out asks for no more than that. Without the native extension it is the kernel's own function.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from slipstream.kernels import attention as attention_kernel
from slipstream.kernels import linear as linear_kernel
from slipstream.kernels import native, norm
from slipstream.kernels import normed_linear as normed_linear_kernel
from slipstream.kernels.channels_last import convolution_last as convolution_last_kernel
from slipstream.kernels.channels_last import depthwise as depthwise_kernel
from slipstream.kernels.channels_last import gated_pointwise as gated_pointwise_kernel
from slipstream.kernels.channels_last import inverted_residual as inverted_residual_kernel
from slipstream.kernels.channels_last import pooling
from slipstream.kernels.channels_last import winograd as winograd_kernel
from slipstream.kernels.convolution import PackedConvolution
from slipstream.kernels.post_op import code_of

Maybe = torch.Tensor | None
Quick = Callable[..., torch.Tensor]
Pair = tuple[int, int]

_LAST = torch.channels_last
_ops: Any = torch.ops.slipstream


def linear(packed: linear_kernel.PackedLinear, post_op: str, out: torch.dtype, *, residual_first: bool = False) -> Quick:
    """(x, residual, multiplier, bias) -> y, as `kernels.linear.linear`."""
    if not packed.native:
        return lambda x, residual, multiplier, bias: linear_kernel.linear(
            x, packed, bias, post_op=post_op, multiplier=multiplier, residual=residual, residual_first=residual_first,
            out_dtype=out,
        )  # fmt: skip
    run, data, n, k = _ops.linear.default, packed.data, packed.n, packed.k
    code, low = code_of(post_op), out is torch.bfloat16

    def quick(x: torch.Tensor, residual: Maybe, multiplier: Maybe, bias: Maybe) -> torch.Tensor:
        return run(x, data, n, k, bias, code, multiplier, residual, low, residual_first)  # type: ignore[no-any-return]

    return quick


def normed_linear(
    packed: linear_kernel.PackedLinear, post_op: str, out: torch.dtype, norm: normed_linear_kernel.Normalization
) -> Quick:
    """((x, the norm's weight, its bias), residual, multiplier, bias) -> y, as `kernels.normed_linear.normed_linear`."""
    if not packed.native:
        return lambda of, residual, multiplier, bias: normed_linear_kernel.normed_linear(
            of[0], of[1], of[2], norm, packed, bias,
            post_op=post_op, multiplier=multiplier, residual=residual, out_dtype=out,
        )  # fmt: skip
    run, data, n, k = _ops.normed_linear.default, packed.data, packed.n, packed.k
    eps, centred, low_rows = norm.eps, norm.centred, norm.dtype is torch.bfloat16
    code, low = code_of(post_op), out is torch.bfloat16

    def quick(of: tuple[torch.Tensor, Maybe, Maybe], residual: Maybe, multiplier: Maybe, bias: Maybe) -> torch.Tensor:
        return run(*of, eps, centred, low_rows, data, n, k, bias, code, multiplier, residual, low)  # type: ignore[no-any-return]

    return quick


def depthwise(packed: depthwise_kernel.PackedDepthwise, bias: Maybe, post_op: str, out: torch.dtype) -> Quick:
    """(x with channels innermost, residual) -> y, as `kernels.channels_last.depthwise.depthwise`."""
    if not packed.native:
        return lambda x, residual: depthwise_kernel.depthwise(
            x, packed, bias, post_op=post_op, residual=residual, out_dtype=out
        )
    run, data, numbers = _ops.depthwise.default, packed.data, list(packed.numbers)
    code, low, innermost = code_of(post_op), out is torch.bfloat16, depthwise_kernel.channels_innermost

    def quick(x: torch.Tensor, residual: Maybe) -> torch.Tensor:
        added = None if residual is None else innermost(residual)
        return run(x, data, bias, numbers, code, added, low)  # type: ignore[no-any-return]

    return quick


def convolution_3x3(packed: winograd_kernel.PackedWinograd, bias: Maybe, post_op: str, out: torch.dtype) -> Quick:
    """(x, residual) -> y, as `kernels.channels_last.winograd.convolution_3x3`."""
    if not packed.native:
        return lambda x, residual: winograd_kernel.convolution_3x3(
            x, packed, bias, post_op=post_op, residual=residual, out_dtype=out
        )
    run, data, n, tile = _ops.winograd.default, packed.data, packed.out_channels, packed.tile
    code, low, (down, across) = code_of(post_op), out is torch.bfloat16, packed.padding

    def quick(x: torch.Tensor, residual: Maybe) -> torch.Tensor:
        added = None if residual is None else residual.contiguous(memory_format=_LAST)
        image = x.contiguous(memory_format=_LAST)
        return run(image, data, n, tile, down, across, bias, code, added, low)  # type: ignore[no-any-return]

    return quick


def convolution_last(packed: PackedConvolution, bias: Maybe, post_op: str, out: torch.dtype) -> Quick:
    """(x with channels innermost or of few planes, residual) -> y, as `kernels.channels_last.convolution_last`'s."""
    if not packed.native:
        return lambda x, residual: convolution_last_kernel.convolution_last(
            x, packed, bias, post_op=post_op, residual=residual, out_dtype=out
        )
    run, data, n, groups = _ops.convolution_last.default, packed.data, packed.out_channels, packed.groups
    numbers, code, low = list(packed.numbers), code_of(post_op), out is torch.bfloat16

    def quick(x: torch.Tensor, residual: Maybe) -> torch.Tensor:
        added = None if residual is None else residual.contiguous(memory_format=_LAST)
        return run(x, data, n, bias, groups, numbers, code, added, low)  # type: ignore[no-any-return]

    return quick


def inverted_residual(
    expand: inverted_residual_kernel.Pointwise | None,
    middle: inverted_residual_kernel.Middle,
    project: inverted_residual_kernel.Pointwise | None,
) -> Quick:
    """(x, residual) -> y, both channels last, as `kernels.channels_last.inverted_residual.inverted_residual`."""
    if not middle.packed.native:
        return lambda x, residual: inverted_residual_kernel.inverted_residual(x, expand, middle, project, residual=residual)
    run, constants = _ops.inverted_residual.default, inverted_residual_kernel.constants(expand, middle, project)

    def quick(x: torch.Tensor, residual: Maybe) -> torch.Tensor:
        added = None if residual is None else residual.contiguous(memory_format=_LAST)
        return run(x.contiguous(memory_format=_LAST), *constants, added)  # type: ignore[no-any-return]

    return quick


def gated_pointwise(stage: inverted_residual_kernel.Pointwise) -> Quick:
    """(x channels last, residual, gate) -> y, as `kernels.channels_last.gated_pointwise.gated_pointwise`."""
    if not stage.packed.native:
        return lambda x, residual, gate: gated_pointwise_kernel.gated_pointwise(x, gate, stage, residual=residual)
    run, packed, n, bias = _ops.gated_pointwise.default, stage.packed.data, stage.packed.n, stage.bias
    code, low = code_of(stage.post_op), stage.out is torch.bfloat16

    def quick(x: torch.Tensor, residual: Maybe, gate: torch.Tensor) -> torch.Tensor:
        added = None if residual is None else residual.contiguous(memory_format=_LAST)
        factors = gate if gate.stride(1) == 1 else gate.contiguous()
        image = x.contiguous(memory_format=_LAST)
        return run(image, factors, packed, n, bias, code, added, low)  # type: ignore[no-any-return]

    return quick


def layer_norm(eps: float, out: torch.dtype, *, centred: bool) -> Quick:
    """(x, residual, weight, bias) -> y, as `kernels.norm.layer_norm`, or `kernels.norm.rms_norm`, which has no bias."""
    if not native.available():
        if centred:
            return lambda x, residual, weight, bias: norm.layer_norm(x, weight, bias, eps, residual=residual, out_dtype=out)
        return lambda x, residual, weight, _: norm.rms_norm(x, weight, eps, residual=residual, out_dtype=out)
    run, low = _ops.norm.default, out is torch.bfloat16

    def quick(x: torch.Tensor, residual: Maybe, weight: Maybe, bias: Maybe) -> torch.Tensor:
        return run(x, residual, weight, bias, eps, centred, False, low)  # type: ignore[no-any-return]

    return quick


def max_pool(window: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool) -> Quick:
    """x with channels innermost -> y, as `kernels.channels_last.pooling.max_pool`."""
    if not native.available():
        return lambda x: pooling.max_pool(x, window, stride, padding, dilation, ceil_mode)
    run, numbers = _ops.pooling.default, [*window, *stride, *padding, *dilation]
    return lambda x: run(x, True, numbers, ceil_mode, False, 0)


def global_average() -> Quick:
    """x with channels innermost -> y, as `kernels.channels_last.pooling.global_average`."""
    if not native.available():
        return pooling.global_average
    run = _ops.pooling.default

    def quick(x: torch.Tensor) -> torch.Tensor:
        _, _, height, width = x.shape
        return run(x, False, (height, width, height, width, 0, 0, 1, 1), False, True, 0)  # type: ignore[no-any-return]

    return quick


def attention(
    product: torch.dtype, out: torch.dtype, *, causal: bool, scale: float | None, unseen: float, parts: int = 1
) -> Quick:
    """(query, key, value, mask) -> y, as `kernels.attention.attention`."""
    if not native.available():
        return functools.partial(
            attention_kernel.attention, causal=causal, scale=scale, dtype=product, out_dtype=out, unseen=unseen, parts=parts
        )
    run, low, low_out = _ops.attention.default, product is torch.bfloat16, out is torch.bfloat16

    def quick(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Maybe) -> torch.Tensor:
        batch, heads, rows, depth = query.shape
        factor = 1 / math.sqrt(depth or 1) if scale is None else scale
        seen = None if mask is None else mask.expand(batch, heads, rows, key.shape[2])
        return run(query, key, value, seen, causal, factor, low, low_out, 0.0, 0, unseen, parts)  # type: ignore[no-any-return]

    return quick
