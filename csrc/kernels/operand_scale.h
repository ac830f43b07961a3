// SPDX-License-Identifier: Apache-2.0
// What scaled operands come with: kernels/half_operands.h, kernels/int16_operands.h. Plain values only; included by bind/ and by every
// level.
#pragma once

namespace slipstream {

// The power of two that values are multiplied by on their way to float16 or integers, and what their products are put back by; zeros where the
// values do not fit.
struct OperandScale {
  float scale = 0, back = 0;
};

// What the bits of a float16, moved to where a float has sign, exponent and fraction, are times its value. Each of two factors is put
// back by half of it.
constexpr int kHalfExponent = -112;

}  // namespace slipstream
