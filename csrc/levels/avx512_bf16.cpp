// SPDX-License-Identifier: Apache-2.0
// Level avx512_bf16: dot products of bfloat16 pairs (vdpbf16ps), conversion with rounding to nearest even.
#include "../isa/table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx512bf16")
#pragma GCC target("prefer-vector-width=512")

#define SLIPSTREAM_LEVEL avx512_bf16
#define SLIPSTREAM_WIDTH 16
#define SLIPSTREAM_DOT_BF16
#define SLIPSTREAM_DOT_INT8
#include "../simd/vec.h"
#include "../simd/dot_bf16.h"
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
const KernelTable table_avx512_bf16 = {avx512_bf16::linear_scratch, avx512_bf16::linear, avx512_bf16::activation,
    avx512_bf16::transpose, avx512_bf16::norm,
    avx512_bf16::attention_scratch, avx512_bf16::attention,
    avx512_bf16::gather_image, avx512_bf16::convolution, avx512_bf16::depthwise,
    avx512_bf16::linear_int8_scratch, avx512_bf16::linear_int8, avx512_bf16::range_of_rows,
    avx512_bf16::depthwise_last,
    avx512_bf16::winograd_scratch, avx512_bf16::winograd, avx512_bf16::recurrent_cell,
    avx512_bf16::pooling};
}  // namespace slipstream
#endif
