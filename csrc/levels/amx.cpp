// SPDX-License-Identifier: Apache-2.0
// Level amx: tiles of bfloat16 (and of int8), beside everything of avx512_bf16.
#include "../isa/table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx512bf16")
#pragma GCC target("amx-tile,amx-bf16,amx-int8,prefer-vector-width=512")

#define SLIPSTREAM_LEVEL amx
#define SLIPSTREAM_WIDTH 16
#define SLIPSTREAM_CONVERT_BF16
#define SLIPSTREAM_DOT_BF16
#define SLIPSTREAM_DOT_INT8
#include "../simd/vec.h"
#include "../simd/convert_bf16.h"
#include "../simd/dot_bf16.h"
#include "../simd/math.h"
#include "../simd/dot_int16.h"
#include "../simd/dot_int8.h"
#include "../simd/tile_amx.h"
#include "../kernels/amx/every_kernel.h"

namespace slipstream {
namespace {

// Processors with tiles multiply faster widened than by dot products (isa/level.h). Where x is rounded to bfloat16 anyway, as in
// what tiles compute, that is kept for few rows too; a depthwise convolution has no tiles beside it.
KernelTable every_kernel() {
  KernelTable table = amx::every_kernel_with_tiles();
  table.depthwise_last = table_avx512_bf16_widened.depthwise_last;
  return table;
}

}  // namespace
const KernelTable table_amx = every_kernel();
}  // namespace slipstream
#endif
