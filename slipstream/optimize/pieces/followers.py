# SPDX-License-Identifier: Apache-2.0
"""What may follow a weight layer inside one fused piece: a batch norm to fold, an activation.

`Followers` also says, call by call, whether folding is still what the modules would compute: a batch norm that
trains, keeps no statistics, or was given another epsilon is not folded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Tensors = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True)
class Activation:
    """``post_op`` is the name in our kernels (None: they lack it); the rest is for torch's oneDNN operators."""

    post_op: str | None
    attribute: str
    scalars: tuple[float, ...] = ()
    algorithm: str = ""


NONE = Activation("none", "none")


def fusable(module: nn.Module) -> Activation | None:
    """The fusable form of a module, exact classes only; None for anything else."""
    kind = type(module)
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if isinstance(module, nn.GELU) and kind is nn.GELU:
        erf = module.approximate == "none"
        return _GELU_ERF if erf else _GELU_TANH
    if isinstance(module, nn.ReLU6) and kind is nn.ReLU6:
        return _RELU6
    if isinstance(module, nn.LeakyReLU) and kind is nn.LeakyReLU:
        return Activation(None, "leaky_relu", (module.negative_slope,))
    return _of_transformers(module)


def _of_transformers(module: nn.Module) -> Activation | None:
    """The same for transformers' activation modules, known by name so that transformers need not be there."""
    if type(module).__module__ != "transformers.activations":
        return None
    name = type(module).__name__
    if name == "GELUActivation" and getattr(module, "act", None) is not torch.nn.functional.gelu:
        return None  # its Python variant was asked for
    return _BY_NAME.get(name)


_SIMPLE: dict[type[nn.Module], Activation] = {
    nn.ReLU: Activation("relu", "relu"),
    nn.SiLU: Activation("silu", "swish"),
    nn.Tanh: Activation("tanh", "tanh"),
    nn.Sigmoid: Activation("sigmoid", "sigmoid"),
    nn.Hardswish: Activation("hardswish", "hardswish"),
    nn.Hardsigmoid: Activation("hardsigmoid", "hardsigmoid"),
}


_GELU_TANH = Activation("gelu_tanh", "gelu", (), "tanh")
_GELU_ERF = Activation("gelu_erf", "gelu", (), "none")
_RELU6 = Activation("relu6", "hardtanh", (0.0, 6.0))
_BY_NAME = {
    "GELUActivation": _GELU_ERF,
    "GELUTanh": _GELU_TANH,
    "NewGELUActivation": _GELU_TANH,
    "FastGELUActivation": _GELU_TANH,
    "AccurateGELUActivation": _GELU_TANH,
    "SiLUActivation": _SIMPLE[nn.SiLU],
}


BY_POST_OP: dict[str, Activation] = {
    str(form.post_op): form for form in (NONE, *_SIMPLE.values(), _GELU_ERF, _GELU_TANH, _RELU6)
}
"""Name in our kernels → what it is for torch's oneDNN operators."""


class Followers:
    """The modules behind a weight layer, in order: perhaps a batch norm, perhaps an activation."""

    def __init__(self, norm: nn.Module | None = None, activation: nn.Module | None = None) -> None:
        self.norm = norm
        self.activation = activation
        found = NONE if activation is None else fusable(activation)
        assert found is not None, "only activations that `fusable` knows are put here"
        self.form = found
        self.epsilon = getattr(norm, "eps", 0.0)

    def still_hold(self) -> bool:
        """Whether the modules are as they were when this was made, in all that is not a tensor."""
        norm: Any = self.norm
        if norm is not None and (
            norm.training or not norm.track_running_stats or norm.running_mean is None or norm.eps != self.epsilon
        ):
            return False
        return self.activation is None or fusable(self.activation) == self.form

    def tensors(self) -> Tensors:
        """What the result depends on beside the weight layer's own: weight, bias, mean, variance of the norm."""
        norm: Any = self.norm
        return () if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)

    def fold(
        self, weight: torch.Tensor, bias: torch.Tensor | None, tensors: Tensors, axis: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight (output channels on ``axis``) and bias that already contain the norm, in float32.

        Without a norm the bias is not part of the pack: layers that share a weight may differ in it.
        """
        if self.norm is None:
            return weight, None
        return fold_batch_norm(weight, bias, tensors, self.epsilon, axis)

    def apply(self, y: torch.Tensor) -> torch.Tensor:
        """The modules themselves, for comparison."""
        for module in (self.norm, self.activation):
            if module is not None:
                y = module.forward(y)
        return y

    def replay(self, y: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """The same with these tensors in place of the norm's own."""
        if self.norm is not None:
            gamma, beta, mean, variance = tensors
            y = torch.nn.functional.batch_norm(y, mean, variance, gamma, beta, False, 0.0, self.epsilon)
        return y if self.activation is None else self.activation.forward(y)  # type: ignore[no-any-return]

    def words(self) -> str:
        """For the report: " + BatchNorm2d + ReLU"."""
        return "".join(f" + {type(module).__name__}" for module in (self.norm, self.activation) if module)


def fold_batch_norm(
    weight: torch.Tensor, bias: torch.Tensor | None, tensors: Tensors, epsilon: float, axis: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias in float32 with the norm in them; ``tensors`` are its weight, bias, mean, variance.

    Scale and shift are computed in float64.
    """
    gamma, beta, mean, variance = tensors
    assert mean is not None and variance is not None
    scale = torch.rsqrt(variance.double() + epsilon)
    if gamma is not None:
        scale = scale * gamma.double()
    shift = (0.0 if bias is None else bias.double()) - mean.double()
    shift = shift * scale + (0.0 if beta is None else beta.double())
    shape = [1] * weight.dim()
    shape[axis] = -1
    return weight.float() * scale.float().reshape(shape), shift.float()
