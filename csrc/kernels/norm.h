// SPDX-License-Identifier: Apache-2.0
// Layer norm and RMS norm of rows, with an addition before. In two passes: the mean first, then the squares of the distances
// from it, which lose no digits to a mean that is large beside them (E[s^2] - mean^2 does), and need no division for each
// element (Welford's recurrence does). The second pass and the third, which writes y, find the row as floats in the first-level
// cache (up to 8192 columns fill it), so memory is read once and written once, and that is what large inputs are bound by; inputs
// that lie in a cache, by the loads: seven for each register of y. Needs kernels/post_op.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

template <typename X>
SLIPSTREAM_INLINE Vec take(const X* p, int64_t count) {
  return count == kWidth ? load(p) : load_first(p, count);
}

template <typename X>
SLIPSTREAM_INLINE void put(X* p, int64_t count, Vec v) {
  count == kWidth ? store(p, v) : store_first(p, count, v);
}

// Calls work(index, count) for each register of a row; `count` is kWidth but for the last.
template <typename Work>
SLIPSTREAM_INLINE void for_each_vector(int64_t columns, const Work& work) {
  int64_t i = 0;
  for (; i + kWidth <= columns; i += kWidth) work(i, kWidth);
  if (i < columns) work(i, columns - i);
}

// The sum of term(index, count) over a row, in every lane. In four sums, so that additions need not wait for each other.
template <typename Term>
SLIPSTREAM_INLINE Vec sum_of_terms(int64_t columns, const Term& term) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWidth <= columns; i += 4 * kWidth) {
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) sums[part] += term(i + part * kWidth, kWidth);
  }
  for (; i + kWidth <= columns; i += kWidth) sums[0] += term(i, kWidth);
  if (i < columns) sums[1] += term(i, columns - i);
  return sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Calls work with the pointer as one to elements of the type that it has.
template <typename Work>
SLIPSTREAM_INLINE void with_elements(const void* data, ElementType type, const Work& work) {
  type == ElementType::float32 ? work(static_cast<const float*>(data)) : work(static_cast<const uint16_t*>(data));
}

template <typename Work>
SLIPSTREAM_INLINE void with_elements(void* data, ElementType type, const Work& work) {
  type == ElementType::float32 ? work(static_cast<float*>(data)) : work(static_cast<uint16_t*>(data));
}

// One row of x + residual as floats at `row`, and what the first pass adds up: the sum of the elements, or of their squares.
// `written` false: row is x itself.
template <bool centred, bool written, typename Element>
SLIPSTREAM_INLINE Vec gather_sum(int64_t columns, float* row, const Element& element) {
  return sum_of_terms(columns, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Vec v = element(i, count);
    if constexpr (written) put(row + i, count, v);
    return centred ? v : v * v;
  });
}

template <bool centred>
Vec gather_row(const NormCall& call, int64_t index, float* row) {
  Vec sum{};
  with_elements(call.x.data, call.x.type, [&](auto* all_x) {
    const auto* x = all_x + index * call.x.stride;
    if (!call.residual.data) {
      constexpr bool written = sizeof(*x) == 2;
      sum = gather_sum<centred, written>(call.columns, row, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
        return take(x + i, count);
      });
      return;
    }
    with_elements(call.residual.data, call.residual.type, [&](auto* all_residuals) {
      const auto* residual = all_residuals + index * call.residual.stride;
      sum = gather_sum<centred, true>(call.columns, row, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
        return take(x + i, count) + take(residual + i, count);
      });
    });
  });
  return sum;
}

// y = (row - mean) * scale * weight + bias.
template <bool centred, bool weighted, bool biased, typename Y>
void finish_row(int64_t columns, const float* row, Vec mean, Vec scale, const float* weight, const float* bias, Y* y) {
  for_each_vector(columns, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    Vec v = take(row + i, count);
    v = (centred ? v - mean : v) * scale;
    if constexpr (weighted) v = v * take(weight + i, count);
    if constexpr (biased) v = v + take(bias + i, count);
    put(y + i, count, v);
  });
}

template <bool centred, typename Y>
void finish(int64_t columns, const float* row, Vec mean, Vec scale, const float* weight, const float* bias, Y* y) {
  if (weight && bias) return finish_row<centred, true, true>(columns, row, mean, scale, weight, bias, y);
  if (weight) return finish_row<centred, true, false>(columns, row, mean, scale, weight, bias, y);
  if (bias) return finish_row<centred, false, true>(columns, row, mean, scale, weight, bias, y);
  finish_row<centred, false, false>(columns, row, mean, scale, weight, bias, y);
}

// A parameter as floats: itself, or a copy at `copy`.
inline const float* as_floats(const void* parameter, ElementType type, int64_t columns, bool one_more, float* copy) {
  if (!parameter || (type == ElementType::float32 && !one_more)) return static_cast<const float*>(parameter);
  const Vec more = broadcast(one_more ? 1.f : 0.f);
  for_each_vector(columns, [&](int64_t i, int64_t count) {
    const Vec v = count == kWidth ? load_element(parameter, type, i) : load_element_partly(parameter, type, i, count);
    put(copy + i, count, v + more);
  });
  return copy;
}

template <bool centred>
void norm_rows(const NormCall& call, int64_t begin, int64_t end, float* scratch) {
  const int64_t columns = call.columns, length = round_up(columns, 16);
  const float* weight = as_floats(call.weight, call.weight_type, columns, call.one_more, scratch + length);
  const float* bias = as_floats(call.bias, call.bias_type, columns, false, scratch + 2 * length);
  const bool sum_is_float = call.sum && call.sum_type == ElementType::float32;
  const float count = static_cast<float>(columns);
  for (int64_t index = begin; index < end; ++index) {
    float* kept = sum_is_float ? static_cast<float*>(call.sum) + index * columns : scratch;
    const bool is_x = call.x.type == ElementType::float32 && !call.residual.data;
    const Vec total = gather_row<centred>(call, index, kept);
    const float* row = is_x ? static_cast<const float*>(call.x.data) + index * call.x.stride : kept;
    Vec mean{}, squares = total;
    if constexpr (centred) {
      mean = total / count;
      squares = sum_of_terms(columns, [&](int64_t i, int64_t present) __attribute__((always_inline)) {
        Vec distance = take(row + i, present) - mean;
        if (present < kWidth) distance = first_lanes(distance, present);
        return distance * distance;
      });
    }
    const Vec scale = broadcast(1.f / __builtin_sqrtf(squares[0] / count + call.eps));
    if (call.sum && !sum_is_float) {
      for_each_vector(columns, [&](int64_t i, int64_t present) {
        put(static_cast<uint16_t*>(call.sum) + index * columns + i, present, take(row + i, present));
      });
    }
    with_elements(call.y, call.y_type, [&](auto* y) {
      finish<centred>(columns, row, mean, scale, weight, bias, y + index * columns);
    });
  }
}

// Rows [begin, end). `scratch` is norm_scratch(columns) bytes.
inline void norm(const NormCall& call, int64_t begin, int64_t end, void* scratch) {
  call.centred ? norm_rows<true>(call, begin, end, static_cast<float*>(scratch))
               : norm_rows<false>(call, begin, end, static_cast<float*>(scratch));
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
