# SPDX-License-Identifier: Apache-2.0
"""Loads the native extension once, or keeps the reason why not; tells and sets the instruction-set level in use."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator

import torch

from slipstream import env
from slipstream.errors import NativeUnavailable, UsageError

LEVELS = ("baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")
"""Ascending; each level includes all before it."""

EMULATED = "amx_emulated"
"""The tile kernels on plain C++ tiles: for tests on machines without AMX, and only when asked for by name."""

_LIBRARY = pathlib.Path(__file__).parents[1] / "_native.so"


@functools.cache
def _why_not_loaded() -> str | None:
    """None once the extension is loaded, else a sentence."""
    if not env.is_on(env.NATIVE, default=True):
        return f"{env.NATIVE}=0 switches the native extension off"
    if not _LIBRARY.exists():
        return "the native extension was not built (no C++ compiler at installation?); the plain-torch twins serve"
    try:
        torch.ops.load_library(str(_LIBRARY))
    except (OSError, RuntimeError) as error:
        return f"the native extension did not load: {error}"
    _register_fakes()
    forced = env.read(env.ISA)
    if forced is not None:
        use_level(forced)
    return None


def available() -> bool:
    """Whether native kernels can be called."""
    return _why_not_loaded() is None


def reason() -> str:
    """Why native kernels are, or are not, in use: one sentence."""
    return _why_not_loaded() or f"native kernels at level {active_level()}"


def require() -> None:
    """Raise `NativeUnavailable` where the extension did not load."""
    why = _why_not_loaded()
    if why is not None:
        raise NativeUnavailable(why)


def best_level() -> str:
    """The highest level of this machine; "none" without the extension."""
    return str(torch.ops.slipstream.level("best")) if available() else "none"


def active_level() -> str:
    """The level in use; "none" without the extension."""
    return str(torch.ops.slipstream.level("active")) if available() else "none"


def levels() -> tuple[str, ...]:
    """The levels that this machine can run, ascending; empty without the extension."""
    return LEVELS[: LEVELS.index(best_level()) + 1] if available() else ()


def use_level(name: str) -> None:
    """Use a level in this process from now on.

    Raises UsageError for an unknown name and for a level above the machine's own.
    """
    if name not in (*LEVELS, EMULATED):
        raise UsageError.of(env.ISA, name, (*LEVELS, EMULATED))
    if not torch.ops.slipstream.use_level(name):
        best = str(torch.ops.slipstream.level("best"))
        raise UsageError.of(env.ISA, name, f"this machine runs levels up to {best}", "name one of those or unset it")


@contextlib.contextmanager
def level(name: str) -> Iterator[None]:
    """Use a level for a while (process-wide, so not beside other threads)."""
    require()
    before = active_level()
    use_level(name)
    try:
        yield
    finally:
        use_level(before)


def _register_fakes() -> None:
    """Shapes and dtypes of the operators' results, for dynamo, export and torch.compile."""

    @torch.library.register_fake("slipstream::pack_linear")
    def _(weight: torch.Tensor, bfloat16: bool) -> torch.Tensor:
        n, k = weight.shape
        columns, depth = (n + 31) // 32 * 32, (k + 31) // 32 * 32 if bfloat16 else k
        return weight.new_empty(columns * depth, dtype=torch.bfloat16 if bfloat16 else torch.float32)

    @torch.library.register_fake("slipstream::linear")
    def _(
        x: torch.Tensor, packed: torch.Tensor, n: int, k: int, bias: torch.Tensor | None, post_op: int,
        multiplier: torch.Tensor | None, residual: torch.Tensor | None, bfloat16_out: bool, residual_first: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        return x.new_empty((*x.shape[:-1], n), dtype=torch.bfloat16 if bfloat16_out else torch.float32)

    @torch.library.register_fake("slipstream::activation")
    def _(x: torch.Tensor, post_op: int, bfloat16_out: bool) -> torch.Tensor:
        return torch.empty_like(x, dtype=torch.bfloat16 if bfloat16_out else torch.float32)

    @torch.library.register_fake("slipstream::transpose")
    def _(x: torch.Tensor, bfloat16_out: bool) -> torch.Tensor:
        batch, rows, columns = x.shape
        return x.new_empty(batch, columns, rows, dtype=torch.bfloat16 if bfloat16_out else torch.float32)

    @torch.library.register_fake("slipstream::attention")
    def _(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, causal: bool, scale: float,
        bfloat16: bool, bfloat16_out: bool,
    ) -> torch.Tensor:  # fmt: skip
        batch, heads, length, _ = query.shape
        dtype = torch.bfloat16 if bfloat16_out else torch.float32
        return query.new_empty(batch, length, heads, value.shape[3], dtype=dtype).transpose(1, 2)

    @torch.library.register_fake("slipstream::pack_convolution")
    def _(weight: torch.Tensor, bfloat16: bool) -> torch.Tensor:
        out, ins, height, width = weight.shape
        halves = bfloat16 and ins > 1
        depth, line = (2, 32) if halves else (1, 16)
        elements = (ins + depth - 1) // depth * depth * height * width
        row = ((elements + line - 1) // line | 1) * line
        return weight.new_empty(out, row, dtype=torch.bfloat16 if halves else torch.float32)

    @torch.library.register_fake("slipstream::convolution")
    def _(
        x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, groups: int, numbers: list[int], post_op: int,
        residual: torch.Tensor | None, bfloat16_out: bool,
    ) -> torch.Tensor:  # fmt: skip
        kernel, stride, padding, dilation = (numbers[i : i + 2] for i in range(0, 8, 2))
        size = [
            (x.shape[2 + i] + 2 * padding[i] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1 for i in range(2)
        ]
        dtype = torch.bfloat16 if bfloat16_out else torch.float32
        return x.new_empty(x.shape[0], packed.shape[0], *size, dtype=dtype)
