# SPDX-License-Identifier: Apache-2.0
"""Shapes, strides and dtypes of the native operators' results, for dynamo, export and torch.compile. One function an operator,
of its name and with its schema's arguments; what they mean stands in csrc/bind.
"""

from __future__ import annotations

import torch


def register() -> None:
    """Tell torch of them all; once, when the extension has been loaded."""
    for fake in FAKES:
        torch.library.register_fake(f"slipstream::{fake.__name__}")(fake)


_FITS = "scaled: whether a weight fits depends on its values; pack it before it is traced"


def _dtype(bfloat16: bool) -> torch.dtype:
    return torch.bfloat16 if bfloat16 else torch.float32


def pack_linear(weight: torch.Tensor, bfloat16: bool, parts: int = 1, scaled: bool = False) -> torch.Tensor:
    if scaled:
        raise NotImplementedError(_FITS)
    n, k = weight.shape
    columns, depth = (n + 31) // 32 * 32, (k + 31) // 32 * 32 if bfloat16 else k
    return weight.new_empty(columns * depth * parts, dtype=_dtype(bfloat16))


def linear(
    x: torch.Tensor, packed: torch.Tensor, n: int, k: int, bias: torch.Tensor | None, post_op: int,
    multiplier: torch.Tensor | None, residual: torch.Tensor | None, bfloat16_out: bool, residual_first: bool = False,
) -> torch.Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], n), dtype=_dtype(bfloat16_out))


def normed_linear(
    x: torch.Tensor, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None, eps: float, centred: bool,
    bfloat16_rows: bool, packed: torch.Tensor, n: int, k: int, bias: torch.Tensor | None, post_op: int,
    multiplier: torch.Tensor | None, residual: torch.Tensor | None, bfloat16_out: bool,
) -> torch.Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], n), dtype=_dtype(bfloat16_out))


def pack_linear_int8(weight: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor | None) -> torch.Tensor:
    n, k = weight.shape
    panels, depth = (n + 31) // 32, (k + 63) // 64 * 64
    return weight.new_empty(panels * (depth * 32 + 384))


def linear_int8(
    x: torch.Tensor, packed: torch.Tensor, n: int, k: int, activation: int, scale: float, zero_point: int,
    bias: torch.Tensor | None, post_op: int, multiplier: torch.Tensor | None, residual: torch.Tensor | None,
    bfloat16_out: bool, residual_first: bool = False,
) -> torch.Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], n), dtype=_dtype(bfloat16_out))


def activation(x: torch.Tensor, post_op: int, bfloat16_out: bool) -> torch.Tensor:
    return torch.empty_like(x, dtype=_dtype(bfloat16_out))


def norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float,
    centred: bool, one_more: bool, bfloat16_out: bool,
) -> torch.Tensor:  # fmt: skip
    return x.new_empty(x.shape, dtype=_dtype(bfloat16_out))


def norm_of_sum(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float,
    centred: bool, one_more: bool, bfloat16_sum: bool, bfloat16_out: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    return x.new_empty(x.shape, dtype=_dtype(bfloat16_sum)), x.new_empty(x.shape, dtype=_dtype(bfloat16_out))


def group_norm(
    x: torch.Tensor, groups: int, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, post_op: int,
    bfloat16_out: bool,
) -> torch.Tensor:  # fmt: skip
    y = x.new_empty(x.shape, dtype=_dtype(bfloat16_out))
    if not _has_pixels_of_channels(x):
        return y
    return y.new_empty(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)


def _has_pixels_of_channels(x: torch.Tensor) -> bool:
    """Whether the channels of x [N, C, …] are innermost, and pixels at one stride."""
    pixels, stride = 1, 0
    for axis in range(x.dim() - 1, 1, -1):
        if x.shape[axis] != 1:
            stride = stride or x.stride(axis)
            if x.stride(axis) != stride * pixels:
                return False
            pixels *= x.shape[axis]
    return pixels > 1 and x.shape[1] > 1 and x.stride(1) == 1


def transpose(x: torch.Tensor, bfloat16_out: bool) -> torch.Tensor:
    batch, rows, columns = x.shape
    return x.new_empty(batch, columns, rows, dtype=_dtype(bfloat16_out))


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, causal: bool, scale: float,
    bfloat16: bool, bfloat16_out: bool, softcap: float = 0.0, window: int = 0, unseen: float = 0.0, parts: int = 1,
) -> torch.Tensor:  # fmt: skip
    batch, heads, length, _ = query.shape
    dtype = _dtype(bfloat16_out)
    return query.new_empty(batch, length, heads, value.shape[3], dtype=dtype).transpose(1, 2)


