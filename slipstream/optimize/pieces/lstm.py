# SPDX-License-Identifier: Apache-2.0
"""nn.LSTM on prepacked oneDNN weights, a layer and a direction at a time, as torch itself runs it.

torch already calls this operator with plain weights; what is gained is the packing on every call, and bfloat16.
Packed sequences, projections and unbatched input are left to the original.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from slipstream.optimize import gates, guards
from slipstream.optimize.options import Options
from slipstream.optimize.pieces.linear import onednn_has_bfloat16
from slipstream.optimize.pieces.piece import Piece, Tensors

LSTM_MODE = 2
"""ideep::rnn_kind::LSTM, third_party/ideep/include/ideep/abstract_types.hpp."""


class LstmPiece(Piece):
    """The input of a call is the triple (input, hidden state, cell state), the answer what nn.LSTM returns."""

    act = "prepacked lstm"

    def __init__(self, module: nn.LSTM, name: str, options: Options) -> None:
        super().__init__(module, name, options)
        self.directions = 2 if module.bidirectional else 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self.module()
        if 1 <= len(args) + len(kwargs) <= 2 and args and not kwargs.keys() - {"hx"}:
            x, hx = args[0], args[1] if len(args) == 2 else kwargs.get("hx")
            if isinstance(x, PackedSequence):
                self.note(False, "a packed sequence is left to torch")
            elif gates.module_is_plain(module) and gates.tensor_is_plain(x) and gates.call_is_plain():
                inputs = self._inputs(module, x, hx)
                y = None if inputs is None else self.answer(module, inputs)
                if y is not None:
                    return y
        return module._call_impl(*args, **kwargs)

    def _inputs(self, module: Any, x: torch.Tensor, hx: Any) -> tuple[torch.Tensor, ...] | None:
        """Input and states as torch would take them; None where it has more to say, such as an error."""
        if x.dim() != 3 or x.size(2) != module.input_size or not x.numel():
            return None
        batch = x.size(0 if module.batch_first else 1)
        shape = (module.num_layers * self.directions, batch, module.hidden_size)
        if hx is None:
            zeros = torch.zeros(shape, dtype=x.dtype)
            return x, zeros, zeros
        if not isinstance(hx, tuple) or len(hx) != 2:
            return None
        h, c = hx
        if not (gates.tensor_is_plain(h) and gates.tensor_is_plain(c) and h.shape == c.shape == shape):
            return None
        return (x, h, c) if h.dtype == c.dtype == x.dtype else None

    def tensors(self, module: nn.Module) -> Tensors | None:
        lstm: Any = module
        return None if lstm.proj_size else tuple(lstm.__dict__["_flat_weights"])

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors

    def size_of(self, module: nn.Module, x: Any) -> Hashable | None:
        time = 1 if module.batch_first else 0
        return x[0].dtype, x[0].size(time).bit_length(), x[0].size(1 - time).bit_length()

    def plan(self, x: Any, tensors: Tensors) -> torch.dtype | str:
        weight = tensors[0]
        assert weight is not None
        if any(tensor is not None and tensor.dtype != weight.dtype for tensor in (x[0], *tensors)):
            return "input and weights differ in dtype"
        if weight.dtype not in (torch.float32, torch.bfloat16):
            return f"no kernel for {weight.dtype}"
        dtype = torch.bfloat16 if weight.dtype == torch.bfloat16 else self.options.dtype
        if dtype == torch.bfloat16 and not onednn_has_bfloat16():
            return "torch's oneDNN has no bfloat16 on this machine"
        if self.options.low_memory and dtype == weight.dtype == torch.float32:
            return "low memory: a float32 pack would be a second copy"
        return dtype

    def kind(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> Hashable:
        shapes = tuple(tuple(tensor.shape) for tensor in tensors if tensor is not None)
        return ("lstm", shapes, dtype, module.bidirectional, module.batch_first)

    def make(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> tuple[Any, int]:
        lstm: Any = module
        step = 4 if lstm.bias else 2
        cells = []
        for start in range(0, len(tensors), step):
            first, second, *biases = (_detached(tensor, dtype) for tensor in tensors[start : start + step])
            backward = bool(start // step % self.directions)
            packed = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(
                first, second, lstm.hidden_size, backward, lstm.bias, False, None
            )
            biases = biases or [torch.zeros(first.size(0), dtype=dtype)] * 2
            cells.append((*packed, *biases))
        size = sum(tensor.numel() for tensor in tensors if tensor is not None) * dtype.itemsize
        return (cells, dtype), size

    def run(self, module: nn.Module, x: Any, content: Any, tensors: Tensors) -> Any:
        lstm: Any = module
        cells, dtype = content
        outside = x[0].dtype
        y, h, c = (part.to(dtype) for part in x)
        if lstm.batch_first:
            y = y.transpose(0, 1)
        hidden, carried = [], []
        for layer in range(lstm.num_layers):
            y = y.contiguous()
            outputs = []
            for index in range(layer * self.directions, (layer + 1) * self.directions):
                output, last, cell = torch.ops.aten.mkldnn_rnn_layer(
                    y, *cells[index], h[index].unsqueeze(0), c[index].unsqueeze(0),
                    bool(index % self.directions), [], LSTM_MODE, lstm.hidden_size, 1, lstm.bias,
                    False, False, False,
                )[:3]  # fmt: skip
                outputs.append(output)
                hidden.append(last.reshape(h.shape[1:]))
                carried.append(cell.reshape(h.shape[1:]))
            y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        y = y.to(outside)
        states = torch.stack(hidden).to(outside), torch.stack(carried).to(outside)
        return (y.transpose(0, 1) if lstm.batch_first else y), states

    def sample(self, module: nn.Module, x: Any) -> tuple[Any, float]:
        lstm: Any = module
        weights = sum(weight.numel() for weight in lstm.__dict__["_flat_weights"] if weight.dim() == 2)
        steps = x[0].size(1 if lstm.batch_first else 0)
        batch = x[0].size(0 if lstm.batch_first else 1)
        wanted = max(1, int(guards.TRIAL_MACS // max(1, weights * batch)))
        part = x[0]
        if wanted < steps:
            part = part[:, :wanted] if lstm.batch_first else part[:wanted]
        return (part.detach(), x[1].detach(), x[2].detach()), float(weights * steps * batch)

    def original(self, module: nn.Module, x: Any) -> Any:
        return module.forward(x[0], (x[1], x[2]))


def _detached(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    assert tensor is not None
    return tensor.detach().to(dtype)
