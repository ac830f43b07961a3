# SPDX-License-Identifier: Apache-2.0
"""Layers that put a forward of their own around the stock operator, as openai-whisper's `Linear`, timm's `Conv2dSame` and
loralib's layers do.

What such a forward does besides only it knows, so it runs. But the function of `torch.nn.functional` through which it comes to
the operator asks here whether it is given the weight of the layer that is being called, with the layer's own settings; then
it is the stock operator, and the layer's piece answers. The functions are replaced once there is such a layer, no sooner.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from slipstream.decision import log
from slipstream.optimize import gates
from slipstream.optimize.options import Options
from slipstream.optimize.pieces.convolution import ConvolutionPiece
from slipstream.optimize.pieces.linear import LinearPiece
from slipstream.optimize.pieces.piece import Tensors

FUNCTIONS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
}
"""Leaf class → the function of `torch.nn.functional` that its forward calls."""

_originals: dict[str, Callable[..., torch.Tensor]] = {name: getattr(functional, name) for name in FUNCTIONS.values()}


class _Calls(threading.local):
    """The layer that is being called on this thread, the innermost one."""

    layer: OwnForward | None = None


_calls = _Calls()


class _Linear(LinearPiece):
    """Answers for the operator within a forward; what it is compared with is the operator, too."""

    def original(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        return _originals["linear"](x, module.weight, module.bias)

    def fits(self, module: Any, settings: tuple[Any, ...]) -> bool:
        return not settings


class _Convolution(ConvolutionPiece):
    """The same of convolutions."""

    def original(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        return self._computed(module, x, module.weight, module.bias)

    def replay(self, module: nn.Module, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        return self._computed(module, x, tensors[0], tensors[1])

    def _computed(self, module: Any, x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
        function = _originals[f"conv{self.rank}d"]
        return function(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)

    def fits(self, module: Any, settings: tuple[Any, ...]) -> bool:
        """Whether a call with these arguments behind the bias is the layer's own convolution."""
        given = dict(zip(("stride", "padding", "dilation", "groups"), settings, strict=False))
        return module.padding_mode == "zeros" and all(
            self._wide(given.get(name, default)) == self._wide(getattr(module, name))
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
        )

    def _wide(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, (tuple, list)) else value if isinstance(value, str) else (value,) * self.rank


class OwnForward:
    """In the call slot of such a layer: its forward runs, and is known to be running."""

    def __init__(self, module: nn.Module, piece: _Linear | _Convolution) -> None:
        self.module = weakref.ref(module)
        self.piece = piece

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module()
        assert module is not None  # it is being called
        if torch.compiler.is_dynamo_compiling():
            return module._call_impl(*args, **kwargs)
        outer, _calls.layer = _calls.layer, self
        try:
            return module._call_impl(*args, **kwargs)
        finally:
            _calls.layer = outer

    def answer(self, x: Any = None, weight: Any = None, bias: Any = None, *settings: Any, **named: Any) -> torch.Tensor | None:
        """The operator's answer to a call of torch's function, or None where that has to give it, be it an error."""
        module = self.module()
        parameters: dict[str, Any] = {} if module is None else module.__dict__["_parameters"]
        if weight is None or parameters.get("weight") is not weight or parameters.get("bias") is not bias:
            return None
        if named or not (gates.tensor_is_plain(x) and gates.call_is_plain() and self.piece.fits(module, settings)):
            return None
        return self.piece.answer(module, x)  # type: ignore[arg-type, no-any-return]


def adopt(module: nn.Module, leaf: type[nn.Module], name: str, options: Options) -> OwnForward | None:
    """What is to stand in the call slot of a module whose class gives the leaf class ``leaf`` another forward, if anything."""
    if leaf not in FUNCTIONS or not gates.function_is_plain(FUNCTIONS[leaf]):
        return None
    piece: Any = _Linear if leaf is nn.Linear else _Convolution
    if options.low_memory:
        why = "low memory: its class has a forward of its own, which reads the weight itself at every call"
        log.note(f"{name}: {piece.act}", False, why)
        return None
    _replace_functions()
    return OwnForward(module, piece(module, name, options))


def let_go() -> None:
    """Give torch its functions back, where nobody has put others in their place since."""
    for name, function in _originals.items():
        if getattr(functional, name) is _ASKING[name]:
            setattr(functional, name, function)


def _replace_functions() -> None:
    for name, function in _originals.items():
        if getattr(functional, name) is function:
            setattr(functional, name, _ASKING[name])
            # torch.jit knows what a name means by the identity of the function behind it
            torch.jit._builtins._register_builtin(_ASKING[name], f"aten::{name}")


def _asking(name: str) -> Callable[..., torch.Tensor]:
    original = _originals[name]

    def function(*args: Any, **kwargs: Any) -> torch.Tensor:
        layer = None if torch.compiler.is_compiling() else _calls.layer
        y = None if layer is None else layer.answer(*args, **kwargs)
        return original(*args, **kwargs) if y is None else y

    function.__name__ = function.__qualname__ = name
    function.__module__, function.__doc__ = functional.__name__, original.__doc__
    return function


_ASKING = {name: _asking(name) for name in _originals}
for _name, _function in _ASKING.items():
    gates.means_the_same(_name, _function)
