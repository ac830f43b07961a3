// SPDX-License-Identifier: Apache-2.0
// slipstream::activation: an elementwise post-op over a dense tensor of any strides.
#include <algorithm>

#include "../isa/level.h"
#include "shared_for.h"
#include "tensor_rows.h"

namespace slipstream {
namespace {

// Elements below which another thread costs more than it brings: about 5 us at one element a nanosecond.
constexpr int64_t kWorthAThread = 8192;

// Whether the elements fill their memory without holes or overlap, in any order of dimensions.
bool is_dense(const Tensor& tensor) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) != 1) dims.emplace_back(tensor.stride(d), tensor.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// y has x's strides where x is dense, else the strides of a contiguous tensor.
Tensor activation(const Tensor& x, int64_t post_op, bool bfloat16_out) {
  STD_TORCH_CHECK(post_op >= 0 && post_op < kPostOpCount, "post_op: unknown code");
  const ElementType x_type = element_type(x, "x");
  const ElementType y_type = bfloat16_out ? ElementType::bfloat16 : ElementType::float32;
  const Tensor dense = is_dense(x) ? x : torch::stable::contiguous(x);
  std::vector<int64_t> sizes, strides;
  for (int64_t d = 0; d < x.dim(); ++d) {
    sizes.push_back(dense.size(d));
    strides.push_back(dense.stride(d));
  }
  Tensor y = empty_strided(sizes, strides, scalar_type(y_type));
  const void* from = dense.data_ptr();
  void* to = y.data_ptr();
  const auto kernel = table().activation;
  shared_for(dense.numel(), 1, kWorthAThread, [&](int64_t begin, int64_t end) {
    kernel(from, x_type, to, y_type, begin, end, static_cast<PostOp>(post_op));
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def("activation(Tensor x, int post_op, bool bfloat16_out) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("activation", TORCH_BOX(&activation)); }

}  // namespace slipstream
