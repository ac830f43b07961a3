// SPDX-License-Identifier: Apache-2.0
// Level amx: tiles of bfloat16 (and of int8), beside everything of avx512_bf16.
#include "../isa/table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx512bf16")
#pragma GCC target("amx-tile,amx-bf16,amx-int8,prefer-vector-width=512")

#define SLIPSTREAM_LEVEL amx
#define SLIPSTREAM_WIDTH 16
#define SLIPSTREAM_DOT_BF16
#define SLIPSTREAM_DOT_INT8
#include "../simd/vec.h"
#include "../simd/dot_bf16.h"
#include "../simd/math.h"
#include "../simd/dot_int8.h"
#include "../simd/tile_amx.h"
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
#include "../kernels/amx/linear.h"
#include "../kernels/amx/linear_int8.h"

namespace slipstream {
const KernelTable table_amx = {amx::amx_linear_scratch, amx::amx_linear, amx::activation,
    amx::transpose, amx::norm,
    amx::attention_scratch, amx::attention,
    amx::gather_image, amx::convolution, amx::depthwise,
    amx::amx_linear_int8_scratch, amx::amx_linear_int8, amx::range_of_rows,
    amx::depthwise_last,
    amx::winograd_scratch, amx::winograd, amx::recurrent_cell,
    amx::pooling};
}  // namespace slipstream
#endif
