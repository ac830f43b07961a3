// SPDX-License-Identifier: Apache-2.0
// A 1 x 1 convolution as the linear that it is, for operators that have one inside.
#pragma once

#include <optional>

#include "scaled_operands.h"
#include "tensor_rows.h"

namespace slipstream {

// A 1 x 1 convolution over some pixels: everything but where they are. k is 0 where it is absent. The holder keeps its weight alive.
inline LinearCall pointwise(const std::optional<Tensor>& packed, const std::optional<Tensor>& bias, int64_t post_op, bool bfloat16_out,
                            int64_t n, int64_t k, Tensor& holder) {
  LinearCall call;
  if (!packed) return call;
  call.n = call.y_stride = n;
  call.k = call.x.stride = k;
  call.weight_type = packed_type(*packed);
  STD_TORCH_CHECK(packed->numel() == packed_size(call.weight_type, n, k), "packed: not packed for these sizes");
  take_weight(call, *packed, holder);
  STD_TORCH_CHECK(post_op >= 0 && post_op < kPostOpCount, "post_op: unknown code");
  call.post_op = static_cast<PostOp>(post_op);
  call.y_type = bfloat16_out ? ElementType::bfloat16 : ElementType::float32;
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == n && bias->is_contiguous(), "bias: not a dense vector of channels");
    call.bias_type = element_type(*bias, "bias");
    call.bias = bias->data_ptr();
  }
  return call;
}

}  // namespace slipstream
