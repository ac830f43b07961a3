# SPDX-License-Identifier: Apache-2.0
"""Scores between content and relative position, as disentangled attention adds them to its own (DeBERTa, arXiv 2006.03654).

Only those products are computed that a position is looked up in: with L queries and keys, some L + 32 rows of a table for each.
"""

from __future__ import annotations

import torch

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.operands import check_dtypes, refuse_gradients


def relative_scores(
    query: torch.Tensor, key: torch.Tensor, query_table: torch.Tensor | None, query_index: torch.Tensor | None,
    key_table: torch.Tensor | None, key_index: torch.Tensor | None, *, query_scale: float = 1.0, key_scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    """y [B, H, L, S] float32 of query [B, H, L, D] and key [B, H, S, D]; either term may be left out, as None:

    y[b, h, i, j] = query_scale · query[b, h, i] · query_table[h, query_index[i, j]]
                  + key_scale · key[b, h, j] · key_table[h, key_index[i, j]]

    Tables are [H, P, D] of float32 or bfloat16, an index int32 [L, S] of row numbers from 0 to P - 1. ``dtype`` is what is
    multiplied, query's by default. Any strides.
    Raises UsageError for a dtype that is not float32 or bfloat16, RuntimeError for what does not fit together, for a position
    beyond its table, and where a gradient would have to be recorded.
    """
    dtype = query.dtype if dtype is None else dtype
    given = {"query_table": query_table, "key_table": key_table}
    tables = {name: table.dtype for name, table in given.items() if table is not None}
    check_dtypes(query=query.dtype, key=key.dtype, dtype=dtype, **tables)
    refuse_gradients("relative_scores", query, key, query_table, key_table)
    if not tables:
        raise UsageError.of("query_table", None, "neither query_table nor key_table", "give at least one of them")
    if not native.available():
        return plain_relative_scores(
            query, key, query_table, query_index, key_table, key_index, query_scale=query_scale, key_scale=key_scale,
            dtype=dtype,
        )  # fmt: skip
    made: torch.Tensor = torch.ops.slipstream.relative_scores.default(
        query, key, query_table, None if query_index is None else query_index.contiguous(), query_scale,
        key_table, None if key_index is None else key_index.contiguous(), key_scale, dtype is torch.bfloat16,
    )  # fmt: skip
    return made


def plain_relative_scores(
    query: torch.Tensor, key: torch.Tensor, query_table: torch.Tensor | None, query_index: torch.Tensor | None,
    key_table: torch.Tensor | None, key_index: torch.Tensor | None, *, query_scale: float = 1.0, key_scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    """The twin: products with whole tables, then what is asked for of them."""
    dtype = query.dtype if dtype is None else dtype
    shape = (*query.shape[:3], key.shape[2])
    scores = query.new_zeros(shape, dtype=torch.float32)
    if query_table is not None and query_index is not None:
        found = query.to(dtype) @ query_table.to(dtype).transpose(1, 2)
        scores = scores + found.gather(3, query_index.long().expand(shape)) * query_scale
    if key_table is not None and key_index is not None:
        found = key.to(dtype) @ key_table.to(dtype).transpose(1, 2)
        turned = key_index.long().T.expand(*shape[:2], shape[3], shape[2])
        scores = scores + found.gather(3, turned).transpose(2, 3) * key_scale
    return scores
