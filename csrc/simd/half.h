// SPDX-License-Identifier: Apache-2.0
// float16 in registers (AVX512_FP16). Needs simd/convert_bf16.h, kernels/operand_scale.h and <immintrin.h>.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// A float16 in memory.
struct Half {
  uint16_t bits;
};

typedef _Float16 VecHalf __attribute__((vector_size(kWidth * 4)));

// kWidth pairs as they lie in memory.
SLIPSTREAM_INLINE VecHalf load_pairs(const void* p) { return reinterpret_cast<VecHalf>(load_words(p)); }

// Two neighbours in every pair of lanes.
SLIPSTREAM_INLINE VecHalf broadcast_pair(const Half* p) {
  uint32_t pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return reinterpret_cast<VecHalf>(pair - VecU{});
}

// The finite float16 in the upper half of each lane, times 2^kHalfExponent: its bits where a float has them.
SLIPSTREAM_INLINE Vec moved_half(VecI words) {
  return reinterpret_cast<Vec>((words >> 3) & (static_cast<int32_t>(0x8fffe000u) - VecI{}));
}

// The same, times 2^kWidenedExponent.
constexpr int kWidenedExponent = -16;
SLIPSTREAM_INLINE Vec widened_half(VecU words) { return moved_half(reinterpret_cast<VecI>(words)) * 0x1p96f; }
static_assert(kHalfExponent + 96 == kWidenedExponent, "");

// The sum of each pair of lanes, times 2^kHalfExponent, for finite values. Conversions by half registers would take the ports that
// multiply half as often again.
SLIPSTREAM_INLINE Vec sums_of_pairs(VecHalf v) {
  const VecU bits = reinterpret_cast<VecU>(v);
  const VecHalf sums = v + reinterpret_cast<VecHalf>((bits << 16) | (bits >> 16));
  return moved_half(reinterpret_cast<VecI>(sums));
}

// Rounds to nearest even.
SLIPSTREAM_INLINE VecH rounded_to_half(Vec v) {
  return reinterpret_cast<VecH>(
      _mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

SLIPSTREAM_INLINE void store(Half* p, Vec v) { *reinterpret_cast<VecHInMemory*>(p) = rounded_to_half(v); }

// The first `count` elements only.
SLIPSTREAM_INLINE void store_first(Half* p, int64_t count, Vec v) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m256i>(rounded_to_half(v)));
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
