# SPDX-License-Identifier: Apache-2.0
"""What every kernel asks of its operands: dtypes that it knows, and no gradient to record."""

from __future__ import annotations

import torch

from slipstream.errors import UsageError

DTYPES = (torch.float32, torch.bfloat16)


def check_dtypes(**dtypes: torch.dtype) -> None:
    """Raise UsageError, by the argument's name, for anything but float32 and bfloat16."""
    for argument, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise UsageError.of(argument, dtype, DTYPES)


def check_image(x: torch.Tensor, channels: int) -> None:
    """Raise UsageError unless x is [batch, channels, height, width]."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise UsageError.of("x", f"of shape {tuple(x.shape)}", f"not of shape [batch, {channels}, height, width]")


def refuse_gradients(kernel: str, *tensors: torch.Tensor | None) -> None:
    """Raise RuntimeError where autograd would have to record the call: the kernels record nothing."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise RuntimeError(
            f"slipstream.kernels.{kernel}: an input requires a gradient, and this kernel records none; "
            "call it under torch.no_grad()"
        )
