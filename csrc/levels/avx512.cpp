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
const KernelTable table_avx512 = {avx512::linear_scratch, avx512::linear, avx512::activation,
    avx512::transpose, avx512::norm,
    avx512::attention_scratch, avx512::attention,
    avx512::gather_image, avx512::convolution, avx512::depthwise,
    avx512::linear_int8_scratch, avx512::linear_int8, avx512::range_of_rows,
    avx512::depthwise_last,
    avx512::winograd_scratch, avx512::winograd, avx512::recurrent_cell,
    avx512::pooling};
}  // namespace slipstream
#endif
