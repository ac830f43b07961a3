# SPDX-License-Identifier: Apache-2.0
"""nn.MultiheadAttention: both projections packed, attention between them by our kernel.

Left to torch: other widths of keys or values, appended keys, unbatched and nested input, and calls in which a query sees no
key, for which torch has several answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn

from slipstream.kernels import attention as kernel
from slipstream.kernels import linear, native
from slipstream.kernels.linear import asked_precision
from slipstream.kernels.operands import DTYPES
from slipstream.optimize import gates, guards
from slipstream.optimize.options import Options
from slipstream.optimize.pieces.piece import Tensors
from slipstream.optimize.pieces.weight_layer import PrecisionPiece

PARAMETERS = (
    "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal",
)  # fmt: skip
"""Of nn.MultiheadAttention.forward, in order."""


class Inputs(tuple[torch.Tensor | None, ...]):
    """Query, key, value, the mask of padding, the mask of scores; and what else the caller asked for."""

    need_weights = False
    averaged = True
    causal = False

    def like(self, *tensors: torch.Tensor | None) -> Inputs:
        """The same question about other tensors."""
        made = Inputs(tensors)
        made.need_weights, made.averaged, made.causal = self.need_weights, self.averaged, self.causal
        return made

    def sharing(self) -> str:
        """Which of query, key and value are one tensor, and may be projected together."""
        query, key, value, *_ = self
        return "self" if query is key is value else "memory" if key is value else "apart"


class MultiheadPiece(PrecisionPiece):
    act = "packed attention"

    def __init__(self, module: nn.Module, name: str, options: Options) -> None:
        super().__init__(module, name, options)
        attention: Any = module
        self.heads: int = attention.num_heads
        self.batch_first: bool = attention.batch_first
        self.sharing: str | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module()
        assert module is not None  # it is being called
        if gates.module_is_plain(module) and gates.call_is_plain():
            inputs = _inputs(module, args, kwargs)
            y = None if inputs is None else self.answer(module, inputs)
            if y is not None:
                return y if len(y) == 2 else (*y, None)
        if not self.account.decided:
            self.note(False, gates.why_not_plain(module, args[:1], {}))
        return module._call_impl(*args, **kwargs)

    def tensors(self, module: nn.Module) -> Tensors | None:
        attention: Any = module
        return projections(attention) if attention.batch_first is self.batch_first else None

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors[:2]

    def size_of(self, module: nn.Module, x: Any) -> Hashable | None:
        query, key, _, *masks = x
        sharing = x.sharing()
        if self.sharing is None:
            self.sharing = sharing
        if self.sharing != sharing:
            return None  # it is packed for the other
        sizes = tuple(length.bit_length() for length in (*query.shape[:2], *key.shape[:2]))
        kinds = tuple(None if mask is None else (mask.dtype, mask.dim()) for mask in masks)
        how = x.need_weights, x.averaged, torch.backends.mha.get_fastpath_enabled(), asked_precision()
        return query.dtype, sizes, kinds, how

    def plan(self, x: Any, tensors: Tensors) -> torch.dtype | str:
        return plan(self, [x[0], x[1], x[2], *tensors])

    def kind(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> Hashable:
        weight = tensors[0]
        assert weight is not None
        return ("multihead", tuple(weight.shape), self.heads, self.batch_first, self.sharing, dtype, self.held.parts)

    def make(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> tuple[Any, int]:
        inner, outer, *_ = tensors
        assert inner is not None and outer is not None
        width = outer.shape[0]
        rows = {"self": [3], "memory": [1, 2], "apart": [1, 1, 1]}[self.sharing or "self"]
        split = self.parts(dtype)
        parts = [linear.pack(part, dtype=dtype, parts=split) for part in inner.detach().split([width * some for some in rows])]
        out = linear.pack(outer, dtype=dtype, parts=split)
        return (parts, out), sum(pack.data.nbytes for pack in (*parts, out))

    def run(self, module: nn.Module, x: Any, content: Any, tensors: Tensors) -> Any:
        parts, out = content
        query, key, value, *masks = x
        bias, last_bias = tensors[2:]
        inside = torch.float32 if x.need_weights and not self.options.autocast else parts[0].dtype
        given = {"self": (query,), "memory": (query, key), "apart": (query, key, value)}[x.sharing()]
        q, k, v = self._projected(given, parts, bias, inside)
        mask = merged(masks[0], masks[1], query.size(0 if self.batch_first else 1), self.heads)
        weights = None
        outside = self.out_dtype(query.dtype)
        if x.need_weights:
            y, weights = _with_weights(q, k, v, mask, averaged=x.averaged)
            y = y.transpose(1, 2)
        else:
            dtype = parts[0].dtype
            y = kernel.attention(q, k, v, mask, dtype=dtype, parts=self.parts_of_attention(dtype, q, k)).transpose(1, 2)
        y = y.flatten(2)  # [batch, steps, width]
        turned = not self._takes_the_fast_path(x, tensors)
        y = linear.linear(y.transpose(0, 1) if turned else y, out, last_bias, out_dtype=outside)
        y = y if turned is not self.batch_first else y.transpose(0, 1)
        return (y,) if weights is None else (y, weights.to(outside))

    def _projected(
        self, given: tuple[Any, ...], packs: list[linear.PackedLinear], bias: torch.Tensor | None, dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """Query, key and value [batch, heads, steps, width of a head]."""
        found: list[torch.Tensor] = []
        biases: Any = [None] * len(packs) if bias is None else bias.split([pack.n for pack in packs])
        for x, pack, shift in zip(given, packs, biases, strict=True):
            y = linear.linear(x, pack, shift, out_dtype=dtype)
            found += y.chunk(pack.n // pack.k, dim=-1)
        return [by_heads(y if self.batch_first else y.transpose(0, 1), self.heads) for y in found]

    def _takes_the_fast_path(self, x: Any, tensors: Tensors) -> bool:
        """Which of its two ways torch takes for this call: the other's result lies in memory step by step."""
        weight, _, bias, _ = tensors
        return (
            self.batch_first
            and self.heads % 2 == 0
            and x.sharing() == "self"
            and bias is not None
            and weight is not None
            and x[0].dtype == weight.dtype == bias.dtype
            and not any(mask is not None and mask.is_floating_point() for mask in x[3:])
            and torch.backends.mha.get_fastpath_enabled()
        )

    def original(self, module: nn.Module, x: Any) -> Any:
        query, key, value, padding, mask = x
        y = module.forward(
            query, key, value, key_padding_mask=padding, need_weights=x.need_weights, attn_mask=mask,
            average_attn_weights=x.averaged, is_causal=x.causal,
        )  # fmt: skip
        return y if x.need_weights else y[:1]

    def sample(self, module: nn.Module, x: Any) -> tuple[Any, float]:
        query, key, _, padding, mask = x
        axis = 0 if self.batch_first else 1
        batch, steps, seen = query.size(axis), query.size(1 - axis), key.size(1 - axis)
        macs = macs_of(batch, steps, seen, query.size(-1))
        some = max(1, int(guards.TRIAL_MACS * batch // macs))
        if some >= batch or (mask is not None and mask.dim() == 3):
            return x.like(*_once(x, torch.Tensor.detach)), macs
        cut = _once(x[:3], lambda tensor: tensor.detach().narrow(axis, 0, some))
        return x.like(*cut, None if padding is None else padding[:some], mask), macs


def _once(tensors: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
    """Each tensor changed, and those that were one tensor one tensor again."""
    made: dict[int, Any] = {}
    for tensor in tensors:
        if tensor is not None and id(tensor) not in made:
            made[id(tensor)] = change(tensor)
    return [None if tensor is None else made[id(tensor)] for tensor in tensors]


def macs_of(batch: int, steps: int, seen: int, width: int) -> float:
    return float(batch * width * (2 * (steps + seen) * width + 2 * steps * seen))


def plan(piece: PrecisionPiece, tensors: list[torch.Tensor | None]) -> torch.dtype | str:
    """The dtype to multiply in, for inputs, the first of them first, and weights that all have one; or why not."""
    given = {tensor.dtype for tensor in tensors if tensor is not None}
    if not given <= set(DTYPES) or (len(given) > 1 and not piece.options.autocast):
        return "input and weights differ in dtype, or there is no kernel for it"
    if not native.available():
        return f"left to torch: {native.reason()}"
    dtype = torch.bfloat16 if torch.bfloat16 in given else piece.options.dtype
    if piece.options.low_memory and dtype == torch.float32:
        return "low memory: a float32 pack would be a second copy"
    x = tensors[0]
    assert x is not None
    return piece.hold(dtype, x.numel() // x.shape[-1])


def by_heads(y: torch.Tensor, heads: int) -> torch.Tensor:
    """[batch, steps, width] as [batch, heads, steps, width of a head], a view."""
    return y.unflatten(-1, (heads, -1)).transpose(1, 2)


def projections(attention: Any) -> Tensors | None:
    """Both weights, both biases; None where the module is of another make, or the products are the script's own function."""
    if not gates.class_is_plain(nn.Linear):
        return None
    parameters = attention.__dict__["_parameters"]
    outer = attention.out_proj.__dict__["_parameters"]
    weight = parameters.get("in_proj_weight")
    if weight is None or outer.get("weight") is None or not attention._qkv_same_embed_dim:
        return None
    if attention.bias_k is not None or attention.bias_v is not None or attention.add_zero_attn:
        return None
    return weight, outer["weight"], parameters.get("in_proj_bias"), outer.get("bias")


def _inputs(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs | None:
    """The call's arguments; None where torch has more to say, such as an error."""
    given: dict[str, Any] = dict(zip(PARAMETERS, args, strict=False))
    if len(args) > len(PARAMETERS) or given.keys() & kwargs.keys() or not kwargs.keys() <= set(PARAMETERS):
        return None
    given |= kwargs
    tensors: list[Any] = [given.get(name) for name in ("query", "key", "value")]
    if not all(gates.tensor_is_plain(x) and x.dim() == 3 and x.numel() for x in tensors):
        return None
    query, key, value = tensors
    axis = 0 if module.batch_first else 1
    if any(x.size(-1) != module.embed_dim or x.size(axis) != query.size(axis) for x in tensors) or key.shape != value.shape:
        return None
    padding, mask = given.get("key_padding_mask"), given.get("attn_mask")
    shape = query.size(axis), query.size(1 - axis), key.size(1 - axis)
    if given.get("is_causal") and mask is None:
        return None
    if not masks_are_ordinary(padding, mask, *shape, module.num_heads, query.dtype):
        return None
    inputs = Inputs((query, key, value, padding, mask))
    inputs.need_weights = bool(given.get("need_weights", True))
    inputs.averaged = bool(given.get("average_attn_weights", True))
    inputs.causal = bool(given.get("is_causal", False))
    return inputs


def masks_are_ordinary(padding: Any, mask: Any, batch: int, steps: int, seen: int, heads: int, dtype: torch.dtype) -> bool:
    """Of the right shapes, of one kind, and such that each query sees a key."""
    shapes = {2: (steps, seen), 3: (batch * heads, steps, seen)}
    for one, allowed in ((padding, {2: (batch, seen)}), (mask, shapes)):
        if one is not None and not (gates.tensor_is_plain(one) and one.shape == allowed.get(one.dim())):
            return False
        if one is not None and one.dtype not in (torch.bool, dtype):
            return False
    if padding is not None and mask is not None and padding.dtype != mask.dtype:
        return False
    given = merged(padding, mask, batch, heads)
    return given is None or given.dtype != torch.bool or bool(given.any(-1).all())


def merged(padding: torch.Tensor | None, mask: torch.Tensor | None, batch: int, heads: int) -> torch.Tensor | None:
    """Both masks as one that broadcasts to [batch, heads, steps, keys]: what is seen, or what is added."""
    rows = None if padding is None else padding[:, None, None, :]
    scores = mask if mask is None or mask.dim() == 2 else mask.unflatten(0, (batch, heads))
    both = [one for one in (rows, scores) if one is not None]
    if not both:
        return None
    if both[0].dtype == torch.bool:
        return ~both[0] if len(both) == 1 else ~(both[0] | both[1])
    return both[0] if len(both) == 1 else both[0] + both[1]


def _with_weights(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, *, averaged: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for who wants to see the weights."""
    scores = torch.matmul(q * (1 / math.sqrt(q.size(-1))), k.transpose(-1, -2))
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, dim=-1)
    return torch.matmul(weights, v), weights.mean(1) if averaged else weights
