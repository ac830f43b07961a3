// SPDX-License-Identifier: Apache-2.0
// What the update of a recurrent cell is asked to do, and how the gates of its units lie. Plain values only.
#pragma once

#include "linear.h"

namespace slipstream {

enum class CellKind : int32_t { lstm, gru, rnn_tanh, rnn_relu };
constexpr int32_t kCellKindCount = 4;

// LSTM: input, forget, cell, output. GRU: reset, update, new.
constexpr int64_t gates_of(CellKind kind) { return kind == CellKind::lstm ? 4 : kind == CellKind::gru ? 3 : 1; }

// Gates are columns of a linear's output, in blocks of 32 units: [block][gate][32], so that whoever computes some blocks has
// all gates of their units. Units are zero-padded to a block, which makes each gate of a block one panel of the packed weight.
constexpr int64_t kBlockUnits = kPanelColumns;
constexpr int64_t unit_blocks(int64_t units) { return (units + kBlockUnits - 1) / kBlockUnits; }
constexpr int64_t gate_columns(CellKind kind, int64_t units) { return unit_blocks(units) * gates_of(kind) * kBlockUnits; }

// One step of `rows` sequences. States have room for whole blocks of units in each row.
struct CellCall {
  CellKind kind = CellKind::lstm;
  int64_t rows = 0, units = 0;
  const float* from_input = nullptr;   // [rows, gate_columns] x . W_ih^T with the biases
  const float* from_hidden = nullptr;  // [rows, gate_columns] h . W_hh^T
  const float* new_bias = nullptr;     // [units] GRU: the bias of the new gate that the reset gate multiplies
  const float* h = nullptr;            // [rows, state_stride] GRU: the hidden state before this step
  float* h_next = nullptr;             // [rows, state_stride]
  float* c = nullptr;                  // [rows, state_stride] LSTM: the cell state, updated in place
  int64_t state_stride = 0;
  void* y = nullptr;                   // [rows, y_stride], the hidden state once more, or null
  int64_t y_stride = 0;
  ElementType y_type = ElementType::float32;
};

}  // namespace slipstream
