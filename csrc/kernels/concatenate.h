// SPDX-License-Identifier: Apache-2.0
// Rows put together of parts: copied, looked up in tables (one row, or the sum or mean of a bag of them), or picked element by
// element. Bound by the memory's latency where tables are large: rows that will be wanted soon are fetched ahead, and a thread stays
// with one table for as long as it can, so that the table's pages stay known to it. Needs kernels/post_op.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// How many rows of a table are on their way while one is read: some 100 ns of latency at about 10 ns a row.
constexpr int64_t kRowsAhead = 12;

// Registers in which a bag is summed up at once.
constexpr int kBagRegisters = 8;

SLIPSTREAM_INLINE void fetch_row(const ConcatenatedPart& part, int64_t row_bytes, int64_t place) {
  if (place >= part.index.count) return;
  const char* row = static_cast<const char*>(part.x.data) + part.index[place] * row_bytes;
  const int64_t bytes = part.columns * (part.x.type == ElementType::float32 ? 4 : 2);
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
}

// Columns from c on of the sum of the table's rows index[begin .. end), in `registers` registers, the last of `count` columns.
template <typename X, int registers, bool whole>
SLIPSTREAM_INLINE void add_up(const ConcatenatedPart& part, int64_t begin, int64_t end, int64_t c, int64_t count, float scale, void* y,
                              ElementType y_type, int64_t to) {
  const X* table = static_cast<const X*>(part.x.data) + c;
  Vec total[registers] = {};
  for (int64_t place = begin; place < end; ++place) {
    const X* row = table + part.index[place] * part.x.stride;
#pragma GCC unroll 8
    for (int i = 0; i < registers; ++i) total[i] += whole ? load(row + i * kWidth) : load_first(row, count);
  }
#pragma GCC unroll 8
  for (int i = 0; i < registers; ++i) store_element(y, y_type, to + c + i * kWidth, whole ? kWidth : count, total[i] * scale);
}

template <typename X>
void add_rows(const ConcatenatedPart& part, int64_t begin, int64_t end, float scale, void* y, ElementType y_type, int64_t to) {
  int64_t c = 0;
  for (; c + kBagRegisters * kWidth <= part.columns; c += kBagRegisters * kWidth) {
    add_up<X, kBagRegisters, true>(part, begin, end, c, kWidth, scale, y, y_type, to);
  }
  if (c + 4 * kWidth <= part.columns) {
    add_up<X, 4, true>(part, begin, end, c, kWidth, scale, y, y_type, to);
    c += 4 * kWidth;
  }
  for (; c + kWidth <= part.columns; c += kWidth) add_up<X, 1, true>(part, begin, end, c, kWidth, scale, y, y_type, to);
  if (c < part.columns) add_up<X, 1, false>(part, begin, end, c, part.columns - c, scale, y, y_type, to);
}

SLIPSTREAM_INLINE void copy_row(const void* x, ElementType x_type, int64_t from, int64_t columns, void* y, ElementType y_type,
                                int64_t to) {
  int64_t c = 0;
  for (; c + kWidth <= columns; c += kWidth) store_element(y, y_type, to + c, kWidth, load_element(x, x_type, from + c));
  if (c < columns) {
    store_element(y, y_type, to + c, columns - c, load_element_partly(x, x_type, from + c, columns - c));
  }
}

// Whether all places are in the index, and all that it says in the table. Rows of places that come later are asked for.
SLIPSTREAM_INLINE bool check_and_fetch(const ConcatenatedPart& part, int64_t row_bytes, int64_t begin, int64_t end) {
  bool inside = begin >= 0 && begin <= end && end <= part.index.count;
  if (!inside) return false;
  for (int64_t place = begin; place < end; ++place) {
    inside &= static_cast<uint64_t>(part.index[place]) < static_cast<uint64_t>(part.x_rows);
    fetch_row(part, row_bytes, place + kRowsAhead);
  }
  return inside;
}

inline bool look_up(const ConcatenatedPart& part, int64_t begin, int64_t end, const ConcatenateCall& call) {
  const int64_t row_bytes = part.x.stride * (part.x.type == ElementType::float32 ? 4 : 2);
  const bool is_bag = part.kind != PartKind::embedding;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t from = is_bag ? part.offsets[r] : r;
    const int64_t until = !is_bag ? r + 1 : r + 1 < part.offsets.count ? part.offsets[r + 1] : part.index.count;
    if (!check_and_fetch(part, row_bytes, from, until)) return false;
    const bool divides = part.kind == PartKind::bag_mean && until - from > 1;
    const float scale = divides ? 1.f / static_cast<float>(until - from) : 1.f;
    const int64_t to = r * call.stride + part.column;
    if (part.x.type == ElementType::float32) {
      add_rows<float>(part, from, until, scale, call.y, call.y_type, to);
    } else {
      add_rows<uint16_t>(part, from, until, scale, call.y, call.y_type, to);
    }
  }
  return true;
}

template <typename X>
void pick(const ConcatenatedPart& part, int64_t begin, int64_t end, const ConcatenateCall& call) {
  const int32_t* index = static_cast<const int32_t*>(part.index.data);
  for (int64_t r = begin; r < end; ++r) {
    const X* x = static_cast<const X*>(part.x.data) + r * part.x.stride;
    const int64_t to = r * call.stride + part.column;
    for (int64_t c = 0; c < part.columns; c += kWidth) {
      const int64_t count = part.columns - c < kWidth ? part.columns - c : kWidth;
      alignas(64) X lanes[kWidth] = {};
      for (int64_t i = 0; i < count; ++i) lanes[i] = x[index[c + i]];
      store_element(call.y, call.y_type, to + c, count, load(lanes));
    }
  }
}

// One part of the result's rows from `begin` to before `end`; false where an index or an offset is out of range.
inline bool concatenate(const ConcatenateCall& call, int64_t p, int64_t begin, int64_t end) {
  const ConcatenatedPart& part = call.parts[p];
  if (part.kind == PartKind::rows) {
    for (int64_t r = begin; r < end; ++r) {
      copy_row(part.x.data, part.x.type, r * part.x.stride, part.columns, call.y, call.y_type, r * call.stride + part.column);
    }
    return true;
  }
  if (part.kind != PartKind::picked) return look_up(part, begin, end, call);
  part.x.type == ElementType::float32 ? pick<float>(part, begin, end, call) : pick<uint16_t>(part, begin, end, call);
  return true;
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