def relative_scores(
    query: torch.Tensor, key: torch.Tensor, query_table: torch.Tensor | None, query_index: torch.Tensor | None,
    query_scale: float, key_table: torch.Tensor | None, key_index: torch.Tensor | None, key_scale: float, bfloat16: bool,
) -> torch.Tensor:  # fmt: skip
    return query.new_empty((*query.shape[:3], key.shape[2]), dtype=torch.float32)


def batched_matmul(
    a: torch.Tensor, b: torch.Tensor, addend: torch.Tensor | None, alpha: float, bfloat16: bool, bfloat16_out: bool,
    parts: int = 1,
) -> torch.Tensor:  # fmt: skip
    return a.new_empty(*a.shape[:-1], b.shape[-1], dtype=_dtype(bfloat16_out))


def pack_convolution(weight: torch.Tensor, bfloat16: bool) -> torch.Tensor:
    out, ins, height, width = weight.shape
    halves = bfloat16 and ins > 1
    depth, line = (2, 32) if halves else (1, 16)
    elements = (ins + depth - 1) // depth * depth * height * width
    row = ((elements + line - 1) // line | 1) * line
    return weight.new_empty(out, row, dtype=_dtype(halves))


def convolution(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, groups: int, numbers: list[int], post_op: int,
    residual: torch.Tensor | None, bfloat16_out: bool,
) -> torch.Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], packed.shape[0], *_image_size(x, numbers), dtype=_dtype(bfloat16_out))


def convolution_last(
    x: torch.Tensor, packed: torch.Tensor, out_channels: int, bias: torch.Tensor | None, groups: int, numbers: list[int],
    post_op: int, residual: torch.Tensor | None, bfloat16_out: bool,
) -> torch.Tensor:  # fmt: skip
    size = (x.shape[0], out_channels, *_image_size(x, numbers))
    return torch.empty(size, dtype=_dtype(bfloat16_out), device=x.device, memory_format=torch.channels_last)


