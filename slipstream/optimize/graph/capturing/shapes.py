# SPDX-License-Identifier: Apache-2.0
"""Results of which a capture needs the shape alone, where torch works them out at length.

The sum of overlapping frames, of which `torch.istft` is made, is written out as a loop over the samples of a frame where a
batch shares one window: 4096 rounds of 10 ms, in which nothing is computed (torch 2.13, `_decomp.unfold_backward`).
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor


def instead() -> list[tuple[Any, str, Any]]:
    """Whose attribute of which name is what during a capture of this thread's."""
    from torch import _decomp

    frames = torch.ops.aten.unfold_backward.default
    written_out = _decomp.decomposition_table.get(frames)
    if written_out is None:
        return []
    thread = threading.get_ident()

    @functools.wraps(written_out)
    def shape_alone(grad: Any, sizes: Any, *others: Any) -> Any:
        if threading.get_ident() != thread or not isinstance(grad, FakeTensor):
            return written_out(grad, sizes, *others)
        return grad.new_empty(sizes)

    return [(_decomp, "decomposition_table", {**_decomp.decomposition_table, frames: shape_alone})]
