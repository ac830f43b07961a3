# SPDX-License-Identifier: Apache-2.0
"""Attention in float64, step by step, and how far from it a kernel may be."""

import math

import torch

DTYPES = [torch.float32, torch.bfloat16]
BOUND = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def oracle(query, key, value, mask=None, *, causal=False, scale=None, softcap=None, window=None):
    group = query.shape[1] // key.shape[1]
    q, k, v = query.double(), key.double().repeat_interleave(group, 1), value.double().repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask.double()
    i, j = torch.arange(scores.shape[-2])[:, None], torch.arange(scores.shape[-1])
    if causal:
        scores = scores.masked_fill(j > i, -math.inf)
    if window is not None:
        scores = scores.masked_fill((i - j).abs() >= window, -math.inf)
    return torch.nan_to_num(scores.softmax(-1), nan=0.0) @ v


def error(y, expected):
    """Relative, in the norm."""
    return ((y.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()
