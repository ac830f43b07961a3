// SPDX-License-Identifier: Apache-2.0
// Level baseline: what every processor of this architecture has (x86-64: SSE2).
#include "../isa/table.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define SLIPSTREAM_LEVEL baseline
#define SLIPSTREAM_WIDTH 4
#include "../simd/vec.h"
#include "../simd/math.h"
#include "../simd/dot_int16.h"
#include "../simd/dot_int8.h"
#include "../kernels/every_kernel.h"

namespace slipstream {
constexpr KernelTable table_baseline = baseline::every_kernel();
}  // namespace slipstream
