// SPDX-License-Identifier: Apache-2.0
// What a convolution or a pooling is told beside its tensors: the window that slides over the image, as eight or ten numbers.
#pragma once

#include <vector>

#include "tensor_rows.h"

namespace slipstream {

// numbers: kernel, stride, padding, dilation, of two dimensions each; where `may_be_uneven`, perhaps the padding behind the image,
// where it is another than in front.
template <typename Call>
void set_window(Call& call, const std::vector<int64_t>& numbers, bool may_be_uneven) {
  STD_TORCH_CHECK(numbers.size() == 8 || (may_be_uneven && numbers.size() == 10),
                  "numbers: not kernel, stride, padding, dilation of two dimensions");
  for (size_t i = 0; i < numbers.size(); ++i) {
    STD_TORCH_CHECK(numbers[i] >= (i == 4 || i == 5 || i >= 8 ? 0 : 1), "numbers: kernel, stride, dilation from 1, padding from 0");
  }
  call.kernel_height = numbers[0];
  call.kernel_width = numbers[1];
  call.stride_height = numbers[2];
  call.stride_width = numbers[3];
  call.padding_height = numbers[4];
  call.padding_width = numbers[5];
  call.dilation_height = numbers[6];
  call.dilation_width = numbers[7];
}

// The number of windows that lie within the padded image, whose height and width the call has.
template <typename Call>
void set_out_size(Call& call, const std::vector<int64_t>& numbers) {
  const size_t behind = numbers.size() == 10 ? 8 : 4;
  const int64_t reach_h = (call.kernel_height - 1) * call.dilation_height, reach_w = (call.kernel_width - 1) * call.dilation_width;
  const int64_t room_h = call.height + call.padding_height + numbers[behind] - reach_h - 1;
  const int64_t room_w = call.width + call.padding_width + numbers[behind + 1] - reach_w - 1;
  STD_TORCH_CHECK(room_h >= 0 && room_w >= 0, "x: smaller than the kernel");
  call.out_height = room_h / call.stride_height + 1;
  call.out_width = room_w / call.stride_width + 1;
}

}  // namespace slipstream
