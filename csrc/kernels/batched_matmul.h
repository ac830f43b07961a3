// SPDX-License-Identifier: Apache-2.0
// A product of two activations is a linear whose weight is packed at each call; this packs it, into scratch memory, by rows
// where they lie dense, or by columns as attention packs keys. The product itself is the level's linear, on vector registers or
// tiles. Needs kernels/attention_softmax.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Panels that rows of B are packed into at a time: runs of 128 floats or bfloat16, which hardware foresees, into four streams.
constexpr int64_t kPanelsTogether = 4;

// kWidth columns of row k and, for bfloat16, of the row below it, as the words of one step. Rows from matrix.k on are zero.
template <Step step>
SLIPSTREAM_INLINE Vec words_of_rows(const MatrixToPack& matrix, int64_t k, int64_t column) {
  const int64_t from = k * matrix.k_stride + column, left = matrix.n - column;
  auto row = [&](int64_t below) {
    if (k + below >= matrix.k || left <= 0) return Vec{};
    return left >= kWidth ? load_element(matrix.data, matrix.type, from + below * matrix.k_stride)
                          : load_element_partly(matrix.data, matrix.type, from + below * matrix.k_stride, left);
  };
  if constexpr (step == Step::float32) {
    return row(0);
  } else {
    VecU low, high;
    if (matrix.type == ElementType::bfloat16 && k + 1 < matrix.k && left >= kWidth) {
      const uint16_t* first = static_cast<const uint16_t*>(matrix.data) + from;
      low = widened(*reinterpret_cast<const VecHInMemory*>(first));
      high = widened(*reinterpret_cast<const VecHInMemory*>(first + matrix.k_stride));
    } else {
      uint16_t halves[2 * kWidth];
      store(halves, row(0));
      store(halves + kWidth, row(1));
      low = widened(*reinterpret_cast<const VecHInMemory*>(halves));
      high = widened(*reinterpret_cast<const VecHInMemory*>(halves + kWidth));
    }
    return reinterpret_cast<Vec>(low | (high << 16));
  }
}

// Rows of B, dense.
template <Step step>
inline void pack_rows(const MatrixToPack& matrix, int64_t steps, uint8_t* to) {
  const int64_t panels = round_up(matrix.n, kPanelColumns) / kPanelColumns, panel_bytes = steps * kStepBytes;
  for (int64_t first = 0; first < panels; first += kPanelsTogether) {
    const int64_t last = first + kPanelsTogether < panels ? first + kPanelsTogether : panels;
    for (int64_t s = 0; s < steps; ++s) {
      for (int64_t panel = first; panel < last; ++panel) {
        float* line = reinterpret_cast<float*>(to + panel * panel_bytes + s * kStepBytes);
#pragma GCC unroll 8
        for (int64_t c = 0; c < kPanelColumns; c += kWidth) {
          store(line + c, words_of_rows<step>(matrix, s * StepOf<step>::depth, panel * kPanelColumns + c));
        }
      }
    }
  }
}

template <Step step>
inline void pack_matrix_as(const MatrixToPack& matrix, void* packed) {
  uint8_t* to = static_cast<uint8_t*>(packed);
  const int64_t steps = packed_depth(matrix.packed_type, matrix.k) / StepOf<step>::depth;
  if (matrix.n_stride == 1) return pack_rows<step>(matrix, steps, to);
  AttentionCall call;
  call.keys = matrix.n;
  call.depth = matrix.k;
  call.k.data = matrix.data;
  call.k.type = matrix.type;
  call.k.stride = matrix.n_stride;
  pack_keys<step>(call, steps, to);
}

inline void pack_matrix(const MatrixToPack& matrix, void* packed) {
  matrix.packed_type == ElementType::bfloat16 ? pack_matrix_as<Step::dot_bf16>(matrix, packed)
                                              : pack_matrix_as<Step::float32>(matrix, packed);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
