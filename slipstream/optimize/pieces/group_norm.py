# SPDX-License-Identifier: Apache-2.0
"""nn.GroupNorm by our kernel, in the memory format that torch's own keeps. The parameters are read at each call."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from slipstream.kernels import norm as kernel
from slipstream.optimize import guards
from slipstream.optimize.options import Options
from slipstream.optimize.pieces import layouts
from slipstream.optimize.pieces.norm import MACS_AN_ELEMENT, UnpackedPiece
from slipstream.optimize.pieces.piece import Tensors


class GroupNormPiece(UnpackedPiece):
    act = "group norm"
    margin = 1.2  # the checks around a call are not timed, and the images that it reads lie in others' caches

    def __init__(self, module: nn.Module, name: str, options: Options) -> None:
        super().__init__(module, name, options)
        norm: Any = module
        self.groups: int = norm.num_groups
        self.channels: int = norm.num_channels

    def tensors(self, module: nn.Module) -> Tensors | None:
        parameters, settings = module.__dict__["_parameters"], module.__dict__
        if "weight" not in parameters or "bias" not in parameters:
            return None  # it has become something else: parametrized, for one
        found = parameters["weight"], parameters["bias"]
        if any(tensor is not None and (type(tensor) is not nn.Parameter or not tensor.is_cpu) for tensor in found):
            return None
        return found if (settings["num_groups"], settings["num_channels"]) == (self.groups, self.channels) else None

    def size_of(self, module: nn.Module, x: torch.Tensor) -> Hashable | None:
        if x.dim() < 2 or x.shape[1] != self.channels or x.numel() <= self.groups:
            return None
        dtype, held = x.dtype, set()
        for tensor in module.__dict__["_parameters"].values():
            if tensor is not None:
                held.add(tensor.dtype)
                if tensor.shape != (self.channels,):
                    return None
        if held - {dtype} and not (held == {torch.float32} and dtype is torch.bfloat16):
            return None  # torch raises
        return dtype, tuple(held), _format_of(x), x.numel().bit_length()

    def kind(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> Hashable:
        return ("group norm", self.groups, self.channels, dtype, tuple(tensor is None for tensor in tensors))

    def run(self, module: nn.Module, x: torch.Tensor, content: Any, tensors: Tensors) -> torch.Tensor:
        eps: Any = module.eps
        wanted = _format_of(x)
        y = kernel.group_norm(x.contiguous(memory_format=wanted), self.groups, tensors[0], tensors[1], eps)
        return y if wanted is torch.contiguous_format else layouts.as_expected(y, x.dtype, True)

    def sample(self, module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        wanted = int(guards.TRIAL_MACS // (x.numel() // x.shape[0] * MACS_AN_ELEMENT))
        return x[: max(1, wanted)].detach(), float(x.numel() * MACS_AN_ELEMENT)

    def replay(self, module: nn.Module, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        eps: Any = module.eps
        return nn.functional.group_norm(x, self.groups, tensors[0], tensors[1], eps)


def _format_of(x: torch.Tensor) -> torch.memory_format:
    """That of torch's answer."""
    last = x.dim() in layouts.CHANNELS_LAST and layouts.strides_say_channels_last(x.shape, x.stride())
    return layouts.CHANNELS_LAST[x.dim()] if last else torch.contiguous_format
