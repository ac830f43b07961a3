// SPDX-License-Identifier: Apache-2.0
// The end of a linear: a tile of sums goes through bias, post-op, multiplier and residual into y. A residual may come
// before the post-op instead. Sums of scaled operands are put back before. Needs kernels/post_op.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Sums [rows][32] times what their rows and columns are put back by, one after the other: the product of both may be no float.
inline void put_back(float* sums, int64_t rows, const float* of_rows, const float* of_columns) {
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int64_t c = 0; c < kPanelColumns; c += kWidth) {
      float* at = sums + r * kPanelColumns + c;
      store(at, load(at) * load(of_columns + c) * of_rows[r]);
    }
  }
}

// One register of one row. `count` is kWidth except at the right edge of y.
template <PostOp op, bool residual_first>
SLIPSTREAM_INLINE void finish_vector(const LinearCall& call, Vec sum, int64_t row, int64_t column, int64_t count) {
  const bool whole = count == kWidth;
  auto element = [&](const void* data, ElementType type, int64_t index) {
    return whole ? load_element(data, type, index) : load_element_partly(data, type, index, count);
  };
  Vec v = sum * call.alpha;
  if (call.bias) v = v + element(call.bias, call.bias_type, column);
  if (residual_first) v = v + element(call.residual.data, call.residual.type, row * call.residual.stride + column);
  v = post_op_into<op>(call.y_type, v);
  if (call.multiplier.data) {
    v = v * element(call.multiplier.data, call.multiplier.type, row * call.multiplier.stride + column);
  }
  if (!residual_first && call.residual.data) {
    v = v + element(call.residual.data, call.residual.type, row * call.residual.stride + column);
  }
  store_element(call.y, call.y_type, row * call.y_stride + column, count, v);
}

template <PostOp op, bool residual_first>
void finish_rows(const LinearCall& call, const float* sums, int64_t sums_stride, int64_t row, int64_t rows, int64_t column) {
  const int64_t columns = call.n - column < kPanelColumns ? call.n - column : kPanelColumns;
  for (int64_t i = 0; i < rows; ++i) {
    const float* line = sums + i * sums_stride;
    for (int64_t j = 0; j < columns; j += kWidth) {
      finish_vector<op, residual_first>(call, load(line + j), row + i, column + j, columns - j < kWidth ? columns - j : kWidth);
    }
  }
}

// Writes y[row .. row + rows, column .. column + 32) from sums[rows][32]; what lies right of y is dropped.
inline void finish_tile(const LinearCall& call, const float* sums, int64_t sums_stride, int64_t row, int64_t rows,
                        int64_t column) {
  with_post_op(call.post_op, [&](auto op) {
    constexpr PostOp value = decltype(op)::value;
    if (call.residual_first) return finish_rows<value, true>(call, sums, sums_stride, row, rows, column);
    finish_rows<value, false>(call, sums, sums_stride, row, rows, column);
  });
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
