// SPDX-License-Identifier: Apache-2.0
// The operands that every linear takes beside its weight, checked and as plain values.
#pragma once

#include <optional>

#include "tensor_rows.h"

namespace slipstream {

// Keeps the dense copies of a call's operands alive.
class LinearOperands {
 public:
  // Fills call's x, m, bias, post-op, multiplier and residual; call's n and k are set.
  void take(LinearCall& call, const Tensor& x, const std::optional<Tensor>& bias, int64_t post_op,
            const std::optional<Tensor>& multiplier, const std::optional<Tensor>& residual, bool residual_first) {
    const int64_t dims = x.dim();
    STD_TORCH_CHECK(dims >= 1 && x.size(dims - 1) == call.k, "x: last dimension is not in_features");
    STD_TORCH_CHECK(post_op >= 0 && post_op < kPostOpCount, "post_op: unknown code");
    call.post_op = static_cast<PostOp>(post_op);
    call.x = as_rows(x, "x", x_, call.m);
    if (bias) {
      STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == call.n, "bias: not a vector of out_features");
      call.bias_type = element_type(*bias, "bias");
      bias_ = call.n > 1 && bias->stride(0) != 1 ? torch::stable::contiguous(*bias) : *bias;
      call.bias = bias_.data_ptr();
    }
    call.multiplier = rows_like_y(multiplier, "multiplier", call, multiplier_);
    call.residual = rows_like_y(residual, "residual", call, residual_);
    call.residual_first = residual_first && call.residual.data;
  }

  // y [..., n], dense and not yet written; call knows it then.
  static Tensor result(LinearCall& call, const Tensor& x, bool bfloat16) {
    std::vector<int64_t> sizes(static_cast<size_t>(x.dim()));
    for (int64_t d = 0; d + 1 < x.dim(); ++d) sizes[static_cast<size_t>(d)] = x.size(d);
    sizes.back() = call.n;
    call.y_type = bfloat16 ? ElementType::bfloat16 : ElementType::float32;
    Tensor y = empty(sizes, scalar_type(call.y_type));
    call.y = y.data_ptr();
    call.y_stride = call.n;
    return y;
  }

 private:
  // The [m, n] view of an optional operand of y's shape.
  static Rows rows_like_y(const std::optional<Tensor>& operand, const char* argument, const LinearCall& call, Tensor& holder) {
    if (!operand) return {};
    int64_t rows = 0;
    const int64_t dims = operand->dim();
    STD_TORCH_CHECK(dims >= 1 && operand->size(dims - 1) == call.n, argument, ": last dimension is not out_features");
    const Rows result = as_rows(*operand, argument, holder, rows);
    STD_TORCH_CHECK(rows == call.m, argument, ": not of the output's shape");
    return result;
  }

  Tensor x_, bias_, multiplier_, residual_;
};

}  // namespace slipstream
