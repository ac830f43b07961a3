// SPDX-License-Identifier: Apache-2.0
// Level amx_emulated: the tile kernels on plain C++ tiles, so that their addressing, tails and order are tested on every
// machine. Slow, and in use only when SLIPSTREAM_ISA names it.
#include "../isa/table.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define SLIPSTREAM_LEVEL amx_emulated
#define SLIPSTREAM_WIDTH 4
#include "../simd/vec.h"
#include "../simd/math.h"
#include "../simd/dot_int16.h"
#include "../simd/dot_int8.h"
#include "../simd/tile_emulated.h"
#include "../kernels/amx/every_kernel.h"

namespace slipstream {
constexpr KernelTable table_amx_emulated = amx_emulated::every_kernel_with_tiles();
}  // namespace slipstream
