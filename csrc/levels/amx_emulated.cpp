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
#include "../simd/dot_int8.h"
#include "../simd/tile_emulated.h"
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
const KernelTable table_amx_emulated = {amx_emulated::amx_linear_scratch, amx_emulated::amx_linear, amx_emulated::activation,
    amx_emulated::transpose, amx_emulated::norm,
    amx_emulated::attention_scratch, amx_emulated::attention,
    amx_emulated::gather_image, amx_emulated::convolution, amx_emulated::depthwise,
    amx_emulated::amx_linear_int8_scratch, amx_emulated::amx_linear_int8, amx_emulated::range_of_rows,
    amx_emulated::depthwise_last,
    amx_emulated::winograd_scratch, amx_emulated::winograd, amx_emulated::recurrent_cell,
    amx_emulated::pooling};
}  // namespace slipstream
