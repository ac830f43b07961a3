// SPDX-License-Identifier: Apache-2.0
// What a Winograd convolution is asked to do: 3 x 3, stride 1, channels last on both sides, by minimal filtering F(m x m, 3 x 3)
// (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015):
//   y tile [m, m] = A^T ( (G w G^T) . (B^T d B) ) A     d: the (m + 2) x (m + 2) pixels that the tile sees
// The product between them is a matrix product over channels for each of the (m + 2)^2 points. G is applied here, in float64,
// when weights are packed; A and B stand in kernels/winograd_transform.h.
#pragma once

#include "operand_scale.h"
#include "linear.h"

namespace slipstream {

struct WinogradCall {
  int64_t tile = 4;  // m: 2 or 4; bfloat16 has digits for 2 only
  int64_t batch = 0, in_channels = 0, out_channels = 0;
  int64_t height = 0, width = 0, out_height = 0, out_width = 0;
  int64_t padding_height = 0, padding_width = 0;
  const void* x = nullptr;  // [batch, height, width, in_channels]
  ElementType x_type = ElementType::float32;
  const void* weight = nullptr;  // [panel of 32 output channels][point][a panel as in linear.h, depth in_channels]
  ElementType weight_type = ElementType::float32;
  // Weights of float16 (kernels/half_operands.h): what each image of x is scaled by, or null, and then they are widened.
  const OperandScale* scales = nullptr;
  // Weights of 16-bit integers (kernels/int16_operands.h): [batch], set to 1 where transformed pixels of an image do not fit, or null,
  // and then they are widened.
  uint8_t* misfits = nullptr;
  const float* bias = nullptr;     // [out_channels] or null
  PostOp post_op = PostOp::none;
  const void* residual = nullptr;  // of y's shape or null: y = post_op(conv(x) + bias + residual)
  ElementType residual_type = ElementType::float32;
  void* y = nullptr;  // [batch, out_height, out_width, out_channels]
  ElementType y_type = ElementType::float32;

  int64_t points() const { return (tile + 2) * (tile + 2); }
  int64_t tiles_down() const { return (out_height + tile - 1) / tile; }
  int64_t tiles_across() const { return (out_width + tile - 1) / tile; }
  int64_t tiles() const { return batch * tiles_down() * tiles_across(); }
};

// Interpolation points of F(4 x 4): 0, +-5/8, +-3/2 and infinity. Found by a search: with them the relative error is half of
// that with the paper's 0, +-1, +-2; their squares and products are exact in float32.
constexpr double kPointA = 0.625, kPointB = 1.5;
constexpr double kPointA2 = kPointA * kPointA, kPointB2 = kPointB * kPointB;

constexpr double kWeightTransform2[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};

constexpr double kScale0 = 1 / (kPointA2 * kPointB2);
constexpr double kScaleA = 1 / (2 * kPointA2 * (kPointA2 - kPointB2));
constexpr double kScaleB = 1 / (2 * kPointB2 * (kPointB2 - kPointA2));
constexpr double kWeightTransform4[6][3] = {
    {kScale0, 0, 0},
    {kScaleA, kScaleA * kPointA, kScaleA * kPointA2},
    {kScaleA, -kScaleA * kPointA, kScaleA * kPointA2},
    {kScaleB, kScaleB * kPointB, kScaleB * kPointB2},
    {kScaleB, -kScaleB * kPointB, kScaleB * kPointB2},
    {0, 0, 1},
};

}  // namespace slipstream
