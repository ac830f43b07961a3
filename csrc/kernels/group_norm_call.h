// SPDX-License-Identifier: Apache-2.0
// What a group norm is asked to do, and how it is cut into pieces. Plain values only.
#pragma once

#include "linear.h"

namespace slipstream {

// y = post_op((x - mean) / sqrt(variance + eps) * weight + bias), mean and variance over a group of channels and all pixels of a
// sample; weight and bias are one a channel. An item of work is a group, or a whole sample where channels are innermost; it is
// cut into blocks whose own means and squares are found first, so that its bits do not depend on who computes which of them.
struct GroupNormCall {
  int64_t groups = 0, channels = 0, pixels = 0;  // of a sample; channels are those of all groups
  bool channels_last = false;
  Rows x;                                        // a sample is [channels][pixels], or [pixels][channels] at x.stride
  int64_t x_sample = 0;                          // elements between samples of x
  const float* weight = nullptr;                 // [channels] or null
  const float* bias = nullptr;                   // [channels] or null
  float eps = 0;
  PostOp post_op = PostOp::none;
  void* y = nullptr;                             // as x, dense
  ElementType y_type = ElementType::float32;

  int64_t group_channels() const { return channels / groups; }
  int64_t items(int64_t samples) const { return channels_last ? samples : samples * groups; }
  // Elements of a group, or pixels of all channels, that one block has: 16 KiB of floats stay in the first-level cache for the
  // second look at them, a quarter of a megabyte in the second-level one. No more than 256 pixels are added up one by one.
  int64_t block() const {
    if (!channels_last) return 4096;
    const int64_t rows = 65536 / channels / 4 * 4;
    return rows < 8 ? 8 : rows > 256 ? 256 : rows;
  }
  int64_t length() const { return channels_last ? pixels : group_channels() * pixels; }
  int64_t blocks() const { return (length() + block() - 1) / block(); }
  // Means and sums of squares that a block has.
  int64_t width() const { return channels_last ? channels : 1; }
};

// Floats for an item: for each block `width` means and as many sums of squared distances from them.
inline int64_t moments_size(const GroupNormCall& call) { return call.blocks() * 2 * call.width(); }

// Floats for an item: the mean to subtract, the factor, and what is added, `width` of each.
inline int64_t group_table_size(const GroupNormCall& call) { return 3 * call.width(); }

}  // namespace slipstream
