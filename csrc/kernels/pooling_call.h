// SPDX-License-Identifier: Apache-2.0
// What a pooling kernel is asked to do, channels last on both sides.
#pragma once

#include "depthwise_call.h"

namespace slipstream {

struct PoolingCall {
  int64_t channels = 0, height = 0, width = 0, out_height = 0, out_width = 0;
  int64_t kernel_height = 1, kernel_width = 1, stride_height = 1, stride_width = 1;
  int64_t padding_height = 0, padding_width = 0, dilation_height = 1, dilation_width = 1;
  bool maximum = true;            // else the mean
  bool count_padding = true;      // of a mean: pixels of the padding count
  int64_t divisor = 0;            // of a mean, where it is not the number of pixels; 0: it is
  Images x;                       // [image, height, width, channels]
  void* y = nullptr;              // [image, out_height, out_width, channels], dense, of x's type
};

}  // namespace slipstream
