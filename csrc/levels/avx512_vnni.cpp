// SPDX-License-Identifier: Apache-2.0
// Level avx512_vnni: dot products of int8 (vpdpbusd). Everything else is avx512's.
#include "../isa/table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,prefer-vector-width=512")

#define SLIPSTREAM_LEVEL avx512_vnni
#define SLIPSTREAM_WIDTH 16
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
const KernelTable table_avx512_vnni = avx512_vnni::with_scaled<avx512_vnni::Step::int16, table_avx512>(avx512_vnni::with_int8(table_avx512));
}  // namespace slipstream
#endif
