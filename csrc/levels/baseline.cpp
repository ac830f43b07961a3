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
const KernelTable table_baseline = {baseline::linear_scratch, baseline::linear, baseline::activation,
    baseline::transpose, baseline::norm,
    baseline::attention_scratch, baseline::attention,
    baseline::gather_image, baseline::convolution, baseline::depthwise,
    baseline::linear_int8_scratch, baseline::linear_int8, baseline::range_of_rows,
    baseline::depthwise_last,
    baseline::winograd_scratch, baseline::winograd, baseline::recurrent_cell,
    baseline::pooling};
}  // namespace slipstream
