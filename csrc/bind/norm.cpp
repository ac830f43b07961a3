// SPDX-License-Identifier: Apache-2.0
// slipstream::norm, slipstream::norm_of_sum: layer norm and RMS norm over the last dimension.
#include <tuple>

#include "../isa/level.h"
#include "norm_operands.h"
#include "scratch.h"
#include "shared_for.h"

namespace slipstream {
namespace {

Tensor empty_like(const Tensor& x, ElementType type) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < x.dim(); ++d) sizes.push_back(x.size(d));
  return empty(sizes, scalar_type(type));
}

void run(const NormOperands& o) {
  if (o.rows == 0 || o.call.columns == 0) return;
  const auto kernel = table().norm;
  shared_for(o.rows, o.call.columns, kNormWorthAThread, [&](int64_t begin, int64_t end) {
    kernel(o.call, begin, end, thread_scratch().take(norm_scratch(o.call.columns)));
  });
}

ElementType type_of(bool bfloat16) { return bfloat16 ? ElementType::bfloat16 : ElementType::float32; }

// x, residual [..., columns], weight and bias [columns] -> y, contiguous.
Tensor norm(const Tensor& x, std::optional<Tensor> residual, std::optional<Tensor> weight, std::optional<Tensor> bias, double eps,
            bool centred, bool one_more, bool bfloat16_out) {
  NormOperands o = norm_operands(x, residual, weight, bias, eps, centred, one_more);
  o.call.y_type = type_of(bfloat16_out);
  Tensor y = empty_like(x, o.call.y_type);
  o.call.y = y.data_ptr();
  run(o);
  return y;
}

// The same, and x + residual beside it.
std::tuple<Tensor, Tensor> norm_of_sum(const Tensor& x, const Tensor& residual, std::optional<Tensor> weight,
                                       std::optional<Tensor> bias, double eps, bool centred, bool one_more, bool bfloat16_sum,
                                       bool bfloat16_out) {
  NormOperands o = norm_operands(x, residual, weight, bias, eps, centred, one_more);
  o.call.y_type = type_of(bfloat16_out);
  o.call.sum_type = type_of(bfloat16_sum);
  Tensor sum = empty_like(x, o.call.sum_type), y = empty_like(x, o.call.y_type);
  o.call.sum = sum.data_ptr();
  o.call.y = y.data_ptr();
  run(o);
  return std::make_tuple(sum, y);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def(
      "norm(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, bool centred, bool one_more, "
      "bool bfloat16_out) -> Tensor");
  library.def(
      "norm_of_sum(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps, bool centred, bool one_more, "
      "bool bfloat16_sum, bool bfloat16_out) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) {
  library.impl("norm", TORCH_BOX(&norm));
  library.impl("norm_of_sum", TORCH_BOX(&norm_of_sum));
}

}  // namespace slipstream
