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
#include "../kernels/linear_vector.h"
#include "../kernels/linear_int8.h"
#include "../kernels/int16_operands.h"
#include "../kernels/linear_scaled.h"

namespace slipstream {
namespace {

KernelTable with_integers(KernelTable below) {
  using namespace avx512_vnni;
  KernelTable table = with_int8(below);
  table.linear_scratch = [](const LinearCall& call, const LinearPart& part) {
    return call.weight_type == ElementType::int16 ? scaled_scratch<Step::int16>(call, part) : table_avx512.linear_scratch(call, part);
  };
  table.linear = [](const LinearCall& call, const LinearPart& part, void* scratch) {
    call.weight_type == ElementType::int16 ? ScaledLinear<Step::int16>(call, part, scratch).run()
                                           : table_avx512.linear(call, part, scratch);
  };
  table.fit_panel_int16 = fit_panel_int16;
  return table;
}

}  // namespace

const KernelTable table_avx512_vnni = with_integers(table_avx512);
}  // namespace slipstream
#endif
