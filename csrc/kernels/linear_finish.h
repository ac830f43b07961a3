// SPDX-License-Identifier: Apache-2.0
// The end of a linear: a tile of sums goes through bias, post-op, multiplier and residual into y. Needs simd/math.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

template <PostOp op>
SLIPSTREAM_INLINE Vec post_op(Vec v) {
  if constexpr (op == PostOp::relu) return select(v < 0.f, Vec{}, v);  // NaN stays NaN, as in torch
  if constexpr (op == PostOp::gelu_erf) return gelu_erf(v);
  if constexpr (op == PostOp::gelu_tanh) return gelu_tanh(v);
  if constexpr (op == PostOp::silu) return silu(v);
  if constexpr (op == PostOp::tanh) return tanh(v);
  if constexpr (op == PostOp::sigmoid) return sigmoid(v);
  return v;
}

// The elements [row, column ...] of a float32 or bfloat16 matrix as floats.
SLIPSTREAM_INLINE Vec load_element(const void* data, ElementType type, int64_t index) {
  return type == ElementType::float32 ? load(static_cast<const float*>(data) + index)
                                      : load(static_cast<const uint16_t*>(data) + index);
}

// Fewer than a register's worth: the missing lanes are zero.
inline Vec load_element_partly(const void* data, ElementType type, int64_t index, int64_t count) {
  Vec v{};
  for (int64_t i = 0; i < count; ++i) {
    if (type == ElementType::float32) {
      v[i] = static_cast<const float*>(data)[index + i];
    } else {
      const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(data)[index + i]) << 16;
      float value;
      __builtin_memcpy(&value, &bits, sizeof value);
      v[i] = value;
    }
  }
  return v;
}

inline void store_element_partly(void* data, ElementType type, int64_t index, int64_t count, Vec v) {
  if (type == ElementType::float32) {
    for (int64_t i = 0; i < count; ++i) static_cast<float*>(data)[index + i] = v[i];
  } else {
    uint16_t halves[kWidth];
    store(halves, v);
    for (int64_t i = 0; i < count; ++i) static_cast<uint16_t*>(data)[index + i] = halves[i];
  }
}

// One register of one row. `count` is kWidth except at the right edge of y.
template <PostOp op>
SLIPSTREAM_INLINE void finish_vector(const LinearCall& call, Vec sum, int64_t row, int64_t column, int64_t count) {
  const bool whole = count == kWidth;
  auto element = [&](const void* data, ElementType type, int64_t index) {
    return whole ? load_element(data, type, index) : load_element_partly(data, type, index, count);
  };
  Vec v = sum;
  if (call.bias) v = v + element(call.bias, call.bias_type, column);
  v = post_op<op>(v);
  if (call.multiplier.data) {
    v = v * element(call.multiplier.data, call.multiplier.type, row * call.multiplier.stride + column);
  }
  if (call.residual.data) v = v + element(call.residual.data, call.residual.type, row * call.residual.stride + column);
  const int64_t index = row * call.y_stride + column;
  if (!whole) {
    store_element_partly(call.y, call.y_type, index, count, v);
  } else if (call.y_type == ElementType::float32) {
    store(static_cast<float*>(call.y) + index, v);
  } else {
    store(static_cast<uint16_t*>(call.y) + index, v);
  }
}

template <PostOp op>
void finish_rows(const LinearCall& call, const float* sums, int64_t sums_stride, int64_t row, int64_t rows,
                        int64_t column) {
  const int64_t columns = call.n - column < kPanelColumns ? call.n - column : kPanelColumns;
  for (int64_t i = 0; i < rows; ++i) {
    const float* line = sums + i * sums_stride;
    for (int64_t j = 0; j < columns; j += kWidth) {
      finish_vector<op>(call, load(line + j), row + i, column + j, columns - j < kWidth ? columns - j : kWidth);
    }
  }
}

// Writes y[row .. row + rows, column .. column + 32) from sums[rows][32]; what lies right of y is dropped.
inline void finish_tile(const LinearCall& call, const float* sums, int64_t sums_stride, int64_t row, int64_t rows,
                        int64_t column) {
  switch (call.post_op) {
    case PostOp::none: return finish_rows<PostOp::none>(call, sums, sums_stride, row, rows, column);
    case PostOp::relu: return finish_rows<PostOp::relu>(call, sums, sums_stride, row, rows, column);
    case PostOp::gelu_erf: return finish_rows<PostOp::gelu_erf>(call, sums, sums_stride, row, rows, column);
    case PostOp::gelu_tanh: return finish_rows<PostOp::gelu_tanh>(call, sums, sums_stride, row, rows, column);
    case PostOp::silu: return finish_rows<PostOp::silu>(call, sums, sums_stride, row, rows, column);
    case PostOp::tanh: return finish_rows<PostOp::tanh>(call, sums, sums_stride, row, rows, column);
    case PostOp::sigmoid: return finish_rows<PostOp::sigmoid>(call, sums, sums_stride, row, rows, column);
  }
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
