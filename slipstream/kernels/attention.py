# SPDX-License-Identifier: Apache-2.0
"""Scaled dot product attention, softmax(scale · Q Kᵀ + mask) V, in bfloat16 or float32, natively or by its twin.

Error against float64, in relative norm on normal data: 2e-6 in float32, 8e-3 in bfloat16 (queries, keys, values and softmax
weights are rounded to it, sums are float32; at level avx512_fp16 they are scaled to float16, as kernels/linear.py says). A row
that may see no key is zero, as in torch.

Levels with tiles may multiply float32 in parts of bfloat16, as kernels/linear.py does: the scores from parts of queries and
keys, the result from parts of the softmax's weights, which are float32 before, and of the values. Three parts err not above
torch's own function in float32, two 1e-5 of what the weights make of the values' magnitudes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.linear import best_parts, check_parts, plain_product
from slipstream.kernels.operands import check_dtypes, refuse_gradients

SPLIT_FROM_ROWS = 64
"""Query rows on one head of keys from which parts of bfloat16 repay that keys and values are split: at depth 64 a block of 128
keys takes 9000 cycles for that, and a strip of 32 rows 8000 instead of 16000. A constant by that count, not by measurement."""


def parts_for(precision: str, query: torch.Tensor, key: torch.Tensor) -> int:
    """Parts of bfloat16 for float32 `attention` of these, at the level in use; 1 where there are no tiles or too few rows."""
    queries, shared = query.shape[2], query.shape[1] // max(1, key.shape[1])
    return best_parts(precision, queries) if queries * shared >= SPLIT_FROM_ROWS else 1


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None, *, causal: bool = False,
    scale: float | None = None, softcap: float | None = None, window: int | None = None, dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None, unseen: float = 0.0, parts: int = 1,
) -> torch.Tensor:  # fmt: skip
    """y [B, H, L, E] of query [B, H, L, D], key [B, G, S, D], value [B, G, S, E]; H is a multiple of G (grouped queries).

    ``mask`` broadcasts to [B, H, L, S] and is not copied for it: bool (True where a key is seen), or float32 or bfloat16, added
    to the scores (ALiBi's biases are one of [H, L, S]). ``causal``: query i sees keys 0 to i. ``window``: query i sees keys
    less than so many places from i, on both sides; blocks of keys outside cost nothing (Longformer, arXiv 2004.05150).
    ``scale`` is 1/√D by default. ``softcap``: scores become softcap · tanh(score / softcap), before the mask (Gemma 2,
    arXiv 2408.00118). ``dtype`` is what is multiplied, ``out_dtype`` the result's; both are query's dtype by default.
    ``unseen`` is what a row becomes that may see no key: 0 as in torch's function, NaN where a softmax is written out. Any
    strides; y's memory is [B, L, H, E], as torch's own kernel gives it.
    With two or three ``parts`` tiles multiply float32 as the sum of so many bfloat16, from 16 queries on; fewer queries, and
    levels without tiles, are multiplied as float32.
    Raises UsageError for a dtype that is not float32 or bfloat16, for a softcap or window that is not positive and for another
    number of parts, RuntimeError where a gradient would have to be recorded.
    """
    dtype = query.dtype if dtype is None else dtype
    out_dtype = query.dtype if out_dtype is None else out_dtype
    check_dtypes(query=query.dtype, key=key.dtype, value=value.dtype, dtype=dtype, out_dtype=out_dtype)
    refuse_gradients("attention", query, key, value, mask)
    if softcap is not None and not 0 < softcap < math.inf:
        raise UsageError.of("softcap", softcap, "not a positive number", "leave it out for uncapped scores")
    if window is not None and window < 1:
        raise UsageError.of("window", window, "not a positive number of keys", "leave it out for all of them")
    check_parts(parts, dtype)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1]) if query.shape[-1] else 1.0
    if not native.available():
        return plain_attention(
            query, key, value, mask, causal=causal, scale=scale, softcap=softcap, window=window, dtype=dtype,
            out_dtype=out_dtype, unseen=unseen, parts=parts,
        )  # fmt: skip
    if mask is not None:
        mask = mask.expand(*query.shape[:3], key.shape[2])
    return torch.ops.slipstream.attention.default(
        query, key, value, mask, causal, scale, dtype is torch.bfloat16, out_dtype is torch.bfloat16,
        softcap or 0.0, window or 0, unseen, parts,
    )  # fmt: skip


def plain_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None, *, causal: bool = False,
    scale: float | None = None, softcap: float | None = None, window: int | None = None, dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None, unseen: float = 0.0, parts: int = 1,
) -> torch.Tensor:  # fmt: skip
    """The twin: torch's own operator on cast inputs; softmax between two products where scores are capped, or of parts.

    torch's takes a mask or ``causal``, so causal becomes a mask beside one, and a window does.
    """
    dtype = query.dtype if dtype is None else dtype
    out_dtype = query.dtype if out_dtype is None else out_dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if mask is not None:
        if mask.dtype is not torch.bool:  # the least finite number stays finite
            mask, most = mask.float(), torch.finfo(dtype).max
            mask = torch.where(mask.isinf(), mask, mask.clamp(-most, most)).to(dtype)
        mask = mask.expand(*query.shape[:3], key.shape[2])
    written_out = softcap is not None or parts > 1
    if window is not None or (causal and (mask is not None or written_out)):
        seen = _seen(query.shape[2], key.shape[2], causal, window)
        if mask is not None:
            seen = mask & seen if mask.dtype is torch.bool else mask.masked_fill(~seen, -math.inf)
        mask, causal = seen, False
    if written_out:
        made = _written_out(query, key, value, mask, scale, softcap, parts)
    else:
        made = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scale, enable_gqa=True)
    if unseen and mask is not None:
        seen = mask if mask.dtype is torch.bool else mask != -math.inf
        made = made.masked_fill(~seen.any(-1, keepdim=True), unseen)
    return made.to(out_dtype)


def _seen(queries: int, keys: int, causal: bool, window: int | None) -> torch.Tensor:
    """[queries, keys]: which key a query may see by their numbers."""
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        seen = seen.tril()
    return seen if window is None else seen.tril(window - 1).triu(1 - window)


def _written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float | None,
    softcap: float | None, parts: int,
) -> torch.Tensor:  # fmt: skip
    """Scores and their weights in float32; in bfloat16 the weights are rounded, as the kernels round them."""
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = _product(query.float(), key.float().transpose(-1, -2), parts)
    scores = scores * scale if softcap is None else torch.tanh(scores * (scale / softcap)) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    hidden = (scores == -math.inf).all(-1, keepdim=True)
    return _product(scores.softmax(-1).masked_fill(hidden, 0.0).to(value.dtype), value, parts)


def _product(a: torch.Tensor, b: torch.Tensor, parts: int) -> torch.Tensor:
    return plain_product(a, b, parts, torch.matmul) if parts > 1 else a @ b
