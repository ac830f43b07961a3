// SPDX-License-Identifier: Apache-2.0
// What a linear kernel is asked to do: y = residual + multiplier * post_op(x . W^T + bias), or with residual_first
// y = multiplier * post_op(x . W^T + bias + residual), and how W is packed.
// Plain values only; no torch, no threads, no instruction sets. Included by bind/ and by every level.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slipstream {

enum class PostOp : int32_t { none, relu, gelu_erf, gelu_tanh, silu, tanh, sigmoid, relu6, hardswish, hardsigmoid };
constexpr int32_t kPostOpCount = 10;

enum class ElementType : int32_t { float32, bfloat16 };

// Packed weights, the same for every level.
//   bfloat16: [panel][k / 2][column][2]    a panel is kPanelColumns columns of y; two neighbouring k lie together, as
//                                           dot-product instructions and AMX tiles want them; k is zero-padded to
//                                           kPackedDepth, columns are zero-padded to the panel
//   float32:  [panel][k][column]
// 32 columns: two 512-bit accumulators a row (12 rows x 2 = 24 of 32 registers), or two AMX tiles side by side.
constexpr int64_t kPanelColumns = 32;
// One AMX tile is 16 rows of 32 bfloat16 deep.
constexpr int64_t kPackedDepth = 32;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

constexpr int64_t packed_depth(ElementType type, int64_t k) {
  return type == ElementType::bfloat16 ? round_up(k, kPackedDepth) : k;
}

// Elements of one packed panel, and of a whole packed weight.
constexpr int64_t panel_size(ElementType type, int64_t k) { return packed_depth(type, k) * kPanelColumns; }
constexpr int64_t packed_size(ElementType type, int64_t n, int64_t k) {
  return round_up(n, kPanelColumns) / kPanelColumns * panel_size(type, k);
}

// A matrix whose rows lie `stride` elements apart and whose columns are neighbours.
struct Rows {
  const void* data = nullptr;
  int64_t stride = 0;
  ElementType type = ElementType::float32;
};

struct LinearCall {
  int64_t m = 0, n = 0, k = 0;
  Rows x;                                            // [m, k]
  const void* weight = nullptr;                      // packed
  ElementType weight_type = ElementType::bfloat16;
  const void* bias = nullptr;                        // [n] or null
  ElementType bias_type = ElementType::float32;
  PostOp post_op = PostOp::none;
  Rows multiplier;                                   // [m, n] or data == nullptr
  Rows residual;                                     // [m, n] or data == nullptr
  bool residual_first = false;                       // added before the post-op; false where there is no residual
  void* y = nullptr;                                 // [m, n]
  int64_t y_stride = 0;
  ElementType y_type = ElementType::float32;
};

// x [rows, columns] to y [columns, rows].
struct TransposeCall {
  const void* x = nullptr;
  void* y = nullptr;
  ElementType x_type = ElementType::float32, y_type = ElementType::float32;
  int64_t rows = 0, columns = 0, x_stride = 0, y_stride = 0;
};

// The part of the outputs that one thread computes: rows [m_begin, m_end), panels [panel_begin, panel_end).
struct LinearPart {
  int64_t m_begin, m_end, panel_begin, panel_end;
};

}  // namespace slipstream
