// SPDX-License-Identifier: Apache-2.0
// Level avx2 on processors that have AVX-VNNI, dot products of int8 in 256-bit registers: hybrid processors without AVX-512.
// No level of its own, since the processors of the levels above do not all have it. Everything else is avx2's.
#include "../isa/table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avxvnni")

#define SLIPSTREAM_LEVEL avx2_vnni
#define SLIPSTREAM_WIDTH 8
#define SLIPSTREAM_DOT_INT8
#include "../simd/vec.h"
#include "../simd/math.h"
#include "../simd/dot_int16.h"
#include "../simd/dot_int8.h"
#include "../kernels/post_op.h"
#include "../kernels/multiply_step.h"
#include "../kernels/linear_finish.h"
#include "../kernels/ask_for.h"
#include "../kernels/linear_vector.h"
#include "../kernels/linear_int8.h"
#include "../kernels/int16_operands.h"
#include "../kernels/linear_scaled.h"
#include "../kernels/convolution_last_scaled.h"
#include "../kernels/convolution_last_image.h"
#include "../kernels/convolution_lines.h"
#include "../kernels/convolution_last.h"
#include "../kernels/winograd_transform.h"
#include "../kernels/winograd.h"
#include "../kernels/with_scaled.h"

namespace slipstream {
const KernelTable table_avx2_vnni = avx2_vnni::with_scaled<avx2_vnni::Step::int16, table_avx2>(avx2_vnni::with_int8(table_avx2));
}  // namespace slipstream
#endif
