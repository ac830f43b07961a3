# SPDX-License-Identifier: Apache-2.0
"""nn.LSTMCell, nn.GRUCell and nn.RNNCell on packed weights: one step a call, as decoders take them.

Unbatched input is left alone, and so is all without the native extension or in the script's own autocast.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from slipstream.kernels import recurrent as kernel
from slipstream.optimize import gates
from slipstream.optimize.options import Options
from slipstream.optimize.pieces.piece import Piece, Tensors
from slipstream.optimize.pieces.recurrent import RecurrentPiece

KINDS: dict[type[nn.Module], str] = {nn.LSTMCell: "lstm", nn.GRUCell: "gru", nn.RNNCell: "rnn"}


class RecurrentCellPiece(RecurrentPiece):
    """The input of a call is (input [B, I], hidden state [B, H], cell state, None), the answer (hidden state[, cell state]).

    What the caller did not give is None.
    """

    def __init__(self, module: nn.Module, name: str, options: Options) -> None:
        Piece.__init__(self, module, name, options)
        kind = next(kind for kind_of, kind in KINDS.items() if isinstance(module, kind_of))
        self.cell = f"rnn_{module.nonlinearity}" if kind == "rnn" else kind
        self.act = f"packed {kind} cell{', in autocast' if options.autocast else ''}"
        self.directions = 1

    def _inputs(self, module: Any, given: Any, hx: Any) -> tuple[torch.Tensor | None, ...] | None:
        """Input and states as torch would take them; None where it has more to say, such as an error."""
        if not gates.tensor_is_plain(given) or given.dim() != 2 or not given.numel() or given.size(1) != module.input_size:
            return None
        states = self._states(given, hx, *[(given.size(0), module.hidden_size)] * 2)
        if states is None:
            return None
        return (given, *states, *(None,) * (3 - len(states)))

    def _as_called(self, given: Any, y: Any, *states: torch.Tensor) -> Any:
        return (y, *states) if self.cell == "lstm" else y

    def tensors(self, module: nn.Module) -> Tensors | None:
        parameters = module.__dict__["_parameters"]
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        found = tuple(parameters[name] for name in names if parameters.get(name) is not None)
        return found if len(found) == (4 if module.bias else 2) else None  # else it is parametrized

    def _extent(self, module: Any, x: Any) -> tuple[int, int]:
        return 1, x[0].size(0)

    def plan(self, x: Any, tensors: Tensors) -> torch.dtype | str:
        return "a cell in autocast is left to torch" if self.options.autocast else super().plan(x, tensors)

    def kind(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> Hashable:
        return (self.cell, "cell", tuple(tuple(tensor.shape) for tensor in tensors if tensor is not None), dtype)

    def make(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> tuple[Any, int]:
        weights = [tensor for tensor in tensors if tensor is not None]
        packed = kernel.pack(self.cell, weights, bias=len(weights) == 4, dtype=dtype)
        return packed, packed.bytes

    def run(self, module: nn.Module, x: Any, content: Any, tensors: Tensors) -> Any:
        data, *states = (None if part is None else part[None] for part in x[:3])
        assert data is not None
        _, *states = kernel.recurrent(data, content, *states, out_dtype=x[0].dtype)
        return tuple(state[0] for state in states if state is not None)

    def sample(self, module: nn.Module, x: Any) -> tuple[Any, float]:
        given = tuple(None if part is None else part.detach() for part in x)
        weights = sum(weight.numel() for weight in module.parameters() if weight.dim() == 2)
        return given, float(weights * x[0].size(0))

    def original(self, module: nn.Module, x: Any) -> Any:
        data, h, c, _ = x
        states = module.forward(data, h if c is None else (h, c))
        return states if self.cell == "lstm" else (states,)
