// SPDX-License-Identifier: Apache-2.0
// The operands of a norm of rows, checked and as plain values.
#pragma once

#include <optional>

#include "../kernels/norm_call.h"
#include "tensor_rows.h"

namespace slipstream {

// Elements that repay waking another thread to normalize them: about 5 us at a sixth of a nanosecond an element.
constexpr int64_t kNormWorthAThread = 32768;

struct NormOperands {
  Tensor x, residual, weight, bias;  // as they are read: dense copies where the caller's could not be
  int64_t rows = 0;
  NormCall call;
};

inline void take_parameter(const std::optional<Tensor>& given, const char* argument, int64_t columns, Tensor& holder,
                           const void*& data, ElementType& type) {
  if (!given) return;
  STD_TORCH_CHECK(given->dim() == 1 && given->size(0) == columns, argument, ": not one value for each of x's columns");
  type = element_type(*given, argument);
  holder = given->stride(0) == 1 || columns == 1 ? *given : torch::stable::contiguous(*given);
  data = holder.data_ptr();
}

inline NormOperands norm_operands(const Tensor& x, const std::optional<Tensor>& residual, const std::optional<Tensor>& weight,
                                  const std::optional<Tensor>& bias, double eps, bool centred, bool one_more) {
  STD_TORCH_CHECK(x.dim() > 0, "x: a scalar has no row to normalize");
  NormOperands o;
  NormCall& call = o.call;
  call.columns = x.size(x.dim() - 1);
  call.x = as_rows(x, "x", o.x, o.rows);
  if (residual) {
    STD_TORCH_CHECK(residual->dim() == x.dim(), "residual: another shape than x");
    for (int64_t d = 0; d < x.dim(); ++d) {
      STD_TORCH_CHECK(residual->size(d) == x.size(d), "residual: another shape than x");
    }
    int64_t rows = 0;
    call.residual = as_rows(*residual, "residual", o.residual, rows);
  }
  take_parameter(weight, "weight", call.columns, o.weight, call.weight, call.weight_type);
  take_parameter(bias, "bias", call.columns, o.bias, call.bias, call.bias_type);
  call.eps = static_cast<float>(eps);
  call.centred = centred;
  call.one_more = one_more;
  return o;
}

}  // namespace slipstream
