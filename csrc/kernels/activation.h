// SPDX-License-Identifier: Apache-2.0
// A post-op by itself: y[i] = op(x[i]) for i in [begin, end), float32 or bfloat16. Bound by memory: 8 bytes an element at 15 GB/s
// a core take longer than the 10 to 25 cycles that 16 elements of arithmetic do. Needs kernels/post_op.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

inline void activation(const void* x, ElementType x_type, void* y, ElementType y_type, int64_t begin, int64_t end, PostOp op) {
  with_post_op(op, [&](auto tag) {
    int64_t i = begin;
    for (; i + kWidth <= end; i += kWidth) {
      store_element(y, y_type, i, kWidth, post_op_into<decltype(tag)::value>(y_type, load_element(x, x_type, i)));
    }
    if (i < end) {
      store_element(y, y_type, i, end - i, post_op_into<decltype(tag)::value>(y_type, load_element_partly(x, x_type, i, end - i)));
    }
  });
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
