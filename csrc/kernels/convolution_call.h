// SPDX-License-Identifier: Apache-2.0
// What a convolution kernel is asked to do: one image, channels first on both sides, and how its operands are laid out.
//
// The image is the panel side of the product and the weight the row side, so that y comes out channels first as it is stored:
//   y[oc][pixel] = sum over channels c and taps t of w[oc][c][t] * x[c][pixel shifted by t]
// The image is copied, zero-padded, into planes of 32-bit words (a float, or the bfloat16 pair of two channels). With strides,
// rows and columns are first sorted by their remainder ("phases"), so that the pixels of neighbouring outputs are neighbours for
// every tap. Outputs are computed along the padded width: a tap is then one constant offset, and the few sums that fall between
// rows of y are dropped.
#pragma once

#include "linear.h"

namespace slipstream {

struct ConvolutionCall {
  int64_t in_channels = 0, out_channels = 0;  // of one group
  int64_t height = 0, width = 0, out_height = 0, out_width = 0;
  int64_t kernel_height = 1, kernel_width = 1, stride_height = 1, stride_width = 1;
  int64_t padding_height = 0, padding_width = 0, dilation_height = 1, dilation_width = 1;
  const void* x = nullptr;       // [in_channels, height, width]
  ElementType x_type = ElementType::float32;
  const void* weight = nullptr;  // rows of `weight_stride` elements, one an output channel: [channel step][tap][1 or 2]
  int64_t weight_stride = 0;
  ElementType weight_type = ElementType::bfloat16;
  const float* bias = nullptr;   // [out_channels] or null
  PostOp post_op = PostOp::none;
  const void* residual = nullptr;  // [out_channels, out_height, out_width] or null: y = post_op(conv(x) + bias + residual)
  ElementType residual_type = ElementType::float32;
  void* y = nullptr;             // [out_channels, out_height, out_width]
  ElementType y_type = ElementType::float32;

  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t depth() const { return weight_type == ElementType::bfloat16 ? 2 : 1; }  // channels a step
  int64_t steps() const { return (in_channels + depth() - 1) / depth(); }
  int64_t phases() const { return stride_height * stride_width; }
  // Rows and columns of a phase: what the outputs reach, counted in strides.
  int64_t phase_height() const { return out_height + (kernel_height - 1) * dilation_height / stride_height; }
  int64_t phase_width() const { return out_width + (kernel_width - 1) * dilation_width / stride_width; }
  int64_t phase_words() const { return phase_height() * phase_width(); }
  int64_t plane_words() const { return phases() * phase_words(); }
  // Sums reach at most a panel beyond the last output.
  int64_t image_words() const {
    return by_panels() ? panels() * panel_words() : steps() * plane_words() + kPanelColumns + phase_width();
  }
  int64_t positions() const { return (out_height - 1) * phase_width() + out_width; }
  // Under a 1 x 1 kernel no tap reaches into another panel, and the copy lies as the product reads it: [panel][step][32 words].
  bool by_panels() const { return taps() == 1 && phases() == 1 && padding_height == 0 && padding_width == 0; }
  int64_t panels() const { return (positions() + kPanelColumns - 1) / kPanelColumns; }
  int64_t panel_words() const { return steps() * kPanelColumns; }
};

// The part that one thread computes: output channels [begin, end), panels of positions [panel_begin, panel_end).
struct ConvolutionPart {
  int64_t begin, end, panel_begin, panel_end;
};

}  // namespace slipstream
