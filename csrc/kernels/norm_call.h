// SPDX-License-Identifier: Apache-2.0
// What a layer norm or RMS norm of rows is asked to do. Plain values only.
#pragma once

#include "linear.h"

namespace slipstream {

// y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias over each row of s = x + residual; uncentred: s / sqrt(mean(s^2) + eps).
struct NormCall {
  int64_t columns = 0;
  Rows x;                        // [rows, columns]
  Rows residual;                 // [rows, columns] or data == nullptr
  const void* weight = nullptr;  // [columns], or null for ones
  const void* bias = nullptr;    // [columns] or null
  ElementType weight_type = ElementType::float32, bias_type = ElementType::float32;
  bool one_more = false;         // what is multiplied is 1 + weight
  bool centred = true;
  float eps = 0;
  void* sum = nullptr;           // s [rows, columns], dense, or null
  ElementType sum_type = ElementType::float32;
  void* y = nullptr;             // [rows, columns], dense
  ElementType y_type = ElementType::float32;
};

// A row of s, the weight and the bias as floats.
constexpr size_t norm_scratch(int64_t columns) { return static_cast<size_t>(round_up(columns, 16) * 3 * 4); }

}  // namespace slipstream
