# SPDX-License-Identifier: Apache-2.0
"""LSTM, GRU and RNN layers over whole sequences with packed weights, natively or by their plain-torch twin.

The equations are those of torch.nn.LSTM (with projections: Sak et al., arXiv 1402.1128), torch.nn.GRU and torch.nn.RNN. States
and sums are float32 whatever the weights are. Error against float64, root mean square, on normal inputs and weights as torch
initializes them: 1e-6 in float32, 1e-2 in bfloat16 (weights are rounded to it, and so are inputs and hidden states where they
are multiplied at levels avx512_bf16 and amx, and between layers; at level avx512_fp16 products are in float16, as
`kernels.linear` has them). Sequences are independent: a NaN in one reaches no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.linear import pack_in_a_row
from slipstream.kernels.operands import check_dtypes, refuse_gradients

KINDS = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Kind of cell → its gates, in torch's order. The place in this table is the kernel's code for it (recurrent_call.h)."""

BLOCK = 32
"""Units whose gates lie together: csrc/kernels/recurrent_call.h."""

Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True, eq=False)
class PackedRecurrent:
    """All layers' weights in the kernel's order; made once, serves every length, batch and level.

    ``weights`` is opaque and 1-D, what `linear.pack` makes for ``dtype``, ``biases`` opaque and float32. Without the native
    extension ``weights`` is None, and ``plain`` holds each direction's (W_ih, W_hh, b_ih, b_hh, W_hr), the weights rounded to
    ``dtype``.
    """

    kind: str
    input_size: int
    hidden_size: int
    proj_size: int
    layers: int
    directions: int
    dtype: torch.dtype
    weights: torch.Tensor | None
    biases: torch.Tensor | None
    plain: tuple[tuple[torch.Tensor | None, ...], ...] = ()

    @property
    def bytes(self) -> int:
        """Memory that the packed copy takes."""
        own = (self.weights, self.biases, *(tensor for cell in self.plain for tensor in cell))
        return sum(tensor.numel() * tensor.element_size() for tensor in own if tensor is not None)


def pack(
    kind: str, weights: Sequence[torch.Tensor], *, layers: int = 1, bidirectional: bool = False, bias: bool = True,
    projected: bool = False, dtype: torch.dtype,
) -> PackedRecurrent:  # fmt: skip
    """Copy the weights of all layers (float32 or bfloat16) into the order that `recurrent` reads.

    ``kind`` is one of `KINDS`. ``weights`` are in the order of nn.LSTM's parameters: per layer and direction W_ih [G·H, I],
    W_hh [G·H, P], with ``bias`` b_ih and b_hh [G·H], with ``projected`` (LSTM only) W_hr [P, H]; P = H without it.
    ``dtype`` is what the packed copy multiplies, float32 or bfloat16. Raises UsageError for anything else.
    """
    if kind not in KINDS:
        raise UsageError.of("kind", kind, tuple(KINDS))
    check_dtypes(dtype=dtype, weights=weights[0].dtype)
    directions = 2 if bidirectional else 1
    each = 2 + 2 * bias + projected
    if len(weights) != each * layers * directions or (projected and kind != "lstm"):
        raise UsageError.of("weights", f"{len(weights)} tensors", f"{each} for each of {layers} x {directions} directions")
    gates, units = KINDS[kind], weights[0].shape[0] // KINDS[kind]
    with torch.no_grad():
        cells: list[Cell] = []
        for start in range(0, len(weights), each):
            own = [weight.detach() for weight in weights[start : start + each]]
            b_ih, b_hh = own[2:4] if bias else (own[0].new_zeros(gates * units),) * 2
            cells.append((own[0], own[1], b_ih.float(), b_hh.float(), own[-1] if projected else None))
        sizes = weights[0].shape[1], units, weights[each - 1].shape[0] if projected else 0, layers, directions
        if not native.available():
            plain = tuple(tuple(_rounded(tensor, dtype) for tensor in cell) for cell in cells)
            return PackedRecurrent(kind, *sizes, dtype, None, None, plain)
        matrices = [matrix for cell in cells for matrix in _matrices(kind, cell)]
        data, biases = pack_in_a_row(matrices, dtype=dtype), torch.cat([_biases(kind, cell) for cell in cells])
    return PackedRecurrent(kind, *sizes, dtype, data, biases)


def recurrent(
    x: torch.Tensor,
    packed: PackedRecurrent,
    h0: torch.Tensor | None = None,
    c0: torch.Tensor | None = None,
    *,
    batch_sizes: Sequence[int] = (),
    out_dtype: torch.dtype | None = None,
) -> Results:
    """y [T, B, D·P], h [L·D, B, P] and, for an LSTM, c [L·D, B, H] (else None) of x [T, B, I], L layers and D directions.

    With ``batch_sizes`` (falling, of a PackedSequence) x is [sum, I] and y [sum, D·P]. ``h0`` and ``c0`` are zero where not
    given. All inputs are float32 or bfloat16, in any strides; the results are dense and in ``out_dtype``, or x's dtype.
    Nothing is recorded for autograd: a call that would need it raises RuntimeError. Raises UsageError for an unknown dtype.
    """
    dtype = x.dtype if out_dtype is None else out_dtype
    check_dtypes(x=x.dtype, out_dtype=dtype)
    refuse_gradients("recurrent", x, h0, c0)
    if packed.weights is None:
        return plain_recurrent(x, packed, h0, c0, batch_sizes=batch_sizes, out_dtype=dtype)
    sizes = [packed.input_size, packed.hidden_size, packed.proj_size, packed.layers, packed.directions]
    y, h, c = torch.ops.slipstream.recurrent.default(
        x, packed.weights, packed.biases, h0, c0, batch_sizes, list(KINDS).index(packed.kind), sizes,
        dtype is torch.bfloat16,
    )  # fmt: skip
    return y, h, c if packed.kind == "lstm" else None


