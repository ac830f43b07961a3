// SPDX-License-Identifier: Apache-2.0
// bfloat16 or float32 weights and rows of x as integers of 13 bits, for processors that multiply integers of 16 bits two at a time and
// bfloat16 not at all: twice as many products an instruction as of float32 (AVX-512 VNNI, AVX-VNNI), or by two instructions (AVX2).
//
// Each row of x, and each column of weights, is scaled by the power of two that brings its largest magnitude into [2^11, 2^12) and
// rounded: 128 products stay within an int32, and then go on in float32. An operand so loses up to 2^-12 of the largest one in its
// row (2^-13 in the mean of all powers of two, evenly), where bfloat16 loses up to 2^-9 of each. That is less as long as the largest
// is not some 17 times the root of the mean square, and about bfloat16's up to 40.
// What it must not be is most of a row being nothing beside one element, which may yet decide where the weights of that element
// are as small: features of several scales, say. Rows in which a quarter of what is not zero is below 2^-9 of the largest, images (which
// have one scale for all) in which it is below 2^-7, and panels of weights in which an eighth is, do not fit. Nor what is not finite or
// far beyond 1. Rows are then multiplied widened;
// a weight that does not fit stays bfloat16.
// Needs simd/dot_int16.h and kernels/linear_int8.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

constexpr int kExponentOfOne = 127;               // as a float has it
constexpr int kIntegerExponent = 11;              // of the largest integer
constexpr int kMostOfRows = 60, kLeastOfRows = -100, kMostOfColumns = 40, kLeastOfColumns = -40;  // exponents that fit
constexpr int kFaintInRow = 9, kFaintInImage = 7, kFaintInPanel = 7;  // faint is what is less than 2^-9 of the largest's power of two ...
constexpr int kFaintRows = 2, kFaintPanels = 3;    // ... and of what is not zero no more than one in 2^2 may be
constexpr float kLargestWeight = 4095;                // 4096 * 4096 * 128 would be no int32

inline float power_of_two(int exponent) {
  const uint32_t bits = static_cast<uint32_t>(exponent + kExponentOfOne) << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return power;
}

// In each lane, for a magnitude as bits and those of what is faint below: 2^most - 1 where it is faint, 0 where it is zero, else -1.
// Sums of that are above 0 where more than one in 2^most is faint.
template <typename V>
SLIPSTREAM_INLINE V faint_beyond(V magnitude, V below, int most) {
  constexpr int sign = static_cast<int>(sizeof(magnitude[0])) * 8 - 1;
  const V some = -magnitude, faint = (magnitude - below) & some;
  return (some >> sign) - ((faint >> sign) << most);
}

// The nearest integers of magnitudes up to 2^22, to even, cut to 16 bits.
SLIPSTREAM_INLINE VecU rounded_to_words(Vec v) {
  const Vec magic = broadcast(12582912.f);  // 1.5 * 2^23: adding it leaves an integer in the low bits
  return reinterpret_cast<VecU>(v + magic) & 0xffffu;
}
SLIPSTREAM_INLINE void store(int16_t* p, Vec v) { *reinterpret_cast<VecHInMemory*>(p) = narrowed(rounded_to_words(v)); }
SLIPSTREAM_INLINE void store_first(int16_t* p, int64_t count, Vec v) {
  const VecH integers = narrowed(rounded_to_words(v));
  __builtin_memcpy(p, &integers, static_cast<size_t>(count) * sizeof *p);
}

constexpr int16_t kMagnitudeBits = 0x7fff;
constexpr int32_t kHighHalf = 0x7fff0000;

// The largest magnitude of some neighbouring elements, as bits of a float: that of infinity and NaN above all others.
inline uint32_t largest_magnitude(const void* data, ElementType type, int64_t begin, int64_t end) {
  return static_cast<uint32_t>(range_of_row<false>({data, 1, type}, end - begin, begin).largest_bits);
}

