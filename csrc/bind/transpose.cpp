// SPDX-License-Identifier: Apache-2.0
// slipstream::transpose: the last two dimensions of a contiguous [batch, rows, columns] change places in memory.
#include "../isa/level.h"
#include "shared_for.h"
#include "tensor_rows.h"

namespace slipstream {
namespace {

// Elements that repay waking another thread: about 5 us at half a nanosecond an element.
constexpr int64_t kWorthAThread = 16384;

// x [batch, rows, columns], contiguous -> y [batch, columns, rows], contiguous, bfloat16 or float32 as asked.
Tensor transpose(const Tensor& x, bool bfloat16_out) {
  STD_TORCH_CHECK(x.dim() == 3 && x.is_contiguous(), "x: not a contiguous [batch, rows, columns]");
  TransposeCall whole;
  whole.x_type = element_type(x, "x");
  whole.y_type = bfloat16_out ? ElementType::bfloat16 : ElementType::float32;
  const int64_t batch = x.size(0);
  whole.rows = whole.y_stride = x.size(1);
  whole.columns = whole.x_stride = x.size(2);
  Tensor y = empty({batch, whole.columns, whole.rows}, scalar_type(whole.y_type));
  const char* from = static_cast<const char*>(x.data_ptr());
  char* to = static_cast<char*>(y.data_ptr());
  const int64_t image = whole.rows * whole.columns;
  if (image == 0) return y;
  const auto kernel = table().transpose;
  shared_for(batch * whole.columns, whole.rows, kWorthAThread, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t index = begin / whole.columns, first = begin % whole.columns;
      const int64_t last = end - begin < whole.columns - first ? first + end - begin : whole.columns;
      TransposeCall call = whole;
      call.x = from + index * image * element_size(whole.x_type);
      call.y = to + index * image * element_size(whole.y_type);
      kernel(call, first, last);
      begin += last - first;
    }
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) { library.def("transpose(Tensor x, bool bfloat16_out) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("transpose", TORCH_BOX(&transpose)); }

}  // namespace slipstream
