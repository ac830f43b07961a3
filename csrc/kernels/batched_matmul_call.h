// SPDX-License-Identifier: Apache-2.0
// What the right-hand matrix of a product is before it is packed as the weight of a linear.
#pragma once

#include "linear.h"

namespace slipstream {

// B [k, n], of whose strides one is 1; packed it is the weight W = B^T [n, k] of kernels/linear.h.
struct MatrixToPack {
  const void* data = nullptr;
  ElementType type = ElementType::float32;
  int64_t k = 0, n = 0, k_stride = 0, n_stride = 0;  // strides in elements
  ElementType packed_type = ElementType::float32;
  int64_t parts = 1;  // of bfloat16, where there are tiles
};

}  // namespace slipstream
