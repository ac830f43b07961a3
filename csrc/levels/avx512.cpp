// SPDX-License-Identifier: Apache-2.0
// Level avx512: 512-bit registers (F, BW, DQ, VL, CD).
#include "../isa/table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512")

#define SLIPSTREAM_LEVEL avx512
#define SLIPSTREAM_WIDTH 16
#include "../simd/vec.h"
#include "../simd/math.h"
#include "../simd/dot_int16.h"
#include "../simd/dot_int8.h"
#include "../kernels/every_kernel.h"

namespace slipstream {
constexpr KernelTable table_avx512 = avx512::every_kernel();
}  // namespace slipstream
#endif
