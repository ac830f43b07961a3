# SPDX-License-Identifier: Apache-2.0
"""Activation modules that can be fused behind a linear layer or a convolution, and their names down below."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Activation:
    """``post_op`` is the name in our kernels (None: they lack it); the rest is for torch's oneDNN operators."""

    post_op: str | None
    attribute: str
    scalars: tuple[float, ...] = ()
    algorithm: str = ""


NONE = Activation("none", "none")


def find(module: nn.Module) -> Activation | None:
    """The fusable form of a module, exact classes only; None for anything else."""
    kind = type(module)
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if isinstance(module, nn.GELU) and kind is nn.GELU:
        erf = module.approximate == "none"
        return Activation("gelu_erf" if erf else "gelu_tanh", "gelu", (), module.approximate)
    if isinstance(module, nn.ReLU6) and kind is nn.ReLU6:
        return Activation(None, "hardtanh", (0.0, 6.0))
    if isinstance(module, nn.LeakyReLU) and kind is nn.LeakyReLU:
        return Activation(None, "leaky_relu", (module.negative_slope,))
    return None


_SIMPLE: dict[type[nn.Module], Activation] = {
    nn.ReLU: Activation("relu", "relu"),
    nn.SiLU: Activation("silu", "swish"),
    nn.Tanh: Activation("tanh", "tanh"),
    nn.Sigmoid: Activation("sigmoid", "sigmoid"),
    nn.Hardswish: Activation(None, "hardswish"),
    nn.Hardsigmoid: Activation(None, "hardsigmoid"),
}
