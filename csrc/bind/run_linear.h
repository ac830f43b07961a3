// SPDX-License-Identifier: Apache-2.0
// linear.cpp: a linear over torch's threads, for operators that have one inside.
#pragma once

#include <functional>

#include "tensor_rows.h"

namespace slipstream {

// The weight of a call whose n and k are set, as the level reads it. The holder keeps it alive.
void take_packed(LinearCall& call, const Tensor& packed, Tensor& holder);

// Computes all of y.
void run_linear(const LinearCall& call);

// The same, of rows that make(begin, end) writes first, each once, on the thread that multiplies them where that is one.
void run_linear(const LinearCall& call, const std::function<void(int64_t, int64_t)>& make, int64_t worth_making);

}  // namespace slipstream
