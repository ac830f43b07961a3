// SPDX-License-Identifier: Apache-2.0
// What a direct convolution with channels last on both sides is asked to do, and how its weights are packed.
#pragma once

#include "depthwise_call.h"
#include "operand_scale.h"
#include "linear.h"

namespace slipstream {

// One group: its channels of x, its panels, its columns of y.
struct ConvolutionLastCall {
  int64_t in_channels = 0, height = 0, width = 0, out_height = 0, out_width = 0;
  int64_t kernel_height = 1, kernel_width = 1, stride_height = 1, stride_width = 1;
  int64_t padding_height = 0, padding_width = 0, dilation_height = 1, dilation_width = 1;  // padding above and on the left
  Images x;             // [image, height, width, in_channels]
  int64_t channel = 1;  // elements from a channel of x to the next; where it is another, pixels of a row are neighbours
  // Rows are the pixels of y [image, out_height, out_width], columns its channels. Its x is not used. Its weight is packed as
  // in linear.h, in panels of the depth [row of the kernel][row_depth()]: a row of the kernel times in_channels, as pixels of
  // one row lie in memory, and zeros behind it; or in parts of bfloat16.
  LinearCall linear;
  // Scaled weights: what each image of x is scaled by, or null, and then they are widened.
  const OperandScale* scales = nullptr;

  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t row_depth() const { return packed_depth(linear.weight_type, kernel_width * in_channels); }
  int64_t depth() const { return kernel_height * row_depth(); }  // of the whole panel
  int64_t panel_elements() const { return panel_size(linear.weight_type, depth()) * linear.weight_parts; }
  int64_t element_bytes() const { return linear.weight_type == ElementType::float32 ? 4 : 2; }
  int64_t panel_bytes() const { return panel_elements() * element_bytes(); }
  int64_t row_bytes() const { return row_depth() * kPanelColumns * element_bytes(); }  // of a row of the kernel, in one part
  // From the first row or column that an output sees to the last.
  int64_t reach_height() const { return (kernel_height - 1) * dilation_height; }
  int64_t reach_width() const { return (kernel_width - 1) * dilation_width; }
};

}  // namespace slipstream
