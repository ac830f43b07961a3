// SPDX-License-Identifier: Apache-2.0
// slipstream::normed_linear: a linear of normalized rows, which the thread that multiplies them has just written.
#include "../isa/level.h"
#include "linear_operands.h"
#include "norm_operands.h"
#include "run_linear.h"
#include "scratch.h"

namespace slipstream {
namespace {

// y [..., n] = residual + multiplier * post_op(norm(x [..., k]) . W^T + bias [n]); norm and linear as the operators of these names,
// with nothing added before. What is multiplied is float32 or bfloat16 as asked, and so is y.
Tensor normed_linear(const Tensor& x, std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, double eps, bool centred,
                     bool bfloat16_rows, const Tensor& packed, int64_t n, int64_t k, std::optional<Tensor> bias, int64_t post_op,
                     std::optional<Tensor> multiplier, std::optional<Tensor> residual, bool bfloat16_out) {
  NormOperands o = norm_operands(x, std::nullopt, norm_weight, norm_bias, eps, centred, false);
  STD_TORCH_CHECK(o.call.columns == k, "x: last dimension is not in_features");
  o.call.y_type = bfloat16_rows ? ElementType::bfloat16 : ElementType::float32;
  const Tensor rows = empty({o.rows, k}, scalar_type(o.call.y_type));
  o.call.y = rows.data_ptr();
  LinearCall call;
  call.n = n;
  call.k = k;
  Tensor holder;
  take_packed(call, packed, holder);
  Tensor y = LinearOperands::result(call, x, bfloat16_out);
  LinearOperands operands;
  operands.take(call, rows, bias, post_op, multiplier, residual, false);
  const auto normalize = table().norm;
  const auto make = [&](int64_t begin, int64_t end) {
    if (k > 0) normalize(o.call, begin, end, thread_scratch().take(norm_scratch(k)));
  };
  run_linear(call, make, kNormWorthAThread);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def(
      "normed_linear(Tensor x, Tensor? norm_weight, Tensor? norm_bias, float eps, bool centred, bool bfloat16_rows, Tensor packed, "
      "int n, int k, Tensor? bias, int post_op, Tensor? multiplier, Tensor? residual, bool bfloat16_out) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("normed_linear", TORCH_BOX(&normed_linear)); }

}  // namespace slipstream
