// SPDX-License-Identifier: Apache-2.0
// What a linear kernel is asked to do: y = residual + multiplier * post_op(alpha * x . W^T + bias), or with residual_first
// y = multiplier * post_op(alpha * x . W^T + bias + residual), and how W is packed.
// Plain values only; no torch, no threads, no instruction sets. Included by bind/ and by every level.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slipstream {

enum class PostOp : int32_t { none, relu, gelu_erf, gelu_tanh, silu, tanh, sigmoid, relu6, hardswish, hardsigmoid, quick_gelu };
constexpr int32_t kPostOpCount = static_cast<int32_t>(PostOp::quick_gelu) + 1;

enum class ElementType : int32_t { float32, bfloat16, float16, int16 };  // the last two are for packed weights alone

// Whether packed weights are scaled, column by column, and have behind each panel what that is put back by.
constexpr bool is_scaled(ElementType type) { return type == ElementType::float16 || type == ElementType::int16; }

// Packed weights, the same for every level.
//   bfloat16: [panel][k / 2][column][2]    a panel is kPanelColumns columns of y; two neighbouring k lie together, as
//                                           dot-product instructions and AMX tiles want them; k is zero-padded to
//                                           kPackedDepth, columns are zero-padded to the panel
//   bfloat16 in parts: [panel][k / 32][part][16][column][2]    a float32 weight as the sum of two or three bfloat16, each the
//                                           rounding of what those before it leave (to nearest even; cut where that would
//                                           overflow; nothing is left of what is not finite); else as bfloat16
//   float16:  [panel]: bfloat16's order, each column scaled as kernels/half_operands.h has it; behind it what the columns' products
//             are put back by (float). For the level that multiplies float16
//   int16:    the same as integers of 13 bits: kernels/int16_operands.h. For levels that multiply bfloat16 so
//   float32:  [panel][k][column]
//   int8:     [panel]: [k / 4][column][4], four neighbouring k together, zero-padded to kPackedDepthInt8; behind it what
//             belongs to the panel's columns: scales (float), sums over k and zero points (int32)
// 32 columns: two 512-bit accumulators a row (12 rows x 2 = 24 of 32 registers), or two AMX tiles side by side.
constexpr int64_t kPanelColumns = 32;
// One AMX tile is 16 rows of 32 bfloat16 deep.
constexpr int64_t kPackedDepth = 32;
// The same 64 bytes hold 64 int8.
constexpr int64_t kPackedDepthInt8 = 64;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

constexpr int64_t packed_depth(ElementType type, int64_t k) {
  return type == ElementType::float32 ? k : round_up(k, kPackedDepth);
}

// Elements of one packed panel, and of a whole packed weight.
constexpr int64_t panel_size(ElementType type, int64_t k) {
  return (packed_depth(type, k) + (is_scaled(type) ? 2 : 0)) * kPanelColumns;
}
constexpr int64_t packed_size(ElementType type, int64_t n, int64_t k) {
  return round_up(n, kPanelColumns) / kPanelColumns * panel_size(type, k);
}

// Parts that a packed bfloat16 weight of so many elements has; 0 where it is none for these sizes.
constexpr int64_t parts_of_packed(int64_t elements, int64_t n, int64_t k) {
  const int64_t part = packed_size(ElementType::bfloat16, n, k);
  for (int64_t parts = 1; parts <= 3; ++parts) {
    if (elements == parts * part) return parts;
  }
  return 0;
}

// Where in a panel in parts the first part of [k][column] lies; the others kPackedDepth * kPanelColumns elements apart.
constexpr int64_t place_in_parts(int64_t k, int64_t column, int64_t parts) {
  return (k / kPackedDepth * parts * (kPackedDepth / 2) + k % kPackedDepth / 2) * 2 * kPanelColumns + column * 2 + k % 2;
}

constexpr int64_t panel_depth_bytes_int8(int64_t k) { return round_up(k, kPackedDepthInt8) * kPanelColumns; }
constexpr int64_t panel_bytes_int8(int64_t k) { return panel_depth_bytes_int8(k) + 3 * 4 * kPanelColumns; }

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
  int64_t weight_parts = 1;                          // 2 or 3: a float32 weight in parts of bfloat16
  float alpha = 1;
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

// How x becomes integers. `per_row`: each row gets the scale (and asymmetric, the zero point) that its own range asks for.
// `given`: one scale and zero point for all.
enum class Quantization : int32_t { per_row, per_row_asymmetric, given };

// x is rounded to u8 with a scale and a zero point, multiplied by int8 weights, and the int32 sums are scaled back.
struct LinearInt8Call {
  LinearCall linear;  // its weight is packed as int8
  Quantization quantization = Quantization::per_row;
  // For `given`: x = scale * (u - zero_point) with u in [low, high]. A row with NaN is NaN; infinities are the range's ends, or,
  // where the scale was taken from x (`infinity_is_nan`), make the row NaN too.
  float scale = 0;
  int32_t zero_point = 0, low = 0, high = 255;
  bool infinity_is_nan = false;
};

// The range of the finite rows of x, zero included.
struct Range {
  float low = 0, high = 0;
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
