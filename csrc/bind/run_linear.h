// SPDX-License-Identifier: Apache-2.0
// A linear over torch's threads, for operators that have one inside.
#pragma once

#include "../kernels/linear.h"

namespace slipstream {

// Computes all of y; linear.cpp.
void run_linear(const LinearCall& call);

}  // namespace slipstream
