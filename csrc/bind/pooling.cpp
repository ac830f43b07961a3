// SPDX-License-Identifier: Apache-2.0
// slipstream::pooling: the maximum or the mean of windows of an image, channels last on both sides.
#include "../isa/level.h"
#include "image_rows.h"
#include "window.h"

namespace slipstream {
namespace {

// Elements read that repay waking another thread: about 5 us at 10 a nanosecond.
constexpr int64_t kWorthAThread = 50'000;

// As torch has it: with `ceil`, a last window that begins inside the image or its left padding counts though it ends outside.
int64_t windows(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, bool ceil) {
  const int64_t room = size + 2 * padding - (kernel - 1) * dilation - 1;
  STD_TORCH_CHECK(room >= 0, "x: smaller than the kernel");
  const int64_t count = (room + (ceil ? stride - 1 : 0)) / stride + 1;
  return ceil && (count - 1) * stride >= size + padding ? count - 1 : count;
}

// divisor 0: the number of pixels.
Tensor pooling(const Tensor& x, bool maximum, std::vector<int64_t> numbers, bool ceil, bool count_padding, int64_t divisor) {
  PoolingCall call;
  set_window(call, numbers, /*may_be_uneven=*/false);
  STD_TORCH_CHECK(2 * numbers[4] <= numbers[0] && 2 * numbers[5] <= numbers[1], "padding: more than half of the kernel");
  call.x = as_images(x, "x");
  call.channels = x.size(1);
  call.height = x.size(2);
  call.width = x.size(3);
  call.maximum = maximum;
  call.count_padding = count_padding;
  call.divisor = divisor;
  call.out_height = windows(call.height, numbers[0], numbers[2], numbers[4], numbers[6], ceil);
  call.out_width = windows(call.width, numbers[1], numbers[3], numbers[5], numbers[7], ceil);
  Tensor y = empty_images(x.size(0), call.channels, call.out_height, call.out_width, call.x.type);
  call.y = y.data_ptr();
  if (y.numel() == 0) return y;
  const auto kernel = table().pooling;
  const int64_t work = call.out_width * call.channels * call.kernel_height * call.kernel_width;
  for_rows(x.size(0) * call.out_height, call.channels, work, kWorthAThread, [&](const RowsPart& part) { kernel(call, part); });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def(
      "pooling(Tensor x, bool maximum, int[] numbers, bool ceil_mode, bool count_include_pad, int divisor) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("pooling", TORCH_BOX(&pooling)); }

}  // namespace slipstream
