// SPDX-License-Identifier: Apache-2.0
// What the kernel of relative scores is asked to do, for one head and all of the batch.
#pragma once

#include "linear.h"

namespace slipstream {

struct RelativeScoresCall {
  int64_t batch = 0, queries = 0, keys = 0, depth = 0;
  bool of_keys = false;          // x is keys, else queries
  Rows x;                        // [batch][queries or keys, depth]
  int64_t x_batch = 0;           // in elements
  Rows table;                    // [positions, depth]
  const int32_t* index = nullptr;  // [queries, keys]: positions
  const int32_t* spans = nullptr;  // [queries or keys][2]: the least and the greatest position that a row of x is asked for
  float scale = 1;
  bool add = false;              // to what y holds
  bool bfloat16 = true;          // multiply in bfloat16, else in float32
  float* y = nullptr;            // [batch][queries, keys]
  int64_t y_batch = 0;
};

}  // namespace slipstream
