// SPDX-License-Identifier: Apache-2.0
// Linear on integers: rows of x are rounded to u8 on their way into scratch memory, multiplied by int8 weights into exact int32
// sums, and the sums are scaled back on their way into y. Blocks and strips are those of kernels/linear_vector.h.
//
// With x = sx (u - zx) and w = sw (q - zw):  x . w = sx sw (sum u q - zx sum q - zw sum (u - zx))
// sum q lies in the packed weight, sum (u - zx) is taken while x is rounded.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// What belongs to one quantized row. A row that has no scale has NaN for it.
struct RowScale {
  float scale;
  int32_t zero_point, sum;
};

// 1 / scale is finite from here on; a row whose scale would be smaller counts as zero.
constexpr float kSmallestScale = 1.17549435e-38f;
constexpr int32_t kInfinityBits = 0x7f800000;

struct RowRange {
  float low = 0, high = 0;     // zero included
  int32_t largest_bits = 0;    // the largest magnitude as bits, which order as the magnitudes do: infinity, then NaN, above all
};

SLIPSTREAM_INLINE VecI larger(VecI a, VecI b) { return a > b ? a : b; }

template <bool signs>
SLIPSTREAM_INLINE RowRange range_of_row(const Rows& x, int64_t k, int64_t row) {
  const int64_t from = row * x.stride;
  VecI bits{};
  Vec low{}, high{};
  auto take = [&](Vec v) {
    bits = larger(bits, reinterpret_cast<VecI>(absolute(v)));
    if constexpr (signs) {
      low = select(v < low, v, low);
      high = select(v > high, v, high);
    }
  };
  int64_t i = 0;
  for (; i + kWidth <= k; i += kWidth) take(load_element(x.data, x.type, from + i));
  if (i < k) take(load_element_partly(x.data, x.type, from + i, k - i));
  RowRange range;
  range.largest_bits = largest_lane(bits);
  if constexpr (!signs) return range;
  for (int lane = 0; lane < kWidth; ++lane) {
    if (low[lane] < range.low) range.low = low[lane];
    if (high[lane] > range.high) range.high = high[lane];
  }
  return range;
}

// How a row is rounded: u = zero_point + clamp(round(x * inverse), low, high).
struct Rounding {
  float scale = 0, inverse = 0;
  int32_t zero_point = 0;
  float low = 0, high = 0;
};

inline Rounding rounding_of(const LinearInt8Call& call, const RowRange& range) {
  Rounding r;
  const bool given = call.quantization == Quantization::given;
  if (range.largest_bits >= kInfinityBits + (given && !call.infinity_is_nan ? 1 : 0)) {
    r.scale = __builtin_nanf("");
    return r;
  }
  if (given) {
    r.scale = call.scale;
  } else if (call.quantization == Quantization::per_row) {
    float largest;
    __builtin_memcpy(&largest, &range.largest_bits, sizeof largest);
    r.scale = largest / 127;
  } else {
    r.scale = range.high / 255 - range.low / 255;
  }
  if (!(r.scale >= kSmallestScale)) return Rounding{};
  r.inverse = 1 / r.scale;
  int32_t low = 1, high = 255;
  r.zero_point = 128;
  if (given) {
    low = call.low, high = call.high;
    r.zero_point = call.zero_point;
  } else if (call.quantization == Quantization::per_row_asymmetric) {
    low = 0;
    const float zero = -range.low * r.inverse;
    r.zero_point = zero >= 255 ? 255 : static_cast<int32_t>(__builtin_rintf(zero));
  }
  r.low = static_cast<float>(low - r.zero_point);
  r.high = static_cast<float>(high - r.zero_point);
  return r;
}