// The exponent that operands are scaled by, of the bits of the largest; more than kMostOfRows where that does not fit.
inline int exponent_for(int32_t largest_bits) {
  const int exponent = (largest_bits >> 23) - kExponentOfOne;
  return exponent < kLeastOfRows ? kLeastOfRows : exponent;
}
inline OperandScale scale_for(int exponent) {
  return {power_of_two(kIntegerExponent - exponent), power_of_two(exponent - kIntegerExponent)};
}
inline OperandScale operand_scale(uint32_t largest_bits) {
  const int exponent = exponent_for(static_cast<int32_t>(largest_bits));
  return exponent > kMostOfRows ? OperandScale{0, 0} : scale_for(exponent);
}

// Above 0 where too many of some neighbouring elements of an image are faint beside its largest.
inline int32_t faintness(const void* data, ElementType type, int64_t begin, int64_t end, uint32_t largest_bits) {
  const int exponent = static_cast<int>(largest_bits >> 23) - kFaintInImage;
  const VecI below = ((exponent > 0 ? exponent : 0) << 23) - VecI{};
  VecI faint{};
  for (int64_t i = begin; i < end; i += kWidth) {
    const Vec v = i + kWidth <= end ? load_element(data, type, i) : load_element_partly(data, type, i, end - i);
    faint += faint_beyond(reinterpret_cast<VecI>(absolute(v)), below, kFaintRows);
  }
  return sum_of_lanes(faint);
}

// Rounds a row of x to integers in `to`, zero-padded to a whole register. Returns what its products are put back by, or 0 where
// the row does not fit: then what is in `to` is of no use.
inline float fit_row(const Rows& x, int64_t row, int64_t k, int16_t* to) {
  constexpr int64_t pairs = 2 * kWidth;
  const int64_t from = row * x.stride, whole = x.type == ElementType::bfloat16 ? from + k / pairs * pairs : from, end = from + k;
  const uint16_t* halves = static_cast<const uint16_t*>(x.data);
  VecInt16 largest_half{};
  VecI largest{};
  for (int64_t i = from; i < whole; i += pairs) {
    const VecInt16 magnitude = reinterpret_cast<VecInt16>(load_words(halves + i)) & kMagnitudeBits;
    largest_half = magnitude > largest_half ? magnitude : largest_half;
  }
  auto element = [&](int64_t i) {
    return i + kWidth <= end ? load_element(x.data, x.type, i) : load_element_partly(x.data, x.type, i, end - i);
  };
  for (int64_t i = whole; i < end; i += kWidth) largest = larger(largest, reinterpret_cast<VecI>(absolute(element(i))));
  const VecI lanes = reinterpret_cast<VecI>(largest_half);
  const int exponent = exponent_for(largest_lane(larger(largest, larger(lanes << 16, lanes & kHighHalf))));
  if (exponent > kMostOfRows) {
    __builtin_memset(to, 0, static_cast<size_t>(round_up(k, kWidth)) * sizeof(int16_t));
    return 0;
  }
  const OperandScale scales = scale_for(exponent);
  const Vec scale = broadcast(scales.scale);
  const int faint_exponent = exponent + kExponentOfOne - kFaintInRow;
  const VecI below = (faint_exponent << 23) - VecI{};
  const VecInt16 below_halves = reinterpret_cast<VecInt16>(below | reinterpret_cast<VecI>(reinterpret_cast<VecU>(below) >> 16));
  VecInt16 faint_halves{};
  VecI faint{};
  for (int64_t i = from; i < whole; i += pairs, to += pairs) {
    const VecU words = load_words(halves + i);
    faint_halves += faint_beyond(reinterpret_cast<VecInt16>(words) & kMagnitudeBits, below_halves, kFaintRows);
    store(to, load(halves + i) * scale);
    store(to + kWidth, load(halves + i + kWidth) * scale);
  }
  for (int64_t i = whole; i < end; i += kWidth, to += kWidth) {
    const Vec v = element(i);
    faint += faint_beyond(reinterpret_cast<VecI>(absolute(v)), below, kFaintRows);
    store(to, v * scale);
  }
  const VecI both = reinterpret_cast<VecI>(faint_halves);
  return sum_of_lanes(faint + ((both << 16) >> 16) + (both >> 16)) > 0 ? 0 : scales.back;
}

