// SPDX-License-Identifier: Apache-2.0
// bfloat16 pairs on AVX512_BF16: sums[i] += a[i].low * b[i].low + a[i].high * b[i].high. Denormals count as zero (the
// instruction's own rule). Needs simd/vec.h and <immintrin.h>.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

SLIPSTREAM_INLINE Vec dot_bf16(Vec sums, VecU a, VecU b) {
  return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sums), reinterpret_cast<__m512bh>(a),
                                                reinterpret_cast<__m512bh>(b)));
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
