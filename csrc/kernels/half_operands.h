// SPDX-License-Identifier: Apache-2.0
// bfloat16 weights and rows of x as float16 that is multiplied and added up in float16.
//
// Each row of x, and each column of weights, is scaled by the power of two that brings its largest magnitude into [16, 32): so a
// sum of kStepsPerHalfSum products stays below 32768, and what falls below float16's normal range (2^-14) is 2^-18 of the largest
// and less, where bfloat16 keeps 2^-8 of each. Weights keep all their bits, x eleven; sums lose 2^-11 at each addition, in relative norm
// 6e-4 for 32 additions (bfloat16's own rounding: 1.7e-3), and go on in float32.
// What cannot be scaled so (not finite, or far beyond 1) is multiplied widened: rows and panels say that they do not fit. Small values
// are scaled as far as the power of two is a float, and columns of weights that are tiny beside their neighbours, as folded
// normalization leaves those of channels that training switched off, as far as any column is: they lose digits.
// Needs kernels/linear_int8.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

constexpr int kOne = 127;                       // the exponent of 1 as a float and a bfloat16 have it
constexpr int kOneHalf = 15;                    // as a float16 has it
constexpr int kLargestHalf = kOneHalf + 4;      // of what is in [16, 32)
constexpr int kFittingRows = 60, kFittingColumns = 40;  // how far the largest exponent may be above that of 1, of columns below it too
constexpr int kLeastOfRows = kLargestHalf - kOneHalf;  // that of which the scale is the largest power of two

// x = half * 2^(exponent - kLargestHalf - kOne + kOneHalf); sums are 2^kHalfExponent of what they should be. Both factors of a
// product are put back by half of that each, so that neither leaves the range of floats.
constexpr int kBackBias = kLargestHalf + kOne - kOneHalf + kHalfExponent / 2;

inline float power_of_two(int exponent) {
  const uint32_t bits = static_cast<uint32_t>(exponent + kOne) << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return power;
}

// What the products of a row that is not scaled, and of widened weights, are put back by.
constexpr float kWidenedBack = 0x1p-40f;
static_assert(kHalfExponent / 2 - kWidenedExponent == -40, "");

// A power of two by which values up to a largest magnitude fit float16, and what their products are put back by; zeros where they
// do not fit. The magnitude is given as the bits of a float, which order as magnitudes do.
inline OperandScale operand_scale(uint32_t largest_bits) {
  int exponent = static_cast<int>(largest_bits >> 23);
  if (exponent > kOne + kFittingRows) return {0, 0};
  exponent = exponent < kLeastOfRows ? kLeastOfRows : exponent;
  return {power_of_two(kLargestHalf - kOneHalf + kOne - exponent), power_of_two(exponent - kBackBias)};
}

// Faint values keep their digits.
constexpr int32_t (*faintness)(const void*, ElementType, int64_t, int64_t, uint32_t) = nullptr;

// A register of bfloat16, or the first `count` of them and zeros.
constexpr int64_t kHalves = 2 * kWidth;
constexpr uint16_t kSign = 0x8000, kMagnitude = 0x7fff;
SLIPSTREAM_INLINE VecHH load_halves(const uint16_t* p, int64_t count) {
  if (count >= kHalves) return *reinterpret_cast<const VecHHInMemory*>(p);
  return reinterpret_cast<VecHH>(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << count) - 1), p));
}

// The larger one of each pair of lanes.
SLIPSTREAM_INLINE VecI larger_of_pairs(VecHH v) {
  const VecU pairs = reinterpret_cast<VecU>(v), low = pairs & 0xffffu, high = pairs >> 16;
  return reinterpret_cast<VecI>(low > high ? low : high);
}

// The largest magnitude of some neighbouring elements, as bits of a float: that of infinity and NaN above all others.
inline uint32_t largest_magnitude(const void* data, ElementType type, int64_t begin, int64_t end) {
  if (type == ElementType::float32) {
    return static_cast<uint32_t>(range_of_row<false>({data, 1, type}, end - begin, begin).largest_bits);
  }
  const uint16_t* x = static_cast<const uint16_t*>(data);
  VecHH largest{};
  for (int64_t i = begin; i < end; i += kHalves) {
    const VecHH magnitude = load_halves(x + i, end - i) & kMagnitude;
    largest = magnitude > largest ? magnitude : largest;
  }
  return static_cast<uint32_t>(largest_lane(larger_of_pairs(largest))) << 16;
}

