// SPDX-License-Identifier: Apache-2.0
// What a concatenation of rows is asked to do: parts that are copied, looked up in tables, or picked, side by side.
#pragma once

#include "linear.h"

namespace slipstream {

enum class PartKind : int64_t {
  rows,       // row r of x
  embedding,  // row index[r] of x
  bag_sum,    // the sum of rows index[offsets[r]] to before index[offsets[r + 1]] of x; without any, zero
  bag_mean,   // their mean
  picked,     // elements index[0], index[1] ... of row r of x; the index is dense int32
};

// int32 or int64 numbers, `stride` apart.
struct Numbers {
  const void* data = nullptr;
  int64_t count = 0, stride = 1;
  bool is_long = true;
  int64_t operator[](int64_t i) const {
    return is_long ? static_cast<const int64_t*>(data)[i * stride] : static_cast<const int32_t*>(data)[i * stride];
  }
};

struct ConcatenatedPart {
  PartKind kind = PartKind::rows;
  Rows x;               // a table, or rows as many as the result has
  int64_t x_rows = 0;
  int64_t column = 0;   // of the result, from which on it is written
  int64_t columns = 0;  // that it writes
  Numbers index, offsets;
};

struct ConcatenateCall {
  const ConcatenatedPart* parts = nullptr;
  int64_t count = 0;  // of parts
  int64_t rows = 0;
  void* y = nullptr;  // [rows, stride], dense
  ElementType y_type = ElementType::float32;
  int64_t stride = 0;
};

}  // namespace slipstream
