# SPDX-License-Identifier: Apache-2.0
"""nn.LayerNorm and nn.RMSNorm by our kernel. There is nothing to pack: the parameters are read where they are, at each call."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from slipstream.kernels import native
from slipstream.kernels import norm as kernel
from slipstream.optimize import guards
from slipstream.optimize.options import Options
from slipstream.optimize.pieces.piece import Piece, Tensors

MACS_AN_ELEMENT = 8
"""torch takes a quarter of a nanosecond for an element of a norm, as long as for eight multiply-adds."""

RMS_EPSILON = torch.finfo(torch.float32).eps
"""torch's where none is given, for bfloat16 too: it computes that in float32."""

CLASSES: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.RMSNorm)


class UnpackedPiece(Piece):
    """A norm with a kernel for float32 and bfloat16 that reads the parameters where they are."""

    has_replay = True

    def sources(self, tensors: Tensors) -> Tensors:
        return ()

    def plan(self, x: torch.Tensor, tensors: Tensors) -> torch.dtype | str:
        if x.dtype not in (torch.float32, torch.bfloat16):
            return f"no kernel for {x.dtype}"
        return x.dtype if native.available() else f"left to torch: {native.reason()}"

    def how(self, dtype: torch.dtype) -> str:
        return "native kernel"

    def make(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> tuple[Any, int]:
        return None, 0


class NormPiece(UnpackedPiece):
    """The checks of a call are spelt out rather than looped over: they are half of the time that a small norm takes."""

    act = "norm"
    margin = 1.1  # the checks around a call are not timed, and a norm is short

    def __init__(self, module: nn.Module, name: str, options: Options) -> None:
        super().__init__(module, name, options)
        norm: Any = module
        self.centred = isinstance(module, nn.LayerNorm)
        self.shape: tuple[int, ...] = norm.normalized_shape
        self.elements = math.prod(self.shape)

    def tensors(self, module: nn.Module) -> Tensors | None:
        parameters = module.__dict__["_parameters"]
        try:
            found = (parameters["weight"], parameters["bias"]) if self.centred else (parameters["weight"],)
        except KeyError:
            return None  # it has become something else: parametrized, for one
        for tensor in found:
            if tensor is not None and (type(tensor) is not nn.Parameter or not tensor.is_cpu):
                return None
        return found if module.__dict__["normalized_shape"] is self.shape else None

    def size_of(self, module: nn.Module, x: torch.Tensor) -> Hashable | None:
        elements = x.numel()
        if not elements or x.shape[-len(self.shape) :] != self.shape:
            return None
        dtype, held = x.dtype, None
        for tensor in module.__dict__["_parameters"].values():
            if tensor is not None:
                held = tensor.dtype
                if held is not dtype and not (self.centred and held is torch.float32 and dtype is torch.bfloat16):
                    return None  # torch raises, or warns
        return dtype, held, elements.bit_length()

    def kind(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> Hashable:
        return ("norm", self.centred, self.shape, dtype, tuple(tensor is None for tensor in tensors))

    def run(self, module: nn.Module, x: torch.Tensor, content: Any, tensors: Tensors) -> torch.Tensor:
        if len(self.shape) > 1:
            rows = x.flatten(-len(self.shape))
            flat = tuple(None if tensor is None else tensor.flatten() for tensor in tensors)
            return self._norm(module, rows, flat).view(x.shape)
        return self._norm(module, x, tensors)

    def _norm(self, module: nn.Module, rows: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        eps: Any = module.eps
        if self.centred:
            return kernel.layer_norm(rows, tensors[0], tensors[1], eps)
        return kernel.rms_norm(rows, tensors[0], RMS_EPSILON if eps is None else eps)

    def sample(self, module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        wanted = max(1, int(guards.TRIAL_MACS // (self.elements * MACS_AN_ELEMENT)))
        rows = x.numel() // self.elements
        part = x if rows <= wanted else x.reshape(rows, *self.shape)[:wanted]
        return part.detach(), float(x.numel() * MACS_AN_ELEMENT)

    def replay(self, module: nn.Module, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        eps: Any = module.eps
        if self.centred:
            return nn.functional.layer_norm(x, self.shape, tensors[0], tensors[1], eps)
        return nn.functional.rms_norm(x, self.shape, tensors[0], eps)
