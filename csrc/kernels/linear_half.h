// SPDX-License-Identifier: Apache-2.0
// Linear with bfloat16 weights multiplied as float16: kernels/half_operands.h. Blocks of rows and strips are those of
// kernels/linear_vector.h; each panel is converted once a block, in the second-level cache.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Converting a panel costs as much as so many of its rows' products, and few rows live on reading the weights: they are multiplied
// widened. Rows of the whole call, so that who computes a row does not change its bits.
constexpr int64_t kLeastRowsOfHalf = 48;
constexpr int64_t kLeastDepthOfHalf = 64;

inline bool multiplies_half(const LinearCall& call) {
  return call.weight_type == ElementType::bfloat16 && call.m >= kLeastRowsOfHalf && call.k >= kLeastDepthOfHalf;
}

// A part is cut into blocks of rows, which are converted once and may wait in the third-level cache, and these into groups of panels,
// which are converted once a block and stay in the second-level cache while all strips of the block go over them.
constexpr int64_t kHalfBlockBytes = 8 << 20;
inline int64_t half_group_bytes() { return second_level_cache() * 3 / 8; }

struct HalfPlan {
  int64_t rows, panels;                          // of a block, of a group
  int64_t x_stride, panel_bytes;
  int64_t weights, back_rows, back_columns, widened, bytes;  // from the start of scratch memory, where x lies

  HalfPlan(const LinearCall& call, const LinearPart& part) {
    x_stride = x_stride_of<Step::half>(call.k);
    panel_bytes = panel_size(ElementType::bfloat16, call.k) * 2;
    rows = fewer(part.m_end - part.m_begin, round_up(kHalfBlockBytes / (2 * x_stride), kStripRows));
    panels = fewer(part.panel_end - part.panel_begin, half_group_bytes() / panel_bytes);
    weights = round_up(rows * x_stride * 2, 64);
    back_rows = weights + panels * panel_bytes;
    back_columns = round_up(back_rows + rows * 4, 64);
    widened = back_columns + panels * kPanelColumns * 4;
    bytes = widened + static_cast<int64_t>(vector_scratch<Step::widen_bf16>(call, {0, rows, 0, 1}));
  }

  static int64_t fewer(int64_t all, int64_t most) { return all < most ? all : most > 1 ? most : 1; }
};

// Products of a block, in scratch memory from `x` on, and a group, both converted; panels that do not fit have nothing to be put back
// by and are left out.
inline void multiply_half(const LinearCall& call, const LinearPart& block, const HalfPlan& plan, const uint8_t* memory) {
  alignas(64) float sums[kStripRows * kPanelColumns];
  const uint16_t* x = reinterpret_cast<const uint16_t*>(memory);
  const float* back_rows = reinterpret_cast<const float*>(memory + plan.back_rows);
  const float* back_columns = reinterpret_cast<const float*>(memory + plan.back_columns);
  const int64_t steps = (call.k + 1) / 2, rows = block.m_end - block.m_begin, panels = block.panel_end - block.panel_begin;
  const int64_t strips = (rows + kStripRows - 1) / kStripRows;
  for (int64_t s = 0; s < strips; ++s) {
    const int64_t begin = rows * s / strips, end = rows * (s + 1) / strips, next = rows * (s + 2) / strips;
    const int64_t share = s + 1 < strips ? (next - end) * plan.x_stride * 2 / panels : 0;
    const uint16_t* from = x + begin * plan.x_stride;
    const uint8_t* rows_ahead = reinterpret_cast<const uint8_t*>(x + (share ? end : begin) * plan.x_stride);
    for (int64_t p = 0; p < panels; ++p) {
      const float* back = back_columns + p * kPanelColumns;
      if (back[0] == 0) continue;
      Strips<Step::half>::of[end - begin - 1](from, plan.x_stride, memory + plan.weights + p * plan.panel_bytes, 0, steps, sums,
                                              false, {rows_ahead + p * share, share / steps});
      put_back(sums, end - begin, back_rows + begin, back);
      finish_tile(call, sums, kPanelColumns, block.m_begin + begin, end - begin, (block.panel_begin + p) * kPanelColumns);
    }
  }
}

inline void half_linear(const LinearCall& call, const LinearPart& part, void* scratch) {
  const HalfPlan plan(call, part);
  uint8_t* memory = static_cast<uint8_t*>(scratch);
  uint16_t* x = static_cast<uint16_t*>(scratch);
  float* back_rows = reinterpret_cast<float*>(memory + plan.back_rows);
  float* back_columns = reinterpret_cast<float*>(memory + plan.back_columns);
  const uint8_t* weights = static_cast<const uint8_t*>(call.weight);
  auto multiply_widened = [&](const LinearPart& some) { vector_linear<Step::widen_bf16>(call, some, memory + plan.widened); };
  for (int64_t m = part.m_begin; m < part.m_end; m += plan.rows) {
    const int64_t m_end = part.m_end - m < plan.rows ? part.m_end : m + plan.rows;
    for (int64_t r = m; r < m_end; ++r) back_rows[r - m] = fit_row(call.x, r, call.k, x + (r - m) * plan.x_stride);
    for (int64_t first = part.panel_begin; first < part.panel_end; first += plan.panels) {
      const int64_t last = part.panel_end - first < plan.panels ? part.panel_end : first + plan.panels;
      for (int64_t p = first; p < last; ++p) {
        float* back = back_columns + (p - first) * kPanelColumns;
        if (fit_panel(weights + p * plan.panel_bytes, (call.k + 1) / 2, memory + plan.weights + (p - first) * plan.panel_bytes, back)) {
          continue;
        }
        back[0] = 0;
        multiply_widened({m, m_end, p, p + 1});
      }
      multiply_half(call, {m, m_end, first, last}, plan, memory);
    }
    for (int64_t r = m; r < m_end; ++r) {
      if (back_rows[r - m] == 0) multiply_widened({r, r + 1, part.panel_begin, part.panel_end});
    }
  }
}

inline size_t linear_scratch_or_half(const LinearCall& call, const LinearPart& part) {
  return multiplies_half(call) ? static_cast<size_t>(HalfPlan(call, part).bytes) : linear_scratch(call, part);
}

inline void linear_or_half(const LinearCall& call, const LinearPart& part, void* scratch) {
  multiplies_half(call) ? half_linear(call, part, scratch) : linear(call, part, scratch);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
