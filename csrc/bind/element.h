// SPDX-License-Identifier: Apache-2.0
// One element between float and bfloat16, for packing.
#pragma once

#include <cstring>

#include "../kernels/linear.h"

namespace slipstream {

inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float to_float(const void* data, ElementType type, int64_t index) {
  if (type == ElementType::float32) return static_cast<const float*>(data)[index];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(data)[index]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace slipstream