// Rounds one row to integers, in chunks of 64 of them that start `chunk_stride` elements apart. The elements between k and the
// end of a register are zero points; the rest of the last chunk is left as it is. (The weights there are zeros.)
template <typename To>
SLIPSTREAM_INLINE RowScale quantize_row(const LinearInt8Call& call, int64_t row, To* to, int64_t chunk_stride) {
  const Rows& x = call.linear.x;
  const int64_t k = call.linear.k, from = row * x.stride;
  const Rounding r = rounding_of(call, call.quantization == Quantization::per_row_asymmetric ? range_of_row<true>(x, k, row)
                                                                                             : range_of_row<false>(x, k, row));
  const Vec low = broadcast(r.low), high = broadcast(r.high), inverse = broadcast(r.inverse);
  const Vec magic = broadcast(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  VecI sum{};
  auto take = [&](int64_t i, Vec v) {
    Vec scaled = v * inverse;
    scaled = select(scaled > low, scaled, low);  // NaN becomes `low`
    scaled = select(scaled < high, scaled, high);
    const VecI rounded = reinterpret_cast<VecI>(scaled + magic) - reinterpret_cast<VecI>(magic);
    sum += rounded;
    store_quantized(to + i / 64 * chunk_stride + i % 64, rounded + r.zero_point);
  };
  int64_t i = 0;
  for (; i + kWidth <= k; i += kWidth) take(i, load_element(x.data, x.type, from + i));
  if (i < k) take(i, load_element_partly(x.data, x.type, from + i, k - i));
  int32_t total = 0;
  for (int lane = 0; lane < kWidth; ++lane) total += sum[lane];
  return {r.scale, r.zero_point, total};
}

// sums[rows][32]: int32 in, float out, in the same place. `columns`: the scales, sums and zero points behind the panel.
inline void scale_back(float* sums, int64_t rows, const RowScale* scales, const void* columns) {
  const float* column_scales = static_cast<const float*>(columns);
  for (int64_t v = 0; v < kPanelColumns; v += kWidth) {
    const Vec column_scale = load(column_scales + v);
    const VecI column_sum = reinterpret_cast<VecI>(load_words(column_scales + kPanelColumns + v));
    const VecI column_zero = reinterpret_cast<VecI>(load_words(column_scales + 2 * kPanelColumns + v));
    for (int64_t i = 0; i < rows; ++i) {
      float* at = sums + i * kPanelColumns + v;
      const VecI sum = reinterpret_cast<VecI>(load_words(at)) - column_sum * scales[i].zero_point - column_zero * scales[i].sum;
      store(at, __builtin_convertvector(sum, Vec) * column_scale * scales[i].scale);
    }
  }
}

inline size_t row_scales_bytes(int64_t rows) {
  return static_cast<size_t>(round_up(rows * static_cast<int64_t>(sizeof(RowScale)), 64));
}

inline size_t linear_int8_scratch(const LinearInt8Call& call, const LinearPart& part) {
  const int64_t rows = block_rows_of<Step::int8>(call.linear.k, part.m_end - part.m_begin);
  const int64_t row = x_stride_of<Step::int8>(call.linear.k) * static_cast<int64_t>(sizeof(QuantizedX));
  return row_scales_bytes(rows) + static_cast<size_t>(rows * row) + 64;
}

inline void linear_int8(const LinearInt8Call& call, const LinearPart& part, void* scratch) {
  const LinearCall& linear = call.linear;
  RowScale* scales = static_cast<RowScale*>(scratch);
  const int64_t block_rows = block_rows_of<Step::int8>(linear.k, part.m_end - part.m_begin);
  QuantizedX* x = reinterpret_cast<QuantizedX*>(static_cast<uint8_t*>(scratch) + row_scales_bytes(block_rows));
  const int64_t panel_bytes = panel_bytes_int8(linear.k);
  const uint8_t* columns = static_cast<const uint8_t*>(linear.weight) + panel_depth_bytes_int8(linear.k);
  for_each_block<Step::int8>(
      part, linear.k, linear.weight, panel_bytes,
      [&](int64_t row, int64_t rows, int64_t stride) {
        for (int64_t i = 0; i < rows; ++i) scales[i] = quantize_row(call, row + i, x + i * stride, 64);
        return BlockOfX<Step::int8>{x, stride};
      },
      [](int64_t, int64_t) {},
      [&](const QuantizedX*, int64_t, const uint8_t*, int64_t steps, int64_t row, int64_t rows, int64_t panel, const WeightsAhead&) {
        ask_for_y(linear, steps, row, rows, panel);
        return false;
      },
      [&](float* sums, int64_t block, int64_t begin, int64_t rows, int64_t panel) {
        scale_back(sums, rows, scales + begin, columns + panel * panel_bytes);
        finish_tile(linear, sums, kPanelColumns, block + begin, rows, panel * kPanelColumns);
      });
}

// The range of rows [begin, end) of x, but for the rows that hold a NaN or an infinity.
inline Range range_of_rows(const Rows& x, int64_t k, int64_t begin, int64_t end) {
  Range range;
  for (int64_t row = begin; row < end; ++row) {
    const RowRange each = range_of_row<true>(x, k, row);
    if (each.largest_bits >= kInfinityBits) continue;
    if (each.low < range.low) range.low = each.low;
    if (each.high > range.high) range.high = each.high;
  }
  return range;
}

// The table with what this file adds to a level.
constexpr KernelTable with_int8(KernelTable table) {
  table.linear_int8_scratch = linear_int8_scratch;
  table.linear_int8 = linear_int8;
  table.range_of_rows = range_of_rows;
  return table;
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
