// SPDX-License-Identifier: Apache-2.0
// Asking for memory before it is used, where accesses go row by row, which the processor does not foresee. All inlined: a compiler takes
// a function that does nothing but this for one that does nothing.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

enum class Use { soon, later, write };  // read from the first-level cache or from the second, or written

template <Use use>
SLIPSTREAM_INLINE void ask_for_line(const char* line) {
  __builtin_prefetch(line, use == Use::write ? 1 : 0, use == Use::later ? 2 : 3);
}

constexpr int64_t bytes_of(ElementType type) { return type == ElementType::float32 ? 4 : 2; }

// Whole rows [begin, end), one behind the other.
template <Use use>
SLIPSTREAM_INLINE void ask_for_rows(const void* rows, int64_t begin, int64_t end, int64_t row_bytes) {
  const char* from = static_cast<const char*>(rows);
  for (const char* p = from + begin * row_bytes; p < from + end * row_bytes; p += 64) ask_for_line<use>(p);
}

// Columns [column, column + columns) of rows [begin, end) that lie `stride` elements apart.
template <Use use>
SLIPSTREAM_INLINE void ask_for_tile(const void* data, ElementType type, int64_t stride, int64_t begin, int64_t end, int64_t column,
                                    int64_t columns) {
  const int64_t size = bytes_of(type);
  const char* row = static_cast<const char*>(data) + (begin * stride + column) * size;
  for (int64_t r = begin; r < end; ++r, row += stride * size) {
    const char* line = row - reinterpret_cast<uintptr_t>(row) % 64;
    for (; line < row + columns * size; line += 64) ask_for_line<use>(line);
  }
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
