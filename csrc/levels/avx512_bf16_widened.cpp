// SPDX-License-Identifier: Apache-2.0
// Level avx512_bf16_widened: conversion to bfloat16 with rounding to nearest even; products are of float32, which bfloat16 is
// widened to in registers. For processors that multiply so faster than by dot products: isa/level.h.
#include "../isa/table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx512bf16")
#pragma GCC target("prefer-vector-width=512")

#define SLIPSTREAM_LEVEL avx512_bf16_widened
#define SLIPSTREAM_WIDTH 16
#define SLIPSTREAM_CONVERT_BF16
#define SLIPSTREAM_DOT_INT8
#include "../simd/vec.h"
#include "../simd/convert_bf16.h"
#include "../simd/math.h"
#include "../simd/dot_int16.h"
#include "../simd/dot_int8.h"
#include "../kernels/every_kernel.h"

namespace slipstream {
constexpr KernelTable table_avx512_bf16_widened = avx512_bf16_widened::every_kernel();
}  // namespace slipstream
#endif
