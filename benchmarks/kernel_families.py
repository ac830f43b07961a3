# SPDX-License-Identifier: Apache-2.0
"""Every kernel but linear, on shapes of well-known models, beside what torch would run there. A family is a list of shapes and
a function that makes a case of one: ours and the rival as calls without arguments, on the same random data.

Rivals: torch's own operator; for convolutions oneDNN's with a prepacked weight and channels last, which freezing gives; for
int8 our own bfloat16 linear, which it has to beat. `linear_float32` is float32 linear at each float32 matmul precision, packed
as it is for that at this level, beside torch's at "highest".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from slipstream.kernels import (
    attention,
    batched_matmul,
    convolution,
    linear,
    linear_int8,
    norm,
    recurrent,
    transpose,
)  # fmt: skip
from slipstream.kernels.activation import activation
from slipstream.kernels.channels_last import convolution_last, depthwise, pooling, winograd
from slipstream.kernels.concatenate import Kind, Part, concatenate
from slipstream.kernels.linear import best_held

COLD_UP_TO_ROWS = 64  # weights of small batches come from memory, as for linear in kernels.py
COLD_BYTES = 64 << 20  # of the smaller of the two weights, beyond the last-level cache of nearly all machines

Call = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """``work`` is in operations or bytes, as ``unit`` says; results agree within ``bound`` of the largest value."""

    rival: str
    ours: Call
    theirs: Call
    work: int
    unit: str
    bound: float


@dataclass(frozen=True)
class Family:
    """``make(dtype, *shape)`` is a Case, or None where torch has no such operator here."""

    make: Callable[..., Case | None]
    shapes: Sequence[tuple[Any, ...]]


def close(dtype: torch.dtype) -> float:
    return 1e-5 if dtype is torch.float32 else 2e-2


def random(dtype: torch.dtype, *sizes: int) -> torch.Tensor:
    return torch.randn(*sizes).to(dtype)


def float32_case(dtype: torch.dtype, precision: str, rows: int, k: int, n: int) -> Case | None:
    if dtype is not torch.float32:
        return None
    x, weight, bias = torch.randn(rows, k), torch.randn(n, k) / math.sqrt(k), torch.randn(n)
    copies = 1 if rows > COLD_UP_TO_ROWS else math.ceil(COLD_BYTES / (2 * weight.numel()))
    held = best_held(precision, rows)
    packed = itertools.cycle([linear.pack(weight, dtype=held.dtype, parts=held.parts) for _ in range(copies)])
    weights = itertools.cycle([weight.clone() for _ in range(copies)])
    return Case(
        "torch's",
        lambda: linear.linear(x, next(packed), bias),
        lambda: F.linear(x, next(weights), bias),
        2 * rows * k * n,
        "GOP/s",
        2e-2 if precision == "medium" else close(dtype),
    )


def int8_case(dtype: torch.dtype, rows: int, k: int, n: int) -> Case:
    x, weight, bias = random(dtype, rows, k), torch.randn(n, k) / math.sqrt(k), torch.randn(n)
    integers, scales = linear_int8.quantize_weight(weight)
    copies = 1 if rows > COLD_UP_TO_ROWS else math.ceil(COLD_BYTES / weight.numel())
    packed = itertools.cycle([linear_int8.pack(integers, scales) for _ in range(copies)])
    halves = itertools.cycle([linear.pack(weight, dtype=torch.bfloat16) for _ in range(copies)])
    return Case(
        "our bfloat16",
        lambda: linear_int8.linear_int8(x, next(packed), bias),
        lambda: linear.linear(x, next(halves), bias),
        2 * rows * k * n,
        "GOP/s",
        5e-2,
    )


def beside_onednn(
    dtype: torch.dtype, batch: int, channels: int, out: int, size: int, kernel: int, stride: int, groups: int,
    prepare: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], Call],
) -> Case | None:  # fmt: skip
    """``prepare`` makes our call of x (channels first), the weight, the bias and what `pack` takes beside them."""
    if not torch.backends.mkldnn.is_available():
        return None
    x, bias = random(dtype, batch, channels, size, size), torch.randn(out)
    weight = (torch.randn(out, channels // groups, kernel, kernel) / math.sqrt(channels // groups * kernel**2)).to(dtype)
    last, their_bias = x.contiguous(memory_format=torch.channels_last), bias.to(dtype)
    numbers = [kernel // 2] * 2, [stride] * 2, [1, 1], groups
    reordered = torch.ops.mkldnn._reorder_convolution_weight(weight, *numbers, list(x.shape))
    theirs = torch.ops.mkldnn._convolution_pointwise
    how = {"stride": (stride, stride), "padding": (kernel // 2, kernel // 2)}
    return Case(
        "oneDNN, prepacked",
        prepare(x, weight, bias, how),
        lambda: theirs(last, reordered, their_bias, *numbers, "none", [], ""),
        2 * batch * out * (-(-size // stride)) ** 2 * channels // groups * kernel**2,
        "GOP/s",
        close(dtype),
    )


def convolution_case(
    dtype: torch.dtype, batch: int, channels: int, out: int, size: int, kernel: int, stride: int
) -> Case | None:
    def prepare(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, how: dict[str, Any]) -> Call:
        packed = convolution.pack(weight, dtype=dtype, **how)
        return lambda: convolution.convolution(x, packed, bias)

    return beside_onednn(dtype, batch, channels, out, size, kernel, stride, 1, prepare)


def convolution_last_case(
    dtype: torch.dtype, batch: int, channels: int, out: int, size: int, kernel: int, stride: int
) -> Case | None:
    def prepare(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, how: dict[str, Any]) -> Call:
        packed, last = convolution_last.pack(weight, dtype=dtype, **how), x.contiguous(memory_format=torch.channels_last)
        return lambda: convolution_last.convolution_last(last, packed, bias)

    return beside_onednn(dtype, batch, channels, out, size, kernel, stride, 1, prepare)


def depthwise_case(dtype: torch.dtype, batch: int, channels: int, size: int, kernel: int, stride: int) -> Case | None:
    def prepare(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, how: dict[str, Any]) -> Call:
        packed, last = depthwise.pack(weight, **how), x.contiguous(memory_format=torch.channels_last)
        return lambda: depthwise.depthwise(last, packed, bias)

    return beside_onednn(dtype, batch, channels, channels, size, kernel, stride, channels, prepare)


def winograd_case(dtype: torch.dtype, batch: int, channels: int, out: int, size: int) -> Case | None:
    """The rate counts the products of the definition, not the fewer that are done."""

    def prepare(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, how: dict[str, Any]) -> Call:
        packed, last = winograd.pack(weight, dtype=dtype), x.contiguous(memory_format=torch.channels_last)
        return lambda: winograd.convolution_3x3(last, packed, bias)

    return beside_onednn(dtype, batch, channels, out, size, 3, 1, 1, prepare)


def attention_case(dtype: torch.dtype, batch: int, heads: int, length: int, depth: int, causal: bool) -> Case:
    query, key, value = (random(dtype, batch, length, heads, depth).transpose(1, 2) for _ in range(3))
    work = 4 * batch * heads * length * length * depth // (2 if causal else 1)
    return Case(
        "torch's",
        lambda: attention.attention(query, key, value, causal=causal),
        lambda: F.scaled_dot_product_attention(query, key, value, is_causal=causal),
        work,
        "GOP/s",
        close(dtype),
    )


def batched_matmul_case(dtype: torch.dtype, batch: int, rows: int, inner: int, columns: int, turned: bool) -> Case:
    """``turned``: B is the transpose of what lies in memory, as keys are."""
    a = random(dtype, batch, rows, inner)
    b = random(dtype, batch, columns, inner).transpose(1, 2) if turned else random(dtype, batch, inner, columns)
    work = 2 * batch * rows * inner * columns
    return Case("torch's", lambda: batched_matmul.batched_matmul(a, b), lambda: torch.bmm(a, b), work, "GOP/s", close(dtype))


def norm_case(dtype: torch.dtype, kind: str, rows: int, columns: int) -> Case:
    x, weight, bias = random(dtype, rows, columns), random(dtype, columns), random(dtype, columns)
    work = 2 * x.numel() * x.element_size()
    if kind == "layer":
        ours, theirs = norm.layer_norm, F.layer_norm
        return Case(
            "torch's", lambda: ours(x, weight, bias, 1e-5), lambda: theirs(x, (columns,), weight, bias, 1e-5), work, "GB/s",
            close(dtype),
        )  # fmt: skip
    return Case(
        "torch's", lambda: norm.rms_norm(x, weight, 1e-5), lambda: F.rms_norm(x, (columns,), weight, 1e-5), work, "GB/s",
        close(dtype),
    )  # fmt: skip


def group_norm_case(dtype: torch.dtype, batch: int, channels: int, size: int) -> Case:
    """In 32 groups, of images with channels innermost, as a graph has them."""
    x = random(dtype, batch, channels, size, size).contiguous(memory_format=torch.channels_last)
    weight, bias = random(dtype, channels), random(dtype, channels)
    return Case(
        "torch's",
        lambda: norm.group_norm(x, 32, weight, bias, 1e-5),
        lambda: F.group_norm(x, 32, weight, bias, 1e-5),
        2 * x.numel() * x.element_size(),
        "GB/s",
        close(dtype),
    )


def max_pool_case(dtype: torch.dtype, batch: int, channels: int, size: int, kernel: int, stride: int) -> Case:
    x = random(dtype, batch, channels, size, size).contiguous(memory_format=torch.channels_last)
    numbers = (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2)
    work = x.numel() * x.element_size()
    return Case("torch's", lambda: pooling.max_pool(x, *numbers), lambda: F.max_pool2d(x, *numbers), work, "GB/s", 0.0)


def recurrent_case(dtype: torch.dtype, steps: int, batch: int, units: int) -> Case:
    """One layer of an LSTM."""
    x, layer = random(dtype, steps, batch, units), torch.nn.LSTM(units, units).to(dtype)
    packed = recurrent.pack("lstm", [weight.detach() for weight in layer.parameters()], dtype=dtype)
    work = 2 * steps * batch * 4 * units * 2 * units
    return Case("torch's", lambda: recurrent.recurrent(x, packed)[0], lambda: layer(x)[0], work, "GOP/s", close(dtype))


def concatenate_case(dtype: torch.dtype, tables: int, rows: int, width: int, a_bag: int, batch: int) -> Case:
    """Sums of bags of this many rows, side by side."""
    parts = [
        Part(Kind.BAG_SUM, random(dtype, rows, width), (torch.randint(0, rows, (a_bag * batch,)), torch.arange(batch) * a_bag))
        for _ in range(tables)
    ]
    work = tables * batch * (a_bag + 1) * width * dtype.itemsize
    return Case(
        "torch's",
        lambda: concatenate(parts, out_dtype=dtype),
        lambda: torch.cat([F.embedding_bag(part.numbers[0], part.x, part.numbers[1], mode="sum") for part in parts], dim=1),
        work,
        "GB/s",
        close(dtype),
    )


def activation_case(dtype: torch.dtype, post_op: str, rows: int, columns: int) -> Case:
    x = random(dtype, rows, columns)
    theirs = {"gelu_erf": F.gelu, "silu": F.silu, "tanh": torch.tanh}[post_op]
    work = 2 * x.numel() * x.element_size()
    return Case("torch's", lambda: activation(x, post_op), lambda: theirs(x), work, "GB/s", close(dtype))


def transpose_case(dtype: torch.dtype, batch: int, channels: int, size: int) -> Case:
    """float32, channels first, to ``dtype`` with channels last."""
    x = torch.randn(batch, channels, size, size)
    return Case(
        "torch's",
        lambda: transpose.to_channels_last(x, dtype),
        lambda: x.to(dtype, memory_format=torch.channels_last),
        x.numel() * (4 + dtype.itemsize),
        "GB/s",
        0.0,
    )


_BERT = ((768, 768), (768, 3072), (3072, 768))
FAMILIES = {
    "linear_float32": Family(
        float32_case,
        [
            (precision, rows, *size)
            for precision in ("highest", "high", "medium") for size in _BERT for rows in (1, 16, 64, 128, 512, 1024, 2048)
        ],
    ),
    "linear_int8": Family(int8_case, [(rows, *size) for size in _BERT for rows in (1, 16, 128, 512, 1024)]),
    "convolution": Family(  # batch, in, out, size, kernel, stride: the distinct kinds of ResNet-50's layers
        convolution_case,
        [
            (4, 3, 64, 224, 7, 2), (4, 64, 64, 56, 1, 1), (4, 64, 64, 56, 3, 1), (4, 64, 256, 56, 1, 1), (4, 256, 64, 56, 1, 1),
            (4, 128, 128, 56, 3, 2), (4, 128, 128, 28, 3, 1), (4, 128, 512, 28, 1, 1), (4, 256, 512, 56, 1, 2),
            (4, 256, 256, 14, 3, 1), (4, 256, 1024, 14, 1, 1), (4, 1024, 256, 14, 1, 1), (4, 512, 512, 7, 3, 1),
            (4, 512, 2048, 7, 1, 1),
        ],
    ),
    "convolution_last": Family(  # batch, in, out, size, kernel, stride: ResNet-50, EfficientNet-B0, U-Net
        convolution_last_case,
        [
            (4, 3, 64, 224, 7, 2), (4, 3, 32, 224, 3, 2), (4, 128, 128, 56, 3, 2), (4, 256, 256, 28, 3, 2),
            (4, 512, 512, 14, 3, 2), (4, 64, 64, 56, 3, 1), (4, 512, 512, 7, 3, 1), (1, 64, 64, 224, 3, 1),
            (4, 48, 48, 28, 5, 1),
        ],
    ),
    "depthwise": Family(  # batch, channels, size, kernel, stride: MobileNetV2, EfficientNet-B0, ConvNeXt-T
        depthwise_case,
        [
            (4, 32, 112, 3, 1), (4, 96, 112, 3, 2), (4, 144, 56, 3, 1), (4, 192, 28, 3, 1), (4, 384, 14, 3, 1),
            (4, 576, 14, 3, 2), (4, 960, 7, 3, 1), (4, 240, 28, 5, 1), (4, 672, 14, 5, 1), (4, 96, 56, 7, 1),
            (4, 384, 14, 7, 1),
        ],
    ),
    "winograd": Family(  # batch, in, out, size
        winograd_case,
        [(4, 64, 64, 56), (4, 128, 128, 28), (4, 256, 256, 14), (4, 512, 512, 7), (1, 64, 64, 224)],
    ),
    "attention": Family(  # batch, heads, length, depth, causal
        attention_case,
        [
            (1, 12, 128, 64, False), (8, 12, 128, 64, False), (4, 12, 384, 64, False), (8, 12, 197, 64, False),
            (1, 32, 512, 128, True), (1, 32, 2048, 128, True), (4, 32, 2048, 128, False),
        ],
    ),
    "batched_matmul": Family(  # batch, rows, inner, columns, turned: DeBERTa's, DLRM's, BERT's, Swin's, and large ones
        batched_matmul_case,
        [
            (96, 128, 64, 512, False), (96, 128, 128, 64, False), (2048, 27, 128, 27, True), (96, 128, 64, 128, True),
            (12, 512, 64, 512, True), (512, 49, 32, 49, True), (512, 49, 49, 32, False), (4, 1024, 1024, 1024, False),
        ],
    ),
    "norm": Family(norm_case, [(kind, 1024, columns) for kind in ("layer", "rms") for columns in (256, 768, 2048, 8192)]),
    "group_norm": Family(group_norm_case, [(1, 320, 64), (1, 640, 32), (4, 64, 56)]),  # batch, channels, size
    "max_pool": Family(max_pool_case, [(4, 64, 112, 3, 2), (1, 256, 20, 5, 1)]),  # ResNet-50's, YOLO's
    "recurrent": Family(recurrent_case, [(1, 1, 512), (32, 1, 512), (64, 8, 512)]),  # steps, batch, units
    "concatenate": Family(  # tables, rows, width, rows a bag, batch: DLRM's, with few rows, with small tables, with large bags
        concatenate_case,
        [(26, 20_000, 128, 2, 2048), (26, 20_000, 128, 2, 64), (26, 1000, 64, 1, 2048), (4, 300_000, 64, 20, 512)],
    ),
    "activation": Family(activation_case, [(name, 1024, 3072) for name in ("gelu_erf", "silu", "tanh")]),
    "transpose": Family(transpose_case, [(4, 3, 224), (4, 64, 56), (4, 256, 56), (4, 1024, 14)]),
}  # fmt: skip
