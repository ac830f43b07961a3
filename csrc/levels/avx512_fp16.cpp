// SPDX-License-Identifier: Apache-2.0
// Level avx512_fp16: products of bfloat16 in float16, to which both sides are scaled, twice as many an instruction as of float32;
// sums leave float16 before they lose more than bfloat16 has (kernels/half_operands.h). Beside everything of avx512_bf16_widened.
#include "../isa/table.h"

#if defined(__x86_64__) && !defined(__clang__) && __GNUC__ < 12
#pragma message("this compiler does not know AVX512_FP16 (GCC 12 and Clang 14 do): level avx512_fp16 will multiply widened")
namespace slipstream {
const KernelTable table_avx512_fp16 = table_avx512_bf16_widened;
}  // namespace slipstream
#elif defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx512bf16")
#pragma GCC target("avx512fp16,prefer-vector-width=512")

#define SLIPSTREAM_LEVEL avx512_fp16
#define SLIPSTREAM_WIDTH 16
#define SLIPSTREAM_CONVERT_BF16
#define SLIPSTREAM_HALF
#define SLIPSTREAM_DOT_INT8
#include "../simd/vec.h"
#include "../simd/convert_bf16.h"
#include "../simd/half.h"
#include "../simd/math.h"
#include "../simd/dot_int16.h"
#include "../simd/dot_int8.h"
#include "../kernels/every_kernel.h"
#include "../kernels/with_scaled.h"

namespace slipstream {
namespace {
constexpr KernelTable unscaled = avx512_fp16::every_kernel();
}
constexpr KernelTable table_avx512_fp16 = avx512_fp16::with_scaled<avx512_fp16::Step::half, unscaled>(unscaled);
}  // namespace slipstream
#endif
