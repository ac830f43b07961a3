// SPDX-License-Identifier: Apache-2.0
// Two registers of floats rounded to one of bfloat16 (AVX512_BF16). Denormals count as zero (the instruction's own rule). Needs
// simd/vec.h and <immintrin.h>.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

typedef uint16_t VecHH __attribute__((vector_size(kWidth * 4)));
typedef uint16_t VecHHInMemory __attribute__((vector_size(kWidth * 4), aligned(2), may_alias));

// a rounded to bfloat16, then b.
SLIPSTREAM_INLINE VecHH halves_of(Vec a, Vec b) {
  return reinterpret_cast<VecHH>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a)));
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
