// SPDX-License-Identifier: Apache-2.0
// One element between float and bfloat16, for packing.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

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

// A finite float16.
inline float half_to_float(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const int digits = exponent ? 1024 + fraction : fraction;
  const float magnitude = std::ldexp(static_cast<float>(digits), (exponent ? exponent : 1) - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

// `parts` bfloat16 whose sum is the value, as kernels/linear.h has it.
inline void split_bfloat16(float value, int64_t parts, uint16_t* to, int64_t stride) {
  for (int64_t part = 0; part < parts; ++part) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const bool overflows = (bits & 0x7fffffffu) < 0x7f800000u && (bits & 0x7fffffffu) >= 0x7f7f8000u;
    const uint16_t taken = overflows ? static_cast<uint16_t>(bits >> 16) : to_bfloat16(value);
    to[part * stride] = taken;
    value = (bits & 0x7fffffffu) < 0x7f800000u ? value - to_float(&taken, ElementType::bfloat16, 0) : 0.f;
  }
}

// The value back from its parts.
inline float join_bfloat16(const uint16_t* parts, int64_t count, int64_t stride) {
  float value = 0;  // from the least part on, so that no digit is lost
  for (int64_t part = count; part-- > 0;) value += to_float(parts, ElementType::bfloat16, part * stride);
  const float first = to_float(parts, ElementType::bfloat16, 0);
  if (std::isfinite(first) && !std::isfinite(value)) return std::copysign(std::numeric_limits<float>::max(), first);
  return value;
}

}  // namespace slipstream
