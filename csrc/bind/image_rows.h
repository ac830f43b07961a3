// SPDX-License-Identifier: Apache-2.0
// Images whose channels are innermost: from tensors, and their rows split over torch's threads.
#pragma once

#include "../kernels/depthwise_call.h"
#include "shared_for.h"
#include "tensor_rows.h"

namespace slipstream {

inline Images as_images(const Tensor& tensor, const char* argument) {
  STD_TORCH_CHECK(tensor.dim() == 4, argument, ": not of shape [batch, channels, height, width]");
  STD_TORCH_CHECK(tensor.size(1) <= 1 || tensor.stride(1) == 1 || tensor.numel() == 0, argument,
                  ": channels are not innermost; convert it with .contiguous(memory_format=torch.channels_last)");
  Images images;
  images.type = element_type(tensor, argument);
  images.data = tensor.data_ptr();
  images.image = tensor.stride(0);
  images.row = tensor.stride(2);
  images.pixel = tensor.stride(3);
  return images;
}

// [batch, channels, height, width] with channels innermost and nothing between pixels, rows and images.
inline bool is_channels_last(const Tensor& tensor) {
  const int64_t order[4] = {1, 3, 2, 0};
  int64_t stride = 1;
  for (const int64_t d : order) {
    if (tensor.size(d) != 1 && tensor.stride(d) != stride) return false;
    stride *= tensor.size(d);
  }
  return true;
}

inline ElementType channels_last(const Tensor& tensor, const char* argument) {
  STD_TORCH_CHECK(tensor.dim() == 4 && (tensor.numel() == 0 || is_channels_last(tensor)), argument,
                  ": not [batch, channels, height, width] in memory format channels_last");
  return element_type(tensor, argument);
}

// A residual of images of these sizes, its pixels as rows.
inline Rows residual_rows(const Tensor& residual, int64_t images, int64_t channels, int64_t height, int64_t width) {
  const ElementType type = channels_last(residual, "residual");
  STD_TORCH_CHECK(residual.size(0) == images && residual.size(1) == channels && residual.size(2) == height &&
                      residual.size(3) == width,
                  "residual: not of the output's shape");
  return {residual.data_ptr(), channels, type};
}

inline Tensor empty_images(int64_t images, int64_t channels, int64_t height, int64_t width, ElementType type) {
  const int64_t row = width * channels;
  return empty_strided({images, channels, height, width}, {height * row, 1, row, channels}, scalar_type(type));
}

// Calls kernel(part) for all `rows` rows and all channels. Threads take rows; where those are few, shares of a row's channels too.
// `work` is what a row costs, `worth_a_thread` what repays another thread.
template <typename Kernel>
void for_rows(int64_t rows, int64_t channels, int64_t work, int64_t worth_a_thread, const Kernel& kernel) {
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t blocks = packed_channels(channels) / kBlockChannels;
  const int64_t shares = rows >= 8 * threads ? 1 : blocks < threads ? blocks : threads;
  shared_for(shares * rows, work / shares, worth_a_thread, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t share = begin / rows, first = begin % rows;
      const int64_t last = end - begin < rows - first ? first + end - begin : rows;
      kernel(RowsPart{first, last, blocks * share / shares, blocks * (share + 1) / shares});
      begin += last - first;
    }
  });
}

}  // namespace slipstream
