// SPDX-License-Identifier: Apache-2.0
// Two 16-bit integers of x times two of a weight, added to an int32. Needs simd/vec.h and, above the baseline, <immintrin.h>.
// A level says how: SLIPSTREAM_DOT_INT8, which has the instruction for 16 bits too (vpdpwssd); without it they are two.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

typedef int16_t VecInt16 __attribute__((vector_size(kWidth * 4)));

SLIPSTREAM_INLINE VecI broadcast_word(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word - VecI{};
}

// Sums of the products of neighbouring 16-bit integers.
SLIPSTREAM_INLINE VecI multiply_pairs(VecI a, VecI b) {
#if SLIPSTREAM_WIDTH == 16
  return reinterpret_cast<VecI>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif SLIPSTREAM_WIDTH == 8
  return reinterpret_cast<VecI>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<VecI>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

SLIPSTREAM_INLINE VecI dot_int16(VecI sums, VecI a, VecI b) {
#if !defined(SLIPSTREAM_DOT_INT8)
  return sums + multiply_pairs(a, b);
#elif SLIPSTREAM_WIDTH == 16
  return reinterpret_cast<VecI>(
      _mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sums), reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#else
  return reinterpret_cast<VecI>(
      _mm256_dpwssd_avx_epi32(reinterpret_cast<__m256i>(sums), reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#endif
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