def pack_depthwise(weight: torch.Tensor) -> torch.Tensor:
    channels, _, height, width = weight.shape
    steps = 2 * width + (width // 2 + 1 if width in (5, 7) else 0)
    return weight.new_empty((channels + 31) // 32 * 32 * height * steps, dtype=torch.float32)


def depthwise(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, numbers: list[int], post_op: int,
    residual: torch.Tensor | None, bfloat16_out: bool,
) -> torch.Tensor:  # fmt: skip
    size = (*x.shape[:2], *_image_size(x, numbers))
    return torch.empty(size, dtype=_dtype(bfloat16_out), device=x.device, memory_format=torch.channels_last)


def inverted_residual(
    x: torch.Tensor, expand: torch.Tensor | None, expand_bias: torch.Tensor | None, expand_post_op: int, expand_bfloat16: bool,
    depthwise: torch.Tensor, depthwise_bias: torch.Tensor | None, channels: int, numbers: list[int], depthwise_post_op: int,
    depthwise_bfloat16: bool, project: torch.Tensor | None, project_bias: torch.Tensor | None, out_channels: int,
    project_post_op: int, project_bfloat16: bool, residual: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    last, low = (channels, depthwise_bfloat16) if project is None else (out_channels, project_bfloat16)
    size = (x.shape[0], last, *_image_size(x, numbers))
    return torch.empty(size, dtype=_dtype(low), device=x.device, memory_format=torch.channels_last)


def gated_pointwise(
    x: torch.Tensor, gate: torch.Tensor, packed: torch.Tensor, out_channels: int, bias: torch.Tensor | None, post_op: int,
    residual: torch.Tensor | None, bfloat16_out: bool,
) -> torch.Tensor:  # fmt: skip
    size = (x.shape[0], out_channels, *x.shape[2:])
    return torch.empty(size, dtype=_dtype(bfloat16_out), device=x.device, memory_format=torch.channels_last)


def pack_winograd(weight: torch.Tensor, tile: int, bfloat16: bool, scaled: bool = False) -> torch.Tensor:
    if scaled:
        raise NotImplementedError(_FITS)
    out, ins, _, _ = weight.shape
    depth = (ins + 31) // 32 * 32 if bfloat16 else ins
    return weight.new_empty((out + 31) // 32, (tile + 2) ** 2 * depth * 32, dtype=_dtype(bfloat16))


def winograd(
    x: torch.Tensor, packed: torch.Tensor, out_channels: int, tile: int, padding_height: int, padding_width: int,
    bias: torch.Tensor | None, post_op: int, residual: torch.Tensor | None, bfloat16_out: bool,
) -> torch.Tensor:  # fmt: skip
    size = x.shape[0], out_channels, x.shape[2] + 2 * padding_height - 2, x.shape[3] + 2 * padding_width - 2
    return torch.empty(size, dtype=_dtype(bfloat16_out), device=x.device, memory_format=torch.channels_last)


def recurrent(
    x: torch.Tensor, weights: torch.Tensor, biases: torch.Tensor, h0: torch.Tensor | None, c0: torch.Tensor | None,
    batch_sizes: list[int], kind: int, sizes: list[int], bfloat16_out: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    _, units, projection, layers, directions = sizes
    outputs, batch = projection or units, batch_sizes[0] if batch_sizes else x.shape[1]
    dtype = _dtype(bfloat16_out)
    return (
        x.new_empty(*x.shape[:-1], directions * outputs, dtype=dtype),
        x.new_empty(layers * directions, batch, outputs, dtype=dtype),
        x.new_empty(layers * directions if kind == 0 else 0, batch, units, dtype=dtype),
    )


def pooling(
    x: torch.Tensor, maximum: bool, numbers: list[int], ceil_mode: bool, count_include_pad: bool, divisor: int
) -> torch.Tensor:
    size = _image_size(x, numbers, ceil=ceil_mode)
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _image_size(x: torch.Tensor, numbers: list[int], *, ceil: bool = False) -> list[int]:
    """Height and width of what a convolution or pooling makes of x; numbers: kernel, stride, padding, dilation, two each.

    A fifth pair is the padding behind the image, where it is another.

    ``ceil``: a last window that begins inside the image or its left padding counts though it ends outside.
    """
    size = []
    for i in range(2):
        kernel, stride, padding, dilation, *behind = numbers[i::2]
        room = x.shape[2 + i] + padding + (behind[0] if behind else padding) - (kernel - 1) * dilation - 1
        count = (room + (stride - 1 if ceil else 0)) // stride + 1
        size.append(count - 1 if ceil and (count - 1) * stride >= x.shape[2 + i] + padding else count)
    return size


def concatenate(
    sources: list[torch.Tensor], kinds: list[int], numbers: list[torch.Tensor], bfloat16_out: bool
) -> torch.Tensor:  # fmt: skip
    given, columns, rows = iter(numbers), 0, sources[0].shape[0]
    for source, kind in zip(sources, kinds, strict=True):
        taken = [next(given) for _ in range((0, 1, 2, 2, 1)[kind])]
        columns += taken[0].shape[0] if kind == 4 else source.shape[1]
        rows = source.shape[0] if kind in (0, 4) else taken[-1].shape[0]
    return sources[0].new_empty(rows, columns, dtype=_dtype(bfloat16_out))


FAKES = (
    pack_linear, linear, normed_linear, pack_linear_int8, linear_int8, activation, norm, norm_of_sum, group_norm, transpose,
    attention, relative_scores,
    pack_convolution, convolution, convolution_last, pack_depthwise, depthwise, inverted_residual,
    gated_pointwise,
    pack_winograd, winograd, recurrent, pooling, batched_matmul, concatenate,
)  # fmt: skip
