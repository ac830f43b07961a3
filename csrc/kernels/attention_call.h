// SPDX-License-Identifier: Apache-2.0
// What an attention kernel is asked to do, for one batch and one head of keys and values, and the query heads that share it.
#pragma once

#include "linear.h"

namespace slipstream {

enum class MaskType : int32_t { none, boolean, float32, bfloat16 };

// A matrix of rows whose columns are neighbours: `head` is the distance between the heads that share it, in elements.
struct HeadRows {
  const void* data = nullptr;
  ElementType type = ElementType::float32;
  int64_t stride = 0, head = 0;
};

struct AttentionCall {
  int64_t queries = 0, keys = 0, depth = 0, value_depth = 0;
  int64_t heads = 1;                  // query heads on this one head of keys and values
  HeadRows q, k, v;                   // [heads][queries, depth], [keys, depth], [keys, value_depth]
  void* y = nullptr;                  // [heads][queries, value_depth]
  ElementType y_type = ElementType::float32;
  int64_t y_stride = 0, y_head = 0;
  float scale = 1;
  float softcap = 0;                  // scores become softcap * tanh(score / softcap) before the mask; 0: they do not
  bool causal = false;                // query i sees keys 0 ... i
  float unseen = 0;                   // what a row becomes that sees no key
  int64_t window = 0;                 // query i sees keys less than so far from i, on both sides; 0: however far
  const void* mask = nullptr;         // [heads][queries, keys]: true or 0 where a key is seen
  MaskType mask_type = MaskType::none;
  int64_t mask_head = 0, mask_row = 0, mask_key = 0;  // strides in elements; 0 where the mask is the same for all
  bool bfloat16 = true;               // multiply in bfloat16, else in float32
  const void *q_ahead = nullptr, *k_ahead = nullptr, *v_ahead = nullptr;  // the thread's next call's, or null
  int64_t parts = 1;                  // 2 or 3: float32 products from so many parts of bfloat16, where there are tiles
};

// Keys [begin, end).
struct KeyRange {
  int64_t begin, end;
};

// What query rows [first, last] may see between them, by their numbers alone; empty ranges may end before they begin.
inline KeyRange keys_of_rows(const AttentionCall& call, int64_t first, int64_t last) {
  KeyRange range = {0, call.keys};
  if (call.window && first - call.window + 1 > 0) range.begin = first - call.window + 1;
  if (call.window && last + call.window < range.end) range.end = last + call.window;
  if (call.causal && last + 1 < range.end) range.end = last + 1;
  return range;
}

// The part that one thread computes: query rows [begin, end) of all heads.
struct AttentionPart {
  int64_t begin, end;
};

}  // namespace slipstream
