// SPDX-License-Identifier: Apache-2.0
// Level avx2: 256-bit registers, FMA, F16C.
#include "../isa/table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")

#define SLIPSTREAM_LEVEL avx2
#define SLIPSTREAM_WIDTH 8
#define SLIPSTREAM_INT16
#include "../simd/vec.h"
#include "../simd/math.h"
#include "../simd/dot_int16.h"
#include "../simd/dot_int8.h"
#include "../kernels/every_kernel.h"
#include "../kernels/with_scaled.h"

namespace slipstream {
namespace {
constexpr KernelTable unscaled = avx2::every_kernel();
}
constexpr KernelTable table_avx2 = avx2::with_scaled<avx2::Step::int16, unscaled>(unscaled);
}  // namespace slipstream
#endif
