// SPDX-License-Identifier: Apache-2.0
// bfloat16 weights and rows of x as float16 that is multiplied and added up in float16.
//
// Each row of x, and each column of weights, is scaled by the power of two that brings its largest magnitude into [16, 32): so a
// sum of kStepsPerHalfSum products stays below 32768, and what falls below float16's normal range (2^-14) is 2^-18 of the largest
// and less, where bfloat16 keeps 2^-8 of each. Weights keep all their bits, x eleven; sums lose 2^-11 at each addition, in relative norm
// 6e-4 for 32 additions (bfloat16's own rounding: 1.7e-3), and go on in float32.
// What cannot be scaled so (not finite, or far from 1) is multiplied widened: rows and panels say that they do not fit.
// Needs kernels/linear_int8.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

constexpr int kOne = 127;                       // the exponent of 1 as a float and a bfloat16 have it
constexpr int kOneHalf = 15;                    // as a float16 has it
constexpr int kLargestHalf = kOneHalf + 4;      // of what is in [16, 32)
constexpr int kFittingRows = 60, kFittingColumns = 40;  // how far the largest exponent may be from that of 1

// x = half * 2^(exponent - kLargestHalf - kOne + kOneHalf); sums are 2^kHalfExponent of what they should be. Both factors of a
// product are put back by half of that each, so that neither leaves the range of floats.
constexpr int kBackBias = kLargestHalf + kOne - kOneHalf + kHalfExponent / 2;

inline float power_of_two(int exponent) {
  const uint32_t bits = static_cast<uint32_t>(exponent + kOne) << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return power;
}

// A power of two by which values up to a largest magnitude fit float16, and what their products are put back by; zeros where they
// do not fit. The magnitude is given as the bits of a float, which order as magnitudes do.
inline HalfScale half_scale(uint32_t largest_bits) {
  const int exponent = largest_bits == 0 ? kOne : static_cast<int>(largest_bits >> 23);
  if (exponent < kOne - kFittingRows || exponent > kOne + kFittingRows) return {0, 0};
  return {power_of_two(kLargestHalf - kOneHalf + kOne - exponent), power_of_two(exponent - kBackBias)};
}

// The largest magnitude of some neighbouring elements, as bits: that of infinity and NaN above all others.
inline uint32_t largest_magnitude(const void* data, ElementType type, int64_t begin, int64_t end) {
  return static_cast<uint32_t>(range_of_row<false>({data, 1, type}, end - begin, begin).largest_bits);
}

// Rounds a row of x to float16 in `to`, zero-padded to a whole register. Returns what its products are put back by, or 0 where the
// row does not fit: then its halves are zeros.
inline float fit_row(const Rows& x, int64_t row, int64_t k, Half* to) {
  const int64_t from = row * x.stride, end = from + k;
  const HalfScale scale = half_scale(largest_magnitude(x.data, x.type, from, end));
  if (scale.back == 0) {
    __builtin_memset(to, 0, static_cast<size_t>(round_up(k, kWidth)) * sizeof(Half));
    return 0;
  }
  for (int64_t i = from; i < end; i += kWidth, to += kWidth) {
    const Vec element = i + kWidth <= end ? load_element(x.data, x.type, i) : load_element_partly(x.data, x.type, i, end - i);
    store(to, element * scale.scale);
  }
  return scale.back;
}

// A panel of bfloat16 weights, `steps` steps deep, as float16; to back[32], what each column's products are put back by. False
// where it does not fit.
inline bool fit_panel(const uint8_t* panel, int64_t steps, uint8_t* to, float* back) {
  constexpr int vectors = kPanelColumns / kWidth;
  constexpr uint16_t sign = 0x8000;
  auto load_weights = [&](int64_t s, int v) { return reinterpret_cast<VecHH>(load_words(panel + s * kStepBytes + v * kWidth * 4)); };
  VecHH largest[vectors] = {}, shift[vectors], least[vectors];
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      const VecHH magnitude = load_weights(s, v) & static_cast<uint16_t>(~sign);
      largest[v] = magnitude > largest[v] ? magnitude : largest[v];
    }
  }
  bool fits = true;
  for (int v = 0; v < vectors; ++v) {
    const VecU pairs = reinterpret_cast<VecU>(largest[v]), low = pairs & 0xffffu, high = pairs >> 16;
    const VecU largest_of_column = low > high ? low : high;
    VecU exponent = largest_of_column >> 7;
    exponent = largest_of_column == 0u ? VecU{} + kOne : exponent;
    const VecU from_one = exponent - (kOne - kFittingColumns);
    for (int lane = 0; lane < kWidth; ++lane) fits &= from_one[lane] <= 2 * kFittingColumns;
    const VecU less = exponent - kLargestHalf, words = (less << 10) & 0xffffu, bound = ((less + 1) << 7) & 0xffffu;
    shift[v] = reinterpret_cast<VecHH>(words | words << 16);
    least[v] = reinterpret_cast<VecHH>(bound | bound << 16);
    store_words(back + v * kWidth, (exponent + (kOne - kBackBias)) << 23);
  }
  if (!fits) return false;
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      const VecHH weight = load_weights(s, v), magnitude = weight & static_cast<uint16_t>(~sign);
      // Both have their fraction's first bit below the exponent: the one 7 bits of it, the other 10.
      const VecHH half = magnitude < least[v] ? VecHH{} : (magnitude << 3) - shift[v];
      store_words(to + s * kStepBytes + v * kWidth * 4, reinterpret_cast<VecU>(half | (weight & sign)));
    }
  }
  return true;
}

// The same of a panel of float32 weights [k][32]: eleven bits of each are kept.
inline bool fit_panel_of_floats(const float* panel, int64_t k, uint8_t* to, float* back) {
  constexpr int vectors = kPanelColumns / kWidth;
  VecI largest[vectors] = {};
  for (int64_t i = 0; i < k; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      const VecI magnitude = reinterpret_cast<VecI>(absolute(load(panel + i * kPanelColumns + v * kWidth)));
      largest[v] = magnitude > largest[v] ? magnitude : largest[v];
    }
  }
  bool fits = true;
  Vec scale[vectors];
  for (int v = 0; v < vectors; ++v) {
    const VecI found = largest[v] >> 23, exponent = largest[v] == 0 ? VecI{} + kOne : found;
    for (int lane = 0; lane < kWidth; ++lane) {
      fits &= exponent[lane] >= kOne - kFittingColumns && exponent[lane] <= kOne + kFittingColumns;
    }
    scale[v] = reinterpret_cast<Vec>((2 * kOne + kLargestHalf - kOneHalf - exponent) << 23);
    store_words(back + v * kWidth, reinterpret_cast<VecU>((exponent + (kOne - kBackBias)) << 23));
  }
  if (!fits) return false;
  for (int64_t i = 0; i < packed_depth(ElementType::float16, k); i += 2) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      auto halves = [&](int64_t at) {
        return widened(at < k ? rounded_to_half(load(panel + at * kPanelColumns + v * kWidth) * scale[v]) : VecH{});
      };
      store_words(to + i / 2 * kStepBytes + v * kWidth * 4, halves(i) | halves(i + 1) << 16);
    }
  }
  return true;
}

// Sums [rows][32] times what their rows and columns are put back by, one after the other: the product of both may be no float.
inline void put_back(float* sums, int64_t rows, const float* of_rows, const float* of_columns) {
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int64_t c = 0; c < kPanelColumns; c += kWidth) {
      float* at = sums + r * kPanelColumns + c;
      store(at, load(at) * load(of_columns + c) * of_rows[r]);
    }
  }
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
