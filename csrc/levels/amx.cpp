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
#include "../kernels/amx/every_kernel.h"

namespace slipstream {
constexpr KernelTable table_amx = amx::every_kernel_with_tiles();
}  // namespace slipstream
#endif
