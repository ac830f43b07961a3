// SPDX-License-Identifier: Apache-2.0
// y[i][j] = scale * q[i] . table[index[i][j]], or k[j] instead of q[i]: the terms between content and position of disentangled
// attention (He et al., arXiv 2006.03654). The table is packed as keys are. A strip of rows is multiplied by the panels that it
// is asked for and no others: with positions i - j a strip of 12 rows needs keys + 11 of them. Needs kernels/attention.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

struct RelativeBuffers {
  int64_t first, panels, x_stride;  // the first panel that anybody asks for, and how many
  uint8_t* table;                   // [panel of 32 positions][step of depth][32]
  uint8_t* x;                       // kStripRows rows
  float* scores;                    // [panel][rows][32]
};

struct Span {
  int64_t first, last;
};

inline Span span_of(const RelativeScoresCall& call, int64_t begin, int64_t end) {
  Span span = {call.spans[2 * begin], call.spans[2 * begin + 1]};
  for (int64_t row = begin + 1; row < end; ++row) {
    if (call.spans[2 * row] < span.first) span.first = call.spans[2 * row];
    if (call.spans[2 * row + 1] > span.last) span.last = call.spans[2 * row + 1];
  }
  return span;
}

template <Step step>
inline size_t lay_out(const RelativeScoresCall& call, RelativeBuffers& b, void* memory) {
  using X = typename StepOf<step>::X;
  constexpr int64_t depth = StepOf<step>::depth;
  const Span all = span_of(call, 0, call.of_keys ? call.keys : call.queries);
  b.first = all.first / kPanelColumns;
  b.panels = all.last / kPanelColumns - b.first + 1;
  b.x_stride = x_stride_of<step>(call.depth);
  uint8_t* at = static_cast<uint8_t*>(memory);
  auto take = [&](int64_t bytes) {
    uint8_t* taken = at;
    at += align64(bytes);
    return taken;
  };
  b.table = take(b.panels * ((call.depth + depth - 1) / depth) * kStepBytes);
  b.x = take(kStripRows * b.x_stride * static_cast<int64_t>(sizeof(X)));
  b.scores = reinterpret_cast<float*>(take(b.panels * kStripRows * kPanelColumns * 4));
  return static_cast<size_t>(at - static_cast<uint8_t*>(memory));
}

// Where the score of a strip's row and of a position, counted from the strip's first panel, lies in [panel][rows][32].
SLIPSTREAM_INLINE int64_t place_of(int64_t position, int64_t row, int64_t rows) {
  return (position / kPanelColumns * rows + row) * kPanelColumns + position % kPanelColumns;
}

// The strip's scores to the rows (of queries) or columns (of keys) of y from `begin` on; `first` is the first panel's position.
template <bool add>
inline void look_up(const RelativeScoresCall& call, const float* scores, int64_t first, int64_t begin, int64_t rows, float* y) {
  const int64_t outer = call.of_keys ? call.queries : rows, inner = call.of_keys ? rows : call.keys;
  const int64_t from = call.of_keys ? begin : begin * call.keys;
  for (int64_t o = 0; o < outer; ++o) {
    const int32_t* index = call.index + from + o * call.keys;
    float* to = y + from + o * call.keys;
    for (int64_t i = 0; i < inner; ++i) {
      const uint32_t position = static_cast<uint32_t>(index[i] - static_cast<int32_t>(first));
      const float score = scores[place_of(position, call.of_keys ? i : o, rows)] * call.scale;
      to[i] = add ? to[i] + score : score;
    }
  }
}

template <Step step>
void score_positions(const RelativeScoresCall& call, void* scratch) {
  using X = typename StepOf<step>::X;
  constexpr int64_t depth = StepOf<step>::depth;
  RelativeBuffers b;
  lay_out<step>(call, b, scratch);
  const int64_t steps = (call.depth + depth - 1) / depth, panel_bytes = steps * kStepBytes;
  const Span all = span_of(call, 0, call.of_keys ? call.keys : call.queries);
  AttentionCall table;
  table.keys = all.last + 1 - b.first * kPanelColumns;
  table.depth = call.depth;
  table.k.type = call.table.type;
  table.k.stride = call.table.stride;
  table.k.data = static_cast<const char*>(call.table.data) +
                 b.first * kPanelColumns * call.table.stride * (call.table.type == ElementType::float32 ? 4 : 2);
  pack_keys<step>(table, steps, b.table);

  X* x = reinterpret_cast<X*>(b.x);
  const int64_t length = call.of_keys ? call.keys : call.queries, strips = (length + kStripRows - 1) / kStripRows;
  LinearCall source;
  source.k = call.depth;
  for (int64_t n = 0; n < call.batch; ++n) {
    source.x = call.x;
    source.x.data = static_cast<const char*>(call.x.data) + n * call.x_batch * (call.x.type == ElementType::float32 ? 4 : 2);
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t begin = length * s / strips, rows = length * (s + 1) / strips - begin;
      gather_rows(source, begin, rows, x, b.x_stride);
      const Span span = span_of(call, begin, begin + rows);
      const int64_t first = span.first / kPanelColumns;
      for (int64_t panel = first; panel <= span.last / kPanelColumns; ++panel) {
        Strips<step>::of[rows - 1](x, b.x_stride, b.table + (panel - b.first) * panel_bytes, 0, steps,
                                   b.scores + (panel - first) * rows * kPanelColumns, false, {b.table, 0});
      }
      float* y = call.y + n * call.y_batch;
      call.add ? look_up<true>(call, b.scores, first * kPanelColumns, begin, rows, y)
               : look_up<false>(call, b.scores, first * kPanelColumns, begin, rows, y);
    }
  }
}

inline size_t relative_scores_scratch(const RelativeScoresCall& call) {
  RelativeBuffers b;
  return call.bfloat16 ? lay_out<kAttentionStep>(call, b, nullptr) : lay_out<Step::float32>(call, b, nullptr);
}

inline void relative_scores(const RelativeScoresCall& call, void* scratch) {
  call.bfloat16 ? score_positions<kAttentionStep>(call, scratch) : score_positions<Step::float32>(call, scratch);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
