// SPDX-License-Identifier: Apache-2.0
// Packs the right-hand matrix of a product of two activations in parts of bfloat16 (layout: kernels/linear.h), split as it is
// read: by rows where they lie dense, or by columns. Needs kernels/batched_matmul.h and kernels/amx/linear_split.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// kWidth columns of two neighbouring rows, a word of each part to a column.
SLIPSTREAM_INLINE void store_parts(Vec low, Vec high, int64_t parts, uint16_t* to) {
  for (int64_t part = 0; part < parts; ++part) {
    const VecU first = take_part(low, low), second = take_part(high, high);
    store_words(to + part * kPartElements, first | (second << 16));
  }
}

inline void pack_rows_in_parts(const MatrixToPack& matrix, uint16_t* to) {
  const int64_t depth = packed_depth(ElementType::bfloat16, matrix.k), panel_elements = depth * kPanelColumns * matrix.parts;
  const int64_t panels = round_up(matrix.n, kPanelColumns) / kPanelColumns;
  for (int64_t first = 0; first < panels; first += kPanelsTogether) {
    const int64_t last = first + kPanelsTogether < panels ? first + kPanelsTogether : panels;
    for (int64_t k = 0; k < depth; k += 2) {
      for (int64_t panel = first; panel < last; ++panel) {
        for (int64_t c = 0; c < kPanelColumns; c += kWidth) {
          const int64_t column = panel * kPanelColumns + c;
          store_parts(words_of_rows<Step::float32>(matrix, k, column), words_of_rows<Step::float32>(matrix, k + 1, column),
                      matrix.parts, to + panel * panel_elements + place_in_parts(k, c, matrix.parts));
        }
      }
    }
  }
}

// kWidth elements of a column; those behind it are zero.
SLIPSTREAM_INLINE Vec part_of_column(const MatrixToPack& matrix, int64_t k, int64_t column) {
  const int64_t left = matrix.k - k, from = column * matrix.n_stride + k;
  if (column >= matrix.n || left <= 0) return Vec{};
  return left >= kWidth ? load_element(matrix.data, matrix.type, from)
                        : load_element_partly(matrix.data, matrix.type, from, left);
}

inline void pack_columns_in_parts(const MatrixToPack& matrix, uint16_t* to) {
  const int64_t depth = packed_depth(ElementType::bfloat16, matrix.k), panel_elements = depth * kPanelColumns * matrix.parts;
  for (int64_t column = 0; column < round_up(matrix.n, kPanelColumns); column += kWidth) {
    uint16_t* panel = to + column / kPanelColumns * panel_elements;
    for (int64_t k = 0; k < depth; k += kWidth) {
      Vec block[kWidth];
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; ++r) block[r] = part_of_column(matrix, k, column + r);
      transpose_block(block);
#pragma GCC unroll 8
      for (int r = 0; r < kWidth; r += 2) {
        store_parts(block[r], block[r + 1], matrix.parts,
                    panel + place_in_parts(k + r, column % kPanelColumns, matrix.parts));
      }
    }
  }
}

inline void pack_in_parts(const MatrixToPack& matrix, uint16_t* to) {
  matrix.n_stride == 1 ? pack_rows_in_parts(matrix, to) : pack_columns_in_parts(matrix, to);
}

inline void amx_pack_matrix(const MatrixToPack& matrix, void* packed) {
  matrix.parts > 1 ? pack_in_parts(matrix, static_cast<uint16_t*>(packed)) : pack_matrix(matrix, packed);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
