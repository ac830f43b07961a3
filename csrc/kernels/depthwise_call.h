// SPDX-License-Identifier: Apache-2.0
// What a depthwise convolution is asked to do, channels last on both sides, and how its weights are packed.
#pragma once

#include "linear.h"

namespace slipstream {

// Which taps of a line of the kernel that begins at pixel `start` lie inside a line of `size` pixels: [first, last).
struct TapRange {
  int64_t first, last;
};

inline TapRange taps_inside(int64_t start, int64_t size, int64_t dilation, int64_t kernel) {
  int64_t first = start < 0 ? (-start + dilation - 1) / dilation : 0;
  int64_t last = start < size ? (size - start + dilation - 1) / dilation : 0;
  last = last < kernel ? last : kernel;
  first = first < last ? first : last;
  return {first, last};
}

// Images whose channels are neighbours in memory; steps between images, rows and pixels in elements.
struct Images {
  const void* data = nullptr;
  ElementType type = ElementType::float32;
  int64_t image = 0, row = 0, pixel = 0;
};

// Packed weights: words of 32 bits, [block of 32 channels][tap][32], channels zero-padded to the block, two or three times:
//   natural  float32, in the channels' order
//   split    float32, each block's even channels before its odd ones, as words of two bfloat16 come apart
//   paired   for 5 and 7 columns: of each row pairs of neighbouring taps as two bfloat16, then the last tap as float32, in the
//            order in which the instructions that interleave two registers of bfloat16 bring channels (paired_slot)
constexpr int64_t kBlockChannels = 32;

constexpr int64_t split_slot(int64_t channel) { return channel % 2 * (kBlockChannels / 2) + channel / 2; }
constexpr int64_t paired_slot(int64_t channel) { return channel / 4 % 2 * (kBlockChannels / 2) + channel / 8 * 4 + channel % 4; }

// Steps of a row of the kernel in the third form.
constexpr int64_t pair_steps(int64_t kernel_width) { return kernel_width == 5 || kernel_width == 7 ? kernel_width / 2 + 1 : 0; }

constexpr int64_t packed_channels(int64_t channels) { return round_up(channels, kBlockChannels); }

// Words of a packed weight.
constexpr int64_t packed_depthwise_size(int64_t channels, int64_t kernel_height, int64_t kernel_width) {
  return packed_channels(channels) * kernel_height * (2 * kernel_width + pair_steps(kernel_width));
}

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
  const float* paired_weight() const { return weight + 2 * packed_channels(channels) * taps(); }
};

// The part that one thread computes: rows of y [row_begin, row_end), counted through all images, and blocks of channels
// [block_begin, block_end).
struct RowsPart {
  int64_t row_begin, row_end, block_begin, block_end;
};

}  // namespace slipstream
