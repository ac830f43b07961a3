// SPDX-License-Identifier: Apache-2.0
// Rows of pixels times one factor a channel, as squeeze-and-excitation scales an image before the next product reads it. Needs
// simd/.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// y [rows, columns], dense, = x [rows, columns] * gate [columns], rounded to y's type.
inline void gate_rows(const Rows& x, const Rows& gate, int64_t rows, int64_t columns, void* y, ElementType y_type) {
  const int64_t whole = columns / kWidth * kWidth, rest = columns - whole;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t from = r * x.stride, to = r * columns;
    for (int64_t c = 0; c < whole; c += kWidth) {
      const Vec product = load_element(x.data, x.type, from + c) * load_element(gate.data, gate.type, c);
      store_element(y, y_type, to + c, kWidth, product);
    }
    if (rest) {
      const Vec factor = load_element_partly(gate.data, gate.type, whole, rest);
      store_element(y, y_type, to + whole, rest, load_element_partly(x.data, x.type, from + whole, rest) * factor);
    }
  }
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
