// SPDX-License-Identifier: Apache-2.0
// Four u8 of x times four s8 of a weight, added to an int32: exact at every level. Needs simd/dot_int16.h and, above the
// baseline, <immintrin.h>. A level says how:
//   SLIPSTREAM_DOT_INT8   vpdpbusd, one instruction; x is kept as u8
// Without it both are widened to 16 bits and multiplied in two halves (vpmaddwd; vpmaddubsw would be one instruction less, but
// saturates): elements 0 and 2 of the four, then 1 and 3. x is then kept as u16 in that order.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

typedef uint8_t VecBytes __attribute__((vector_size(kWidth)));
typedef uint8_t VecBytesInMemory __attribute__((vector_size(kWidth), aligned(1), may_alias));

// Integers of 0 to 255 in the order in which products read them: as they are where x is kept as u8.
SLIPSTREAM_INLINE void store_quantized(uint8_t* p, VecI v) {
#if SLIPSTREAM_WIDTH == 16  // one instruction, which the compiler's own conversion is not; the mask: see narrowed()
  const VecBytes bytes = reinterpret_cast<VecBytes>(_mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(v)));
#else
  const VecBytes bytes = __builtin_convertvector(v, VecBytes);
#endif
  *reinterpret_cast<VecBytesInMemory*>(p) = bytes;
}

#ifdef SLIPSTREAM_DOT_INT8

constexpr bool kDotInt8 = true;
using QuantizedX = uint8_t;
using WeightsInt8 = VecI;
using FourOfX = VecI;

SLIPSTREAM_INLINE WeightsInt8 load_int8(const void* p) { return reinterpret_cast<VecI>(load_words(p)); }
SLIPSTREAM_INLINE FourOfX broadcast_four(const uint8_t* x) { return broadcast_word(x); }

SLIPSTREAM_INLINE VecI dot_int8(VecI sums, FourOfX x, WeightsInt8 w) {
#if SLIPSTREAM_WIDTH == 16
  return reinterpret_cast<VecI>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums), reinterpret_cast<__m512i>(x),
                                                    reinterpret_cast<__m512i>(w)));
#else
  return reinterpret_cast<VecI>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sums), reinterpret_cast<__m256i>(x),
                                                        reinterpret_cast<__m256i>(w)));
#endif
}

#else

constexpr bool kDotInt8 = false;
using QuantizedX = uint16_t;
struct WeightsInt8 {
  VecI even, odd;
};
using FourOfX = WeightsInt8;

SLIPSTREAM_INLINE WeightsInt8 load_int8(const void* p) {
  const VecInt16 words = reinterpret_cast<VecInt16>(load_words(p));
  return {reinterpret_cast<VecI>((words << 8) >> 8), reinterpret_cast<VecI>(words >> 8)};
}
SLIPSTREAM_INLINE FourOfX broadcast_four(const uint16_t* x) { return {broadcast_word(x), broadcast_word(x + 2)}; }

SLIPSTREAM_INLINE VecI dot_int8(VecI sums, const FourOfX& x, const WeightsInt8& w) {
  return sums + multiply_pairs(x.even, w.even) + multiply_pairs(x.odd, w.odd);
}

template <int... lane>
SLIPSTREAM_INLINE VecI even_first(VecI v, LaneList<lane...>) {
  return __builtin_shuffle(v, VecI{(lane % 4 == 1 ? lane + 1 : lane % 4 == 2 ? lane - 1 : lane)...});
}
SLIPSTREAM_INLINE void store_quantized(uint16_t* p, VecI v) {
  *reinterpret_cast<VecHInMemory*>(p) = narrowed(reinterpret_cast<VecU>(even_first(v, Lanes{})));
}

#endif

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
