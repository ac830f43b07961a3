// SPDX-License-Identifier: Apache-2.0
// bfloat16 pairs on AVX512_BF16: sums[i] += a[i].low * b[i].low + a[i].high * b[i].high. Denormals count as zero (the
// instruction's own rule). Needs simd/vec.h and <immintrin.h>.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

SLIPSTREAM_INLINE Vec dot_bf16(Vec sums, VecU a, VecU b) {
  return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sums), reinterpret_cast<__m512bh>(a),
                                                reinterpret_cast<__m512bh>(b)));
}

// Two pixels of 32 channels as pairs: of the channels 8 i + {0 .. 3}, and of the channels 8 i + {4 .. 7}.
SLIPSTREAM_INLINE VecU pair_low(VecU a, VecU b) {
  return reinterpret_cast<VecU>(_mm512_unpacklo_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
SLIPSTREAM_INLINE VecU pair_high(VecU a, VecU b) {
  return reinterpret_cast<VecU>(_mm512_unpackhi_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
