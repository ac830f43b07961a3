# SPDX-License-Identifier: Apache-2.0
"""nn.LSTM, nn.GRU and nn.RNN on packed weights: all layers and steps in one call of our kernel. Unbatched input is left alone.

Without the extension an LSTM runs on torch's own operator with weights packed once (`lstm.py`), the others as they were.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from slipstream.kernels import native
from slipstream.kernels import recurrent as kernel
from slipstream.kernels.operands import DTYPES
from slipstream.optimize import gates, guards
from slipstream.optimize.options import Options
from slipstream.optimize.pieces.piece import Piece, Tensors

SAMPLE_STEPS = 4
"""Steps of a sample at least, so that errors of the states are seen growing."""


class RecurrentPiece(Piece):
    """The input of a call is (input, hidden state, cell state, batch sizes), the answer (output, hidden state[, cell state]).

    What the caller did not give is None. Batch sizes are those of a packed sequence, whose data are then the input.
    """

    def __init__(self, module: nn.RNNBase, name: str, options: Options) -> None:
        super().__init__(module, name, options)
        self.cell = module.mode.lower()
        self.act = f"packed {self.cell.partition('_')[0]}{', in autocast' if options.autocast else ''}"
        self.directions = 2 if module.bidirectional else 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self.module()
        if 1 <= len(args) + len(kwargs) <= 2 and args and not kwargs.keys() - {"hx"}:
            x, hx = args[0], args[1] if len(args) == 2 else kwargs.get("hx")
            if gates.module_is_plain(module) and gates.call_is_plain():
                inputs = self._inputs(module, x, hx)
                y = None if inputs is None else self.answer(module, inputs)
                if y is not None:
                    return self._as_called(x, *y)
        if not self.account.decided:
            first = args[0].data if args and isinstance(args[0], PackedSequence) else args[0] if args else None
            self.note(False, gates.why_not_plain(module, (first,), {}))
        return module._call_impl(*args, **kwargs)

    def _inputs(self, module: Any, given: Any, hx: Any) -> tuple[torch.Tensor | None, ...] | None:
        """Input and states as torch would take them; None where it has more to say, such as an error."""
        packed = type(given) is PackedSequence
        x: torch.Tensor = given.data if packed else given
        batch_sizes: torch.Tensor | None = given.batch_sizes if packed else None
        if not gates.tensor_is_plain(x) or x.dim() != (2 if packed else 3) or not x.numel():
            return None
        if x.size(-1) != module.input_size:
            return None
        batch = int(batch_sizes[0]) if batch_sizes is not None else x.size(0 if module.batch_first else 1)
        outer = module.num_layers * self.directions, batch
        states = self._states(x, hx, (*outer, module.proj_size or module.hidden_size), (*outer, module.hidden_size))
        if states is None:
            return None
        if packed and given.sorted_indices is not None:
            states = tuple(state.index_select(1, given.sorted_indices) for state in states)
        return (x, *states, *(None,) * (2 - len(states)), batch_sizes)

    def _states(self, x: torch.Tensor, hx: Any, *shapes: tuple[int, ...]) -> tuple[torch.Tensor, ...] | None:
        """Hidden and, of an LSTM, cell state, () where none is given; None unless plain, of x's dtype and these shapes."""
        if hx is None:
            return ()
        states = hx if self.cell == "lstm" else (hx,)
        if not isinstance(states, tuple) or len(states) != (2 if self.cell == "lstm" else 1):
            return None
        for state, shape in zip(states, shapes, strict=False):
            if not gates.tensor_is_plain(state) or state.dtype != x.dtype or state.shape != shape:
                return None
        return states

    def _as_called(self, given: Any, y: Any, *states: torch.Tensor) -> Any:
        if isinstance(given, PackedSequence):
            y = PackedSequence(y, given.batch_sizes, given.sorted_indices, given.unsorted_indices)
            if given.unsorted_indices is not None:
                states = tuple(state.index_select(1, given.unsorted_indices) for state in states)
        return y, states if self.cell == "lstm" else states[0]

    def out_dtype(self, given: torch.dtype) -> torch.dtype:
        """A GRU's state is a sum with the state before, which autocast does not cast."""
        return given if self.cell == "gru" else super().out_dtype(given)

    def tensors(self, module: nn.Module) -> Tensors | None:
        return tuple(module.__dict__["_flat_weights"])

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors

    def size_of(self, module: nn.Module, x: Any) -> Hashable | None:
        steps, batch = self._extent(module, x)
        return x[0].dtype, steps.bit_length(), batch.bit_length(), x[3] is not None

    def _extent(self, module: Any, x: Any) -> tuple[int, int]:
        """Steps, and sequences in the first of them."""
        data, batch_sizes = x[0], x[3]
        if batch_sizes is not None:
            return batch_sizes.numel(), int(batch_sizes[0])
        return (data.size(1), data.size(0)) if module.batch_first else (data.size(0), data.size(1))

    def plan(self, x: Any, tensors: Tensors) -> torch.dtype | str:
        weight = tensors[0]
        given = {None if tensor is None else tensor.dtype for tensor in (x[0], *tensors)}
        if weight is None or (len(given) > 1 and not self.options.autocast):
            return "input and weights differ in dtype"
        if not given <= set(DTYPES):
            return f"no kernel for {weight.dtype}"
        dtype = torch.bfloat16 if weight.dtype == torch.bfloat16 else self.options.dtype
        if self.options.low_memory and dtype == weight.dtype == torch.float32:
            return "low memory: a float32 pack would be a second copy"
        return dtype if native.available() else self.plan_without_kernel(x, dtype)

    def plan_without_kernel(self, x: Any, dtype: torch.dtype) -> torch.dtype | str:
        """`plan`, where there is no native extension."""
        return f"left to torch: {native.reason()}"

    def kind(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> Hashable:
        rnn: Any = module
        shapes = tuple(tuple(tensor.shape) for tensor in tensors if tensor is not None)
        return (self.cell, shapes, dtype, rnn.bidirectional, rnn.batch_first)

    def make(self, module: nn.Module, tensors: Tensors, dtype: torch.dtype) -> tuple[Any, int]:
        rnn: Any = module
        packed = kernel.pack(
            self.cell, [tensor for tensor in tensors if tensor is not None], layers=rnn.num_layers,
            bidirectional=rnn.bidirectional, bias=rnn.bias, projected=rnn.proj_size > 0, dtype=dtype,
        )  # fmt: skip
        return packed, packed.bytes

    def run(self, module: nn.Module, x: Any, content: Any, tensors: Tensors) -> Any:
        data, h, c, batch_sizes = x
        across = batch_sizes is None and module.batch_first
        y, *states = kernel.recurrent(
            data.transpose(0, 1) if across else data, content, h, c,
            batch_sizes=() if batch_sizes is None else batch_sizes.tolist(), out_dtype=self.out_dtype(data.dtype),
        )  # fmt: skip
        return (y.transpose(0, 1) if across else y, *(state for state in states if state is not None))

    def sample(self, module: nn.Module, x: Any) -> tuple[Any, float]:
        rnn: Any = module
        data, h, c, batch_sizes = x
        data, states = data.detach(), [None if state is None else state.detach() for state in (h, c)]
        steps, batch = self._extent(module, x)
        weights = sum(weight.numel() for weight in rnn.__dict__["_flat_weights"] if weight.dim() == 2)
        macs = float(weights * (data.numel() // data.size(-1)))
        wanted = max(SAMPLE_STEPS, int(guards.TRIAL_MACS // max(1, weights * batch)))
        if wanted >= steps:
            return (data, *states, batch_sizes), macs
        if batch_sizes is not None:
            batch_sizes = batch_sizes[:wanted]
            return (data[: int(batch_sizes.sum())], *states, batch_sizes), macs
        return (data[:, :wanted] if rnn.batch_first else data[:wanted], *states, None), macs

    def original(self, module: nn.Module, x: Any) -> Any:
        data, h, c, batch_sizes = x
        y, states = module.forward(
            data if batch_sizes is None else PackedSequence(data, batch_sizes), h if c is None else (h, c)
        )
        y = y if batch_sizes is None else y.data
        return (y, *states) if self.cell == "lstm" else (y, states)
