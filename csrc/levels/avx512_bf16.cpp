// SPDX-License-Identifier: Apache-2.0
// Level avx512_bf16: dot products of bfloat16 pairs (vdpbf16ps), conversion with rounding to nearest even. Where the digits of bfloat16 do
// not do, in minimal filtering's tiles of 4 x 4, 16-bit integers are multiplied, as many at a time.
#include "../isa/table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx512bf16")
#pragma GCC target("prefer-vector-width=512")

#define SLIPSTREAM_LEVEL avx512_bf16
#define SLIPSTREAM_WIDTH 16
#define SLIPSTREAM_CONVERT_BF16
#define SLIPSTREAM_DOT_BF16
#define SLIPSTREAM_DOT_INT8
#define SLIPSTREAM_INT16
#include "../simd/vec.h"
#include "../simd/convert_bf16.h"
#include "../simd/dot_bf16.h"
#include "../simd/math.h"
#include "../simd/dot_int16.h"
#include "../simd/dot_int8.h"
#include "../kernels/every_kernel.h"
#include "../kernels/with_scaled.h"

namespace slipstream {
namespace {
constexpr KernelTable unscaled = avx512_bf16::every_kernel();
}
constexpr KernelTable table_avx512_bf16 = avx512_bf16::with_scaled_winograd<avx512_bf16::Step::int16, unscaled>(unscaled);
}  // namespace slipstream
#endif