def plain_recurrent(
    x: torch.Tensor,
    packed: PackedRecurrent,
    h0: torch.Tensor | None = None,
    c0: torch.Tensor | None = None,
    *,
    batch_sizes: Sequence[int] = (),
    out_dtype: torch.dtype | None = None,
) -> Results:
    """The twin: the equations in float32, step by step, on rounded weights. For weights packed without the extension."""
    lengths = list(batch_sizes) or [x.shape[1]] * x.shape[0]
    batch = lengths[0] if lengths else x.shape[1]
    rows = x.reshape(sum(lengths), x.shape[-1]).float()
    hidden, cells = [], []
    for layer in range(packed.layers):
        outputs = []
        for direction in range(packed.directions):
            index = layer * packed.directions + direction
            h, c = (
                torch.zeros(batch, size) if given is None else given[index].float().clone()
                for given, size in ((h0, packed.proj_size or packed.hidden_size), (c0, packed.hidden_size))
            )
            outputs.append(_run_direction(packed, index, rows, lengths, h, c))
            hidden.append(h)
            cells.append(c)
        rows = torch.cat(outputs, -1)
        if layer + 1 < packed.layers:
            rows = rows.to(packed.dtype).float()
    dtype = x.dtype if out_dtype is None else out_dtype
    y = rows.to(dtype) if batch_sizes else rows.view(*x.shape[:2], rows.shape[1]).to(dtype)
    c_last = torch.stack(cells).to(dtype) if packed.kind == "lstm" else None
    return y, torch.stack(hidden).to(dtype), c_last


def _run_direction(
    packed: PackedRecurrent, index: int, rows: torch.Tensor, lengths: list[int], h: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    """Outputs [sum, P] of one direction of one layer; the states h and c [batch, …] are updated in place."""
    w_ih, w_hh, b_ih, b_hh, w_hr = packed.plain[index]
    assert w_ih is not None and w_hh is not None and b_ih is not None and b_hh is not None
    y = rows.new_empty(rows.shape[0], h.shape[1])
    firsts = [sum(lengths[:t]) for t in range(len(lengths))]
    steps = list(zip(firsts, lengths, strict=True))
    for first, count in reversed(steps) if index % packed.directions else steps:
        from_input = F.linear(rows[first : first + count], w_ih, b_ih)
        from_hidden = F.linear(h[:count].to(packed.dtype).float(), w_hh, b_hh)
        new = _cell(packed.kind, from_input, from_hidden, h[:count], c[:count])
        h[:count] = new if w_hr is None else F.linear(new.to(packed.dtype).float(), w_hr)
        y[first : first + count] = h[:count]
    return y


def _cell(kind: str, x: torch.Tensor, hidden: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The new hidden state from the gates' two parts; c is updated in place."""
    if kind == "lstm":
        i, f, g, o = (x + hidden).chunk(4, -1)
        c.copy_(f.sigmoid() * c + i.sigmoid() * g.tanh())
        return o.sigmoid() * c.tanh()
    if kind == "gru":
        (r, z, n), (r_hidden, z_hidden, n_hidden) = x.chunk(3, -1), hidden.chunk(3, -1)
        update, new = (z + z_hidden).sigmoid(), (n + (r + r_hidden).sigmoid() * n_hidden).tanh()
        return (1 - update) * new + update * h
    return (x + hidden).tanh() if kind == "rnn_tanh" else (x + hidden).relu()


def _rounded(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Weights (matrices) as the kernel multiplies them, biases as they are; float32 and a copy of their own."""
    if tensor is None:
        return None
    return tensor.to(dtype).float().clone() if tensor.dim() == 2 else tensor.clone()


def _by_blocks(tensor: torch.Tensor, gates: int) -> torch.Tensor:
    """[G·H, …] gate by gate → [blocks of 32 units, G, 32, …] in one dimension, zero-padded to whole blocks."""
    units = tensor.shape[0] // gates
    blocks = (units + BLOCK - 1) // BLOCK
    padded = tensor.new_zeros(gates, blocks * BLOCK, *tensor.shape[1:])
    padded[:, :units] = tensor.reshape(gates, units, *tensor.shape[1:])
    return padded.view(gates, blocks, BLOCK, *tensor.shape[1:]).transpose(0, 1).reshape(-1, *tensor.shape[1:])


Cell = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]
"""W_ih, W_hh, b_ih, b_hh, W_hr of one direction of one layer."""


def _matrices(kind: str, cell: Cell) -> list[torch.Tensor]:
    w_ih, w_hh, _, _, w_hr = cell
    return [_by_blocks(w_ih, KINDS[kind]), _by_blocks(w_hh, KINDS[kind])] + ([] if w_hr is None else [w_hr])


def _biases(kind: str, cell: Cell) -> torch.Tensor:
    _, w_hh, b_ih, b_hh, _ = cell
    if kind != "gru":
        return _by_blocks(b_ih + b_hh, KINDS[kind])
    units = w_hh.shape[1]
    inside = torch.cat([b_hh[: 2 * units], torch.zeros(units)])  # that of the new gate is multiplied by the reset gate
    return torch.cat([_by_blocks(b_ih + inside, KINDS[kind]), _by_blocks(b_hh[2 * units :], 1)])