// Rows of floats that belong together, up to kMostTogether of them, each by its own largest; k is padded with zeros to whole registers.
// For every `tested` of them is asked whether they are faint: of rows with the same columns that says it for all. To back[row *
// back_stride], what products are put back by. False where they do not fit; then what is in `to` is of no use.
constexpr int64_t kMostTogether = 36;
inline bool fit_rows_together(const float* rows, int64_t stride, int64_t count, int64_t k, int64_t tested, int16_t* to,
                              int64_t to_stride, float* back, int64_t back_stride) {
  int32_t largest[kMostTogether];
  for (int64_t r = 0; r < count; ++r) {  // all of them first, so that none waits for the lanes of the one before it
    VecI of_row{};
    for (int64_t i = 0; i < k; i += kWidth) of_row = larger(of_row, reinterpret_cast<VecI>(absolute(load(rows + r * stride + i))));
    largest[r] = largest_lane(of_row);
  }
  bool fits = true;
  VecI faint{};
  for (int64_t r = 0; r < count; ++r) {
    int exponent = exponent_for(largest[r]);
    if (exponent > kMostOfRows) {
      fits = false;
      exponent = kMostOfRows;
    }
    const OperandScale scales = scale_for(exponent);
    const Vec scale = broadcast(scales.scale);
    back[r * back_stride] = scales.back;
    const float* row = rows + r * stride;
    for (int64_t i = 0; i < k; i += kWidth) store(to + r * to_stride + i, load(row + i) * scale);
    if (r % tested != 0) continue;
    const VecI below = ((exponent + kExponentOfOne - kFaintInRow) << 23) - VecI{};
    for (int64_t i = 0; i < k; i += kWidth) {
      faint += faint_beyond(reinterpret_cast<VecI>(absolute(load(row + i))), below, kFaintRows);
    }
  }
  return fits && sum_of_lanes(faint) <= 0;
}

// A panel of packed weights, bfloat16 or float32, of depth k, as integers; to back[32], what each column's products are put back
// by. False where it does not fit. Columns that are tiny beside their neighbours, as folded normalization leaves those of channels that
// training switched off, lose digits.
inline bool fit_panel(const void* panel, ElementType type, int64_t k, uint8_t* to, float* back) {
  constexpr int vectors = kPanelColumns / kWidth;
  const bool floats = type == ElementType::float32;
  // Row `i` of the panel, register v of it.
  auto weights = [&](int64_t i, int v) {
    if (i >= k) return Vec{};
    if (floats) return load(static_cast<const float*>(panel) + i * kPanelColumns + v * kWidth);
    const VecU pairs = load_words(static_cast<const uint32_t*>(panel) + i / 2 * kPanelColumns + v * kWidth);
    return reinterpret_cast<Vec>(i % 2 ? pairs & 0xffff0000u : pairs << 16);
  };
  bool fits = true;
  VecI faint{};
  for (int v = 0; v < vectors; ++v) {
    VecI largest{};
    for (int64_t i = 0; i < k; ++i) largest = larger(largest, reinterpret_cast<VecI>(absolute(weights(i, v))));
    VecI exponent = (largest >> 23) - kExponentOfOne;
    const VecI tiny = exponent < kLeastOfColumns;
    for (int lane = 0; lane < kWidth; ++lane) fits &= exponent[lane] <= kMostOfColumns;
    exponent = tiny ? VecI{} + kLeastOfColumns : exponent;
    const VecI below = (exponent + (kExponentOfOne - kFaintInPanel)) << 23;
    const Vec scale = reinterpret_cast<Vec>((kIntegerExponent + kExponentOfOne - exponent) << 23);
    store(back + v * kWidth, reinterpret_cast<Vec>((exponent + (kExponentOfOne - kIntegerExponent)) << 23));
    auto integers = [&](int64_t i) {
      const Vec weight = weights(i, v), scaled = weight * scale;
      faint += faint_beyond(reinterpret_cast<VecI>(absolute(tiny ? Vec{} : weight)), below, kFaintPanels);
      return rounded_to_words(at_most(at_least(scaled, broadcast(-kLargestWeight)), broadcast(kLargestWeight)));
    };
    for (int64_t i = 0; i < packed_depth(ElementType::int16, k); i += 2) {
      const VecU first = integers(i), second = integers(i + 1);
      store_words(to + i / 2 * kStepBytes + v * kWidth * 4, first | second << 16);
    }
  }
  return fits && sum_of_lanes(faint) <= 0;
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
