// SPDX-License-Identifier: Apache-2.0
// Post-ops on registers, and elements of float32 or bfloat16 memory in and out of registers. Needs simd/math.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

template <PostOp op>
SLIPSTREAM_INLINE Vec post_op(Vec v) {
  if constexpr (op == PostOp::relu) return select(v < 0.f, Vec{}, v);  // NaN stays NaN, as in torch
  if constexpr (op == PostOp::gelu_erf) return gelu_erf(v);
  if constexpr (op == PostOp::gelu_tanh) return gelu_tanh(v);
  if constexpr (op == PostOp::silu) return swish<false>(v, 1.f);
  if constexpr (op == PostOp::tanh) return tanh(v);
  if constexpr (op == PostOp::sigmoid) return sigmoid(v);
  if constexpr (op == PostOp::relu6) return relu6(v);
  if constexpr (op == PostOp::hardswish) return v * relu6(v + 3.f) * (1.f / 6);
  if constexpr (op == PostOp::hardsigmoid) return relu6(v + 3.f) * (1.f / 6);
  if constexpr (op == PostOp::quick_gelu) return swish<false>(v, 1.702f);
  return v;
}

// The type that results of Y are.
template <typename Y>
constexpr ElementType kTypeOf = sizeof(Y) == 2 ? ElementType::bfloat16 : ElementType::float32;

// A result that is rounded to bfloat16 needs no more of an activation than that keeps.
template <PostOp op>
SLIPSTREAM_INLINE Vec post_op_into(ElementType type, Vec v) {
  if constexpr (op == PostOp::gelu_erf) {
    if (type == ElementType::bfloat16) return gelu_erf_for_bf16(v);
  }
  if constexpr (op == PostOp::silu) {
    if (type == ElementType::bfloat16) return swish<true>(v, 1.f);
  }
  return post_op<op>(v);
}

// The elements [row, column ...] of a float32 or bfloat16 matrix as floats.
SLIPSTREAM_INLINE Vec load_element(const void* data, ElementType type, int64_t index) {
  return type == ElementType::float32 ? load(static_cast<const float*>(data) + index)
                                      : load(static_cast<const uint16_t*>(data) + index);
}

// Fewer than a register's worth: the missing lanes are zero.
SLIPSTREAM_INLINE Vec load_element_partly(const void* data, ElementType type, int64_t index, int64_t count) {
  return type == ElementType::float32 ? load_first(static_cast<const float*>(data) + index, count)
                                      : load_first(static_cast<const uint16_t*>(data) + index, count);
}

SLIPSTREAM_INLINE void store_element_partly(void* data, ElementType type, int64_t index, int64_t count, Vec v) {
  if (type == ElementType::float32) {
    store_first(static_cast<float*>(data) + index, count, v);
  } else {
    store_first(static_cast<uint16_t*>(data) + index, count, v);
  }
}

SLIPSTREAM_INLINE void store_element(void* data, ElementType type, int64_t index, int64_t count, Vec v) {
  if (count < kWidth) {
    store_element_partly(data, type, index, count, v);
  } else if (type == ElementType::float32) {
    store(static_cast<float*>(data) + index, v);
  } else {
    store(static_cast<uint16_t*>(data) + index, v);
  }
}

// Calls work(tag) with the post-op as a compile-time value, tag.value, so that loops hold no branch on it.
template <PostOp op>
struct PostOpTag {
  static constexpr PostOp value = op;
};

template <typename Work>
inline void with_post_op(PostOp op, const Work& work) {
  switch (op) {
    case PostOp::none: return work(PostOpTag<PostOp::none>{});
    case PostOp::relu: return work(PostOpTag<PostOp::relu>{});
    case PostOp::gelu_erf: return work(PostOpTag<PostOp::gelu_erf>{});
    case PostOp::gelu_tanh: return work(PostOpTag<PostOp::gelu_tanh>{});
    case PostOp::silu: return work(PostOpTag<PostOp::silu>{});
    case PostOp::tanh: return work(PostOpTag<PostOp::tanh>{});
    case PostOp::sigmoid: return work(PostOpTag<PostOp::sigmoid>{});
    case PostOp::relu6: return work(PostOpTag<PostOp::relu6>{});
    case PostOp::hardswish: return work(PostOpTag<PostOp::hardswish>{});
    case PostOp::hardsigmoid: return work(PostOpTag<PostOp::hardsigmoid>{});
    case PostOp::quick_gelu: return work(PostOpTag<PostOp::quick_gelu>{});
  }
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
