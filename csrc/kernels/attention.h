// SPDX-License-Identifier: Apache-2.0
// softmax(scale * Q K^T + mask) V on vector registers, for one head of keys and values. K and V are packed as linear weights are;
// strips of query rows then run over blocks of keys with a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867;
// Dao et al., arXiv 2205.14135), so that scores never leave the second-level cache. Needs kernels/attention_softmax.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Keys whose scores (12 rows x 1024 floats = 48 KiB) and weights are in work at a time.
constexpr int64_t kKeyBlock = 1024;

struct AttentionBuffers {
  int64_t k_bytes, v_bytes, x_stride, p_stride, value_columns;
  uint8_t *k, *v;       // packed keys [panels of keys], packed values [blocks of keys][panels of value columns]
  uint8_t* q;           // kStripRows rows of queries
  uint8_t* p;           // kStripRows rows of softmax weights over a block of keys
  float* scores;        // [panels of a block][rows][32]
  float* block_sums;    // [panels of value columns][rows][32]
  float* sums;          // the same, running
};

constexpr int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <Step step>
inline size_t lay_out(const AttentionCall& call, AttentionBuffers& b, void* memory) {
  using X = typename StepOf<step>::X;
  constexpr int64_t depth = StepOf<step>::depth;
  const int64_t element = step == Step::float32 ? 4 : 2;
  b.value_columns = round_up(call.value_depth, kPanelColumns);
  b.k_bytes = align64(round_up(call.keys, kPanelColumns) * round_up(call.depth, depth) * element);
  b.v_bytes = align64(round_up(call.keys, depth) * b.value_columns * element);
  b.x_stride = x_stride_of<step>(call.depth);
  b.p_stride = x_stride_of<step>(kKeyBlock);
  uint8_t* at = static_cast<uint8_t*>(memory);
  auto take = [&](int64_t bytes) {
    uint8_t* taken = at;
    at += align64(bytes);
    return taken;
  };
  b.k = take(b.k_bytes);
  b.v = take(b.v_bytes);
  b.q = take(kStripRows * b.x_stride * static_cast<int64_t>(sizeof(X)));
  b.p = take(kStripRows * b.p_stride * static_cast<int64_t>(sizeof(X)));
  b.scores = reinterpret_cast<float*>(take(kStripRows * (kKeyBlock + kPanelColumns) * 4));
  b.block_sums = reinterpret_cast<float*>(take(kStripRows * b.value_columns * 4));
  b.sums = reinterpret_cast<float*>(take(kStripRows * b.value_columns * 4));
  return static_cast<size_t>(at - static_cast<uint8_t*>(memory));
}

template <Step step>
void attend_strip(const AttentionCall& call, const AttentionBuffers& b, int64_t head, int64_t begin, int64_t rows) {
  using X = typename StepOf<step>::X;
  constexpr int64_t depth = StepOf<step>::depth;
  X* q = reinterpret_cast<X*>(b.q);
  X* p = reinterpret_cast<X*>(b.p);
  const int64_t steps = (call.depth + depth - 1) / depth, key_panel = steps * kStepBytes;
  const int64_t value_panels = b.value_columns / kPanelColumns;
  LinearCall queries;
  queries.k = call.depth;
  queries.x = {call.q.data, call.q.stride, call.q.type};
  queries.x.data = static_cast<const char*>(call.q.data) + head * call.q.head * (call.q.type == ElementType::float32 ? 4 : 2);
  gather_rows(queries, begin, rows, q, b.x_stride);

  RowState states[kStripRows];
  begin_rows(states, rows);
  const KeyRange seen = keys_of_rows(call, begin, begin + rows - 1);
  bool first = true;
  for (int64_t block = seen.begin / kKeyBlock * kKeyBlock; block < seen.end; block += kKeyBlock) {
    const int64_t all = call.keys - block < kKeyBlock ? call.keys - block : kKeyBlock, all_steps = (all + depth - 1) / depth;
    KeyRange keys = {block, seen.end - block < all ? seen.end : block + all};
    if (seen.begin > block) keys.begin = seen.begin / kPanelColumns * kPanelColumns;
    for (int64_t panel = keys.begin / kPanelColumns; panel * kPanelColumns < keys.end; ++panel) {
      Strips<step>::of[rows - 1](q, b.x_stride, b.k + panel * key_panel, 0, steps,
                                 b.scores + (panel * kPanelColumns - block) * rows);
    }
    float shrink[kStripRows];
    for (int64_t r = 0; r < rows; ++r) {
      const RowPlace<X> place = {b.scores + (keys.begin - block) * rows + r * kPanelColumns, rows * kPanelColumns,
                                 p + r * b.p_stride + keys.begin - block, kPanelColumns};
      shrink[r] = weigh_row(call, head, begin + r, keys, depth, place, states[r]);
    }
    const int64_t skipped = (keys.begin - block) / depth, value_steps = (keys.end - keys.begin + depth - 1) / depth;
    const uint8_t* v = b.v + block / depth * value_panels * kStepBytes + skipped * kStepBytes;
    for (int64_t panel = 0; panel < value_panels; ++panel) {
      float* sums = b.block_sums + panel * rows * kPanelColumns;
      float* total = b.sums + panel * rows * kPanelColumns;
      Strips<step>::of[rows - 1](p + skipped * depth, b.p_stride, v + panel * all_steps * kStepBytes, 0, value_steps,
                                 first ? total : sums);
      if (first) continue;
      for (int64_t i = 0; i < rows * kPanelColumns; i += kWidth) {
        store(total + i, load(total + i) * shrink[i / kPanelColumns] + load(sums + i));
      }
    }
    first = false;
  }
  finish_rows(call, head, begin, rows, b.sums, rows, states);
}

template <Step step>
void attend(const AttentionCall& call, const AttentionPart& part, void* scratch) {
  AttentionBuffers b;
  lay_out<step>(call, b, scratch);
  constexpr int64_t depth = StepOf<step>::depth;
  pack_keys<step>(call, (call.depth + depth - 1) / depth, b.k);
  pack_values<step>(call, kKeyBlock, depth, b.v);
  const int64_t length = part.end - part.begin, strips = (length + kStripRows - 1) / kStripRows;
  for (int64_t head = 0; head < call.heads; ++head) {
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t begin = part.begin + length * s / strips, end = part.begin + length * (s + 1) / strips;
      attend_strip<step>(call, b, head, begin, end - begin);
    }
  }
}

// Without dot products of bfloat16, scores of widened pairs would be no faster than float32 and less exact.
#ifdef SLIPSTREAM_DOT_BF16
constexpr Step kAttentionStep = Step::dot_bf16;
#else
constexpr Step kAttentionStep = Step::float32;
#endif

inline size_t attention_scratch(const AttentionCall& call) {
  AttentionBuffers b;
  return call.bfloat16 ? lay_out<kAttentionStep>(call, b, nullptr) : lay_out<Step::float32>(call, b, nullptr);
}

inline void attention(const AttentionCall& call, const AttentionPart& part, void* scratch) {
  call.bfloat16 ? attend<kAttentionStep>(call, part, scratch) : attend<Step::float32>(call, part, scratch);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
