# SPDX-License-Identifier: Apache-2.0
"""nn.LSTM without the native extension: torch's own oneDNN operator, a layer and a direction at a time.

torch calls this operator with plain weights; what is gained is the packing on every call, and bfloat16. Packed sequences and
projections, which the operator does not have, are left to the original.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipstream.kernels import native
from slipstream.kernels.recurrent import PackedRecurrent
from slipstream.optimize.pieces.linear import onednn_has_bfloat16
from slipstream.optimize.pieces.piece import Tensors
from slipstream.optimize.pieces.recurrent import RecurrentPiece

LSTM_MODE = 2
"""ideep::rnn_kind::LSTM, third_party/ideep/include/ideep/abstract_types.hpp."""


class LstmPiece(RecurrentPiece):
    def tensors(self, module: nn.Module) -> Tensors | None:
        lstm: Any = module
        return None if lstm.proj_size and not native.available() else super().tensors(module)

    def plan_without_kernel(self, x: Any, dtype: torch.dtype) -> torch.dtype | str:
        if x[3] is not None:
            return "a packed sequence is left to torch"
        if dtype == torch.bfloat16 and not onednn_has_bfloat16():
            return "torch's oneDNN has no bfloat16 on this machine"
        return dtype

    def make(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> tuple[Any, int]:
        if native.available():
            return super().make(module, tensors, dtype)
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
        if isinstance(content, PackedRecurrent):
            return super().run(module, x, content, tensors)
        lstm: Any = module
        cells, dtype = content
        outside = self.out_dtype(x[0].dtype)
        batch = x[0].size(0 if lstm.batch_first else 1)
        zeros = x[0].new_zeros(lstm.num_layers * self.directions, batch, lstm.hidden_size)
        y, h, c = ((zeros if part is None else part).to(dtype) for part in x[:3])
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
        return (y.transpose(0, 1) if lstm.batch_first else y), *states


def _detached(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    assert tensor is not None
    return tensor.detach().to(dtype)
