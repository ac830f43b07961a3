// SPDX-License-Identifier: Apache-2.0
// The update of a recurrent cell: sums of the gates go through sigmoid and tanh into the states. The products themselves are
// linears. Bound by exponentials: five of them a unit and a step in an LSTM. Needs kernels/post_op.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// kWidth units of one row; `at` is their place among the gates, `state` that among the states.
template <CellKind kind>
SLIPSTREAM_INLINE Vec update_units(const CellCall& call, const float* from_input, const float* from_hidden, int64_t unit,
                                   int64_t state) {
  auto gate = [&](int64_t g) { return load(from_input + g * kBlockUnits) + load(from_hidden + g * kBlockUnits); };
  if constexpr (kind == CellKind::lstm) {
    const Vec kept = sigmoid(gate(1)) * load(call.c + state);
    const Vec c = sigmoid(gate(0)) * tanh(gate(2)) + kept;
    store(call.c + state, c);
    return sigmoid(gate(3)) * tanh(c);
  } else if constexpr (kind == CellKind::gru) {
    const Vec reset = sigmoid(gate(0)), update = sigmoid(gate(1));
    const Vec hidden_part = load(from_hidden + 2 * kBlockUnits) + load(call.new_bias + unit);
    const Vec candidate = tanh(load(from_input + 2 * kBlockUnits) + reset * hidden_part);
    return candidate + update * (load(call.h + state) - candidate);
  } else if constexpr (kind == CellKind::rnn_tanh) {
    return tanh(gate(0));
  } else {
    return post_op<PostOp::relu>(gate(0));
  }
}

template <CellKind kind>
void update_blocks(const CellCall& call, int64_t begin, int64_t end) {
  const int64_t columns = gate_columns(kind, call.units);
  const int64_t last = end * kBlockUnits < call.units ? end * kBlockUnits : call.units;
  for (int64_t row = 0; row < call.rows; ++row) {
    for (int64_t unit = begin * kBlockUnits; unit < last; unit += kWidth) {
      const int64_t at = row * columns + unit / kBlockUnits * gates_of(kind) * kBlockUnits + unit % kBlockUnits;
      const int64_t state = row * call.state_stride + unit;
      const Vec h = update_units<kind>(call, call.from_input + at, call.from_hidden + at, unit, state);
      store(call.h_next + state, h);
      if (!call.y) continue;
      const int64_t left = call.units - unit;
      store_element(call.y, call.y_type, row * call.y_stride + unit, left < kWidth ? left : kWidth, h);
    }
  }
}

// The units of blocks [begin, end).
inline void recurrent_cell(const CellCall& call, int64_t begin, int64_t end) {
  switch (call.kind) {
    case CellKind::lstm: return update_blocks<CellKind::lstm>(call, begin, end);
    case CellKind::gru: return update_blocks<CellKind::gru>(call, begin, end);
    case CellKind::rnn_tanh: return update_blocks<CellKind::rnn_tanh>(call, begin, end);
    case CellKind::rnn_relu: return update_blocks<CellKind::rnn_relu>(call, begin, end);
  }
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
