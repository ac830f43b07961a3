# SPDX-License-Identifier: Apache-2.0
"""nn.TransformerEncoderLayer where torch would run it as one operator: packed weights, activation and sums within the products.

Where torch runs the layer part by part, so do we: each part has a piece of its own.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from slipstream.kernels import attention as kernel
from slipstream.kernels import linear, norm
from slipstream.kernels.linear import asked_precision
from slipstream.optimize import gates, guards, names
from slipstream.optimize.options import Options
from slipstream.optimize.pieces import multihead
from slipstream.optimize.pieces.piece import Tensors
from slipstream.optimize.pieces.weight_layer import PrecisionPiece

PARAMETERS = ("src", "src_mask", "src_key_padding_mask", "is_causal")
"""Of nn.TransformerEncoderLayer.forward, in order."""

PARTS: dict[str, type[nn.Module]] = {
    "self_attn": nn.MultiheadAttention,
    "linear1": nn.Linear,
    "linear2": nn.Linear,
    "norm1": nn.LayerNorm,
    "norm2": nn.LayerNorm,
}


class EncoderLayerPiece(PrecisionPiece):
    act = "packed encoder layer"

    def __init__(self, module: nn.Module, name: str, options: Options) -> None:
        super().__init__(module, name, options)
        self.wanted = not names.contains_skipped(module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module()
        assert module is not None  # it is being called
        if self.wanted and gates.module_is_plain(module) and gates.call_is_plain() and not gates.in_autocast():
            x = _inputs(module, args, kwargs)
            y = None if x is None else self.answer(module, x)
            if y is not None:
                return y
        return module._call_impl(*args, **kwargs)

    def tensors(self, module: nn.Module) -> Tensors | None:
        if not torch.backends.mha.get_fastpath_enabled():
            return None
        parts = module.__dict__["_modules"]
        if any(type(parts.get(name)) is not kind for name, kind in PARTS.items()) or _post_op(module) is None:
            return None
        if not all(part is None or gates.may_be_passed_over(part) for part in parts.values()):
            return None
        attention = parts["self_attn"]
        if not attention.batch_first or attention.num_heads % 2 or parts["norm1"].eps != parts["norm2"].eps:
            return None
        inner = multihead.projections(attention)
        if inner is None or not gates.may_be_passed_over(attention.out_proj):
            return None
        weights, biases = [*inner[:2]], [*inner[2:]]
        for name in ("linear1", "linear2", "norm1", "norm2"):
            held = parts[name].__dict__["_parameters"]
            weights.append(held.get("weight"))
            biases.append(held.get("bias"))
        found = (*weights, *biases)
        return None if any(tensor is None for tensor in found) else found

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors[:4]

    def size_of(self, module: nn.Module, x: Any) -> Hashable | None:
        source, *masks = x
        kinds = tuple(None if mask is None else (mask.dtype, mask.dim()) for mask in masks)
        return source.dtype, source.size(0).bit_length(), source.size(1).bit_length(), kinds, asked_precision()

    def plan(self, x: Any, tensors: Tensors) -> torch.dtype | str:
        return multihead.plan(self, [x[0], *tensors])

    def kind(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> Hashable:
        layer: Any = module
        shapes = tuple(tuple(tensor.shape) for tensor in tensors[:4] if tensor is not None)
        return ("encoder layer", shapes, layer.self_attn.num_heads, layer.norm_first, _post_op(layer), dtype, self.held.parts)

    def make(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> tuple[Any, int]:
        packs = [linear.pack(weight, dtype=dtype, parts=self.parts(dtype)) for weight in tensors[:4] if weight is not None]
        return packs, sum(pack.data.nbytes for pack in packs)

    def run(self, module: nn.Module, x: Any, content: Any, tensors: Tensors) -> torch.Tensor:
        layer: Any = module
        source, padding, mask = x
        projection, out, up, down = content
        inside = projection.dtype
        first, second, projection_bias, out_bias, up_bias, down_bias, first_bias, second_bias = tensors[4:]
        heads, eps = layer.self_attn.num_heads, layer.norm1.eps

        def attend(x: torch.Tensor) -> torch.Tensor:
            """With the sum of the layer's input."""
            qkv = linear.linear(x, projection, projection_bias, out_dtype=inside).chunk(3, dim=-1)
            q, k, v = (multihead.by_heads(part, heads) for part in qkv)
            seen = multihead.merged(padding, mask, source.size(0), heads)
            split = self.parts_of_attention(inside, q, k)
            y = kernel.attention(q, k, v, seen, dtype=inside, parts=split).transpose(1, 2).flatten(2)
            return linear.linear(y, out, out_bias, residual=source, out_dtype=source.dtype)

        def feed(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
            wide = linear.linear(x, up, up_bias, post_op=_post_op(layer) or "none", out_dtype=inside)
            return linear.linear(wide, down, down_bias, residual=residual, out_dtype=source.dtype)

        if layer.norm_first:
            y = attend(norm.layer_norm(source, first, first_bias, eps, out_dtype=inside))
            return feed(norm.layer_norm(y, second, second_bias, eps, out_dtype=inside), y)
        y = norm.layer_norm(attend(source), first, first_bias, eps)
        return norm.layer_norm(feed(y, y), second, second_bias, eps)

    def original(self, module: nn.Module, x: Any) -> torch.Tensor:
        source, padding, mask = x
        return module.forward(source, src_mask=mask, src_key_padding_mask=padding, is_causal=x.causal)  # type: ignore[no-any-return]

    def sample(self, module: nn.Module, x: Any) -> tuple[Any, float]:
        layer: Any = module
        source, padding, mask = x
        batch, steps, width = source.shape
        macs = multihead.macs_of(batch, steps, steps, width) + 2.0 * batch * steps * width * layer.linear1.out_features
        some = max(1, int(guards.TRIAL_MACS * batch // macs))
        if some >= batch or (mask is not None and mask.dim() == 3):
            return x.like(source.detach(), padding, mask), macs
        return x.like(source.detach()[:some], None if padding is None else padding[:some], mask), macs


def _post_op(layer: Any) -> str | None:
    """The activation's name, where torch takes it for what it is."""
    activation = layer.activation
    if activation is F.relu or type(activation) is nn.ReLU:
        return "relu"
    gelu = type(activation) is nn.GELU and activation.approximate == "none"
    return "gelu_erf" if activation is F.gelu or gelu else None


def _inputs(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> multihead.Inputs | None:
    """(source, mask of padding, mask of scores); None where torch has more to say."""
    given: dict[str, Any] = dict(zip(PARAMETERS, args, strict=False))
    if len(args) > len(PARAMETERS) or given.keys() & kwargs.keys() or not kwargs.keys() <= set(PARAMETERS):
        return None
    given |= kwargs
    source: Any = given.get("src")
    mask, padding = given.get("src_mask"), given.get("src_key_padding_mask")
    if not gates.tensor_is_plain(source) or source.dim() != 3 or not source.numel():
        return None
    attention = module.self_attn
    batch, steps, width = source.shape
    floats = any(one is not None and one.dtype != torch.bool for one in (mask, padding))
    if width != attention.embed_dim or floats or (given.get("is_causal") and mask is None):
        return None
    if not multihead.masks_are_ordinary(padding, mask, batch, steps, steps, attention.num_heads, source.dtype):
        return None
    inputs = multihead.Inputs((source, padding, mask))
    inputs.causal = bool(given.get("is_causal", False))
    return inputs
