// SPDX-License-Identifier: Apache-2.0
// What a depthwise convolution is asked to do, channels last on both sides, and how its weights are packed.
#pragma once

#include "linear.h"

namespace slipstream {

// Images whose channels are neighbours in memory; steps between images, rows and pixels in elements.
struct Images {
  const void* data = nullptr;
  ElementType type = ElementType::float32;
  int64_t image = 0, row = 0, pixel = 0;
};

// Packed weights are float32, [block of 32 channels][tap][32], twice: in the channels' order, and with each block's even channels
// before its odd ones, as words of two bfloat16 come apart. Channels are zero-padded to the block.
constexpr int64_t kBlockChannels = 32;

constexpr int64_t packed_channels(int64_t channels) { return round_up(channels, kBlockChannels); }

struct DepthwiseCall {
  int64_t channels = 0, height = 0, width = 0, out_height = 0, out_width = 0;
  int64_t kernel_height = 1, kernel_width = 1, stride_height = 1, stride_width = 1;
  int64_t padding_height = 0, padding_width = 0, dilation_height = 1, dilation_width = 1;
  Images x;                     // [image, height, width, channels]
  const float* weight = nullptr;
  const float* bias = nullptr;  // [channels] or null
  PostOp post_op = PostOp::none;
  Images residual;              // [image, out_height, out_width, channels] or data == nullptr: before the post-op
  void* y = nullptr;            // [image, out_height, out_width, channels], dense
  ElementType y_type = ElementType::float32;

  int64_t taps() const { return kernel_height * kernel_width; }
  const float* split_weight() const { return weight + packed_channels(channels) * taps(); }
};

// The part that one thread computes: rows of y [row_begin, row_end), counted through all images, and blocks of channels
// [block_begin, block_end).
struct DepthwisePart {
  int64_t row_begin, row_end, block_begin, block_end;
};

}  // namespace slipstream
