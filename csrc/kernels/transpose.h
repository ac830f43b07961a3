// SPDX-License-Identifier: Apache-2.0
// y[column][row] = x[row][column], with conversion between float32 and bfloat16: how images change between channels first and
// channels last. Blocks of kWidth x kWidth go through registers; bound by memory. Needs kernels/post_op.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// The lanes i with bit `distance` clear come from a (or, for the upper half, from a at i + distance), the others from b.
template <int distance, bool upper, int... lane>
SLIPSTREAM_INLINE Vec interleave(Vec a, Vec b, LaneList<lane...>) {
  if constexpr (upper) return __builtin_shufflevector(a, b, ((lane & distance) ? kWidth + lane : lane + distance)...);
  return __builtin_shufflevector(a, b, ((lane & distance) ? kWidth + lane - distance : lane)...);
}

// One round of the butterfly: afterwards bit `distance` of row and of column numbers have changed places.
template <int distance>
SLIPSTREAM_INLINE void exchange(Vec (&block)[kWidth]) {
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if (i & distance) continue;
    const Vec a = block[i], b = block[i + distance];
    block[i] = interleave<distance, false>(a, b, Lanes{});
    block[i + distance] = interleave<distance, true>(a, b, Lanes{});
  }
}

SLIPSTREAM_INLINE void transpose_block(Vec (&block)[kWidth]) {
  exchange<1>(block);
  exchange<2>(block);
  if constexpr (kWidth > 4) exchange<4>(block);
  if constexpr (kWidth > 8) exchange<8>(block);
}

// One block of x at (row, column), kWidth x kWidth or less at the edges, to y at (column, row).
template <bool whole>
SLIPSTREAM_INLINE void transpose_at(const TransposeCall& call, int64_t row, int64_t column, int64_t rows, int64_t columns) {
  Vec block[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    const int64_t from = (row + i) * call.x_stride + column;
    if (whole) {
      block[i] = load_element(call.x, call.x_type, from);
    } else {
      block[i] = i < rows ? load_element_partly(call.x, call.x_type, from, columns) : Vec{};
    }
  }
  transpose_block(block);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if (i < columns) store_element(call.y, call.y_type, (column + i) * call.y_stride + row, whole ? kWidth : rows, block[i]);
  }
}

// Columns [begin, end) of x, that is rows of y. A band of 4 blocks of columns at a time: x is read in runs of 4 cache lines, and
// the band's lines of y stay in the first-level cache while their pieces come in.
inline void transpose(const TransposeCall& call, int64_t begin, int64_t end) {
  constexpr int64_t kBand = 4 * kWidth;
  for (int64_t band = begin; band < end; band += kBand) {
    const int64_t stop = band + kBand < end ? band + kBand : end;
    for (int64_t row = 0; row < call.rows; row += kWidth) {
      const int64_t rows = call.rows - row < kWidth ? call.rows - row : kWidth;
      for (int64_t column = band; column < stop; column += kWidth) {
        const int64_t columns = stop - column < kWidth ? stop - column : kWidth;
        if (rows == kWidth && columns == kWidth) {
          transpose_at<true>(call, row, column, kWidth, kWidth);
        } else {
          transpose_at<false>(call, row, column, rows, columns);
        }
      }
    }
  }
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