// From bfloat16 to float16, scaled, by their bits: all digits are kept, but what is less than float16's normal numbers becomes zero.
// Made of the exponents of the largest values, lane by lane for pairs, which are above kLargestHalf.
class MovedBits {
 public:
  MovedBits() = default;
  SLIPSTREAM_INLINE explicit MovedBits(VecU exponents) {
    const VecU less = exponents - kLargestHalf, words = (less << 10) & 0xffffu, bound = ((less + 1) << 7) & 0xffffu;
    shift_ = reinterpret_cast<VecHH>(words | words << 16);
    least_ = reinterpret_cast<VecHH>(bound | bound << 16);
  }
  SLIPSTREAM_INLINE VecU operator()(VecHH values) const {
    const VecHH magnitude = values & kMagnitude;
    // Both have their fraction's first bit below the exponent: the one 7 bits of it, the other 10.
    const VecHH half = magnitude < least_ ? VecHH{} : (magnitude << 3) - shift_;
    return reinterpret_cast<VecU>(half | (values & kSign));
  }

 private:
  VecHH shift_, least_;
};

// Rounds a row of x to float16 in `to`, zero-padded to a whole register. Returns what its products are put back by, or 0 where the
// row does not fit: then its halves are zeros.
inline float fit_row(const Rows& x, int64_t row, int64_t k, Half* to) {
  const int64_t from = row * x.stride, end = from + k;
  const uint32_t largest = largest_magnitude(x.data, x.type, from, end);
  const OperandScale scale = operand_scale(largest);
  if (scale.back == 0) {
    __builtin_memset(to, 0, static_cast<size_t>(round_up(k, kHalves)) * sizeof(Half));
    return 0;
  }
  const uint32_t exponent = largest >> 23;
  if (x.type == ElementType::bfloat16 && exponent > kLargestHalf) {
    const MovedBits moved(VecU{} + exponent);
    const uint16_t* halves = static_cast<const uint16_t*>(x.data);
    for (int64_t i = from; i < end; i += kHalves, to += kHalves) store_words(to, moved(load_halves(halves + i, end - i)));
    return scale.back;
  }
  for (int64_t i = from; i < end; i += kWidth, to += kWidth) {
    const Vec element = i + kWidth <= end ? load_element(x.data, x.type, i) : load_element_partly(x.data, x.type, i, end - i);
    store(to, element * scale.scale);
  }
  return scale.back;
}

// The exponents that a panel's columns are scaled by, of those of their largest magnitudes, in place. False where it does not fit.
inline bool fit_columns(VecI (&exponents)[kPanelColumns / kWidth]) {
  VecI most{}, unfit{};
  for (const VecI found : exponents) {
    most = found > most ? found : most;
    unfit |= found > kOne + kFittingColumns;
  }
  int32_t largest = 0;
  bool fits = true;
  for (int lane = 0; lane < kWidth; ++lane) {
    largest = most[lane] > largest ? most[lane] : largest;
    fits &= unfit[lane] == 0;
  }
  for (VecI& exponent : exponents) exponent = exponent < kOne - kFittingColumns ? VecI{} + (kOne - kFittingColumns) : exponent;
  return fits && (largest == 0 || largest >= kOne - kFittingColumns);
}

// A panel of bfloat16 weights, `steps` steps deep, as float16; to back[32], what each column's products are put back by. False
// where it does not fit.
inline bool fit_panel_of_halves(const uint8_t* panel, int64_t steps, uint8_t* to, float* back) {
  constexpr int vectors = kPanelColumns / kWidth;
  auto load_weights = [&](int64_t s, int v) { return reinterpret_cast<VecHH>(load_words(panel + s * kStepBytes + v * kWidth * 4)); };
  VecHH largest[vectors] = {};
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      const VecHH magnitude = load_weights(s, v) & kMagnitude;
      largest[v] = magnitude > largest[v] ? magnitude : largest[v];
    }
  }
  VecI exponents[vectors];
  for (int v = 0; v < vectors; ++v) exponents[v] = larger_of_pairs(largest[v]) >> 7;
  if (!fit_columns(exponents)) return false;
  MovedBits moved[vectors];
  for (int v = 0; v < vectors; ++v) {
    const VecU exponent = reinterpret_cast<VecU>(exponents[v]);
    moved[v] = MovedBits(exponent);
    store_words(back + v * kWidth, (exponent + (kOne - kBackBias)) << 23);
  }
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store_words(to + s * kStepBytes + v * kWidth * 4, moved[v](load_weights(s, v)));
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
  for (VecI& of_column : largest) of_column >>= 23;
  if (!fit_columns(largest)) return false;
  Vec scale[vectors];
  for (int v = 0; v < vectors; ++v) {
    scale[v] = reinterpret_cast<Vec>((2 * kOne + kLargestHalf - kOneHalf - largest[v]) << 23);
    store_words(back + v * kWidth, reinterpret_cast<VecU>((largest[v] + (kOne - kBackBias)) << 23));
  }
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

inline bool fit_panel(const void* panel, ElementType type, int64_t k, uint8_t* to, float* back) {
  if (type == ElementType::float32) return fit_panel_of_floats(static_cast<const float*>(panel), k, to, back);
  return fit_panel_of_halves(static_cast<const uint8_t*>(panel), packed_depth(type, k) / 2, to, back);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
