// SPDX-License-Identifier: Apache-2.0
// Level avx2: 256-bit registers, FMA, F16C.
#include "../isa/table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")

#define SLIPSTREAM_LEVEL avx2
#define SLIPSTREAM_WIDTH 8
#include "../simd/vec.h"
#include "../simd/math.h"
#include "../simd/dot_int8.h"
#include "../kernels/post_op.h"
#include "../kernels/activation.h"
#include "../kernels/transpose.h"
#include "../kernels/norm.h"
#include "../kernels/linear_finish.h"
#include "../kernels/linear_vector.h"
#include "../kernels/linear_int8.h"
#include "../kernels/attention.h"
#include "../kernels/recurrent.h"
#include "../kernels/convolution.h"
#include "../kernels/depthwise_tile.h"
#include "../kernels/winograd_transform.h"
#include "../kernels/winograd.h"
#include "../kernels/depthwise.h"
#include "../kernels/pooling.h"

namespace slipstream {
const KernelTable table_avx2 = {avx2::linear_scratch, avx2::linear, avx2::activation,
    avx2::transpose, avx2::norm,
    avx2::attention_scratch, avx2::attention,
    avx2::gather_image, avx2::convolution, avx2::depthwise,
    avx2::linear_int8_scratch, avx2::linear_int8, avx2::range_of_rows,
    avx2::depthwise_last,
    avx2::winograd_scratch, avx2::winograd, avx2::recurrent_cell,
    avx2::pooling};
}  // namespace slipstream
#endif
