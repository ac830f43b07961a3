# SPDX-License-Identifier: Apache-2.0
"""The user's own torch.compile compiles the user's code, not ours.

Where dynamo gives a function up (an LSTM in it, a graph break), it runs that function plainly and tries each Python
frame below it instead, and so it would come to our gates and pieces: graphs of nothing, guarded by a tensor's version,
compiled again and again. Marked as here their frames run as they are, and frames of the user's below them are
still looked at. Functions that a graph takes in (`scaled_dot_product_attention`) are taken in as before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch._C._dynamo import eval_frame

OURS = ("slipstream.optimize.", "slipstream.kernels.", "slipstream.decision", "slipstream.autopatch.process_report")


def leave_our_frames_alone() -> None:
    """Mark the code of every module of ours that a call may run through; once more does no harm."""
    frame: Any = eval_frame
    skip, default = frame._FrameAction.SKIP, frame._FrameAction.DEFAULT
    plainly = frame._FrameExecStrategy(skip, default)  # this frame, not those that it calls
    for name, module in list(sys.modules.items()):
        if name.startswith(OURS) and isinstance(module, ModuleType):
            for code in _codes_of(module):
                frame.set_code_exec_strategy(code, plainly)


def _codes_of(module: ModuleType) -> Iterator[CodeType]:
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        for member in vars(value).values() if isinstance(value, type) else (value,):
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if isinstance(function, FunctionType):
                yield from _with_nested(function.__code__)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)
