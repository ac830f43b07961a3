// SPDX-License-Identifier: Apache-2.0
// softmax(scale * Q K^T + mask) V on vector registers, for one head of keys and values. K and V are packed as linear weights are;
// strips of query rows then run over blocks of keys with a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867;
// Dao et al., arXiv 2205.14135), so that scores never leave the second-level cache. Needs kernels/linear_vector.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Keys whose scores (12 rows x 1024 floats = 48 KiB) and weights are in work at a time.
constexpr int64_t kKeyBlock = 1024;

constexpr float kNever = -3.4e38f;  // below any score; a row that has seen no key keeps it

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

// Keys as a linear weight [keys, depth]: [panel of 32 keys][step of depth][32], where a step is one float or a bfloat16 pair.
// Both are 32-bit words, so one transposition of words serves both.
template <Step step>
inline void pack_keys(const AttentionCall& call, uint8_t* to) {
  constexpr int64_t depth = StepOf<step>::depth;
  const int64_t steps = (call.depth + depth - 1) / depth;
  for (int64_t key = 0; key < round_up(call.keys, kPanelColumns); key += kWidth) {
    uint8_t* panel = to + key / kPanelColumns * steps * kStepBytes + key % kPanelColumns * kColumnBytes;
    for (int64_t s = 0; s < steps; s += kWidth) {
      Vec block[kWidth];
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; ++r) {
        block[r] = Vec{};
        if (key + r >= call.keys) continue;
        const int64_t from = (key + r) * call.k.stride + s * depth, left = call.depth - s * depth;
        if constexpr (step == Step::float32) {
          block[r] = left >= kWidth ? load_element(call.k.data, call.k.type, from)
                                    : load_element_partly(call.k.data, call.k.type, from, left);
        } else {
          uint16_t halves[2 * kWidth];
          store(halves, left >= kWidth ? load_element(call.k.data, call.k.type, from)
                                       : load_element_partly(call.k.data, call.k.type, from, left));
          const int64_t rest = left - kWidth;
          store(halves + kWidth, rest >= kWidth ? load_element(call.k.data, call.k.type, from + kWidth)
                                 : rest > 0     ? load_element_partly(call.k.data, call.k.type, from + kWidth, rest)
                                                : Vec{});
          block[r] = reinterpret_cast<Vec>(load_words(halves));
        }
      }
      transpose_block(block);
      const int64_t present = steps - s < kWidth ? steps - s : kWidth;
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; ++r) {
        if (r < present) store(reinterpret_cast<float*>(panel + (s + r) * kStepBytes), block[r]);
      }
    }
  }
}

// Values [keys, value_depth] as the weight of P V: [block of keys][panel of 32 value columns][step of keys][32].
template <Step step>
inline void pack_values(const AttentionCall& call, uint8_t* to) {
  constexpr int64_t depth = StepOf<step>::depth;
  const int64_t panels = round_up(call.value_depth, kPanelColumns) / kPanelColumns;
  auto value = [&](int64_t key, int64_t column) {
    if (key >= call.keys || column >= call.value_depth) return Vec{};
    const int64_t left = call.value_depth - column, from = key * call.v.stride + column;
    return left >= kWidth ? load_element(call.v.data, call.v.type, from)
                          : load_element_partly(call.v.data, call.v.type, from, left);
  };
  for (int64_t first = 0; first < call.keys; first += kKeyBlock) {
    const int64_t keys = call.keys - first < kKeyBlock ? call.keys - first : kKeyBlock;
    const int64_t steps = (keys + depth - 1) / depth;
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t s = 0; s < steps; ++s, to += kStepBytes) {
        for (int64_t c = 0; c < kPanelColumns; c += kWidth) {
          const int64_t key = first + s * depth, column = panel * kPanelColumns + c;
          if constexpr (step == Step::float32) {
            store(reinterpret_cast<float*>(to) + c, value(key, column));
          } else {
            uint16_t halves[2 * kWidth];
            store(halves, value(key, column));
            store(halves + kWidth, value(key + 1, column));
            const VecU low = widened(*reinterpret_cast<const VecHInMemory*>(halves));
            const VecU high = widened(*reinterpret_cast<const VecHInMemory*>(halves + kWidth));
            store(reinterpret_cast<float*>(to) + c, reinterpret_cast<Vec>(low | (high << 16)));
          }
        }
      }
    }
  }
}

// The mask of one query row over the keys [key, key + count), as something to add to scores.
inline Vec mask_at(const AttentionCall& call, int64_t head, int64_t row, int64_t key, int64_t count) {
  const int64_t from = head * call.mask_head + row * call.mask_row + key * call.mask_key;
  if (call.mask_type == MaskType::boolean) {
    Vec v{};
    const uint8_t* seen = static_cast<const uint8_t*>(call.mask) + from;
    for (int64_t i = 0; i < count; ++i) v[i] = seen[i * call.mask_key] ? 0.f : -__builtin_inff();
    return v;
  }
  const ElementType type = call.mask_type == MaskType::float32 ? ElementType::float32 : ElementType::bfloat16;
  if (call.mask_key == 1) {
    return count == kWidth ? load_element(call.mask, type, from) : load_element_partly(call.mask, type, from, count);
  }
  Vec v{};
  for (int64_t i = 0; i < count; ++i) v[i] = load_element_partly(call.mask, type, from + i * call.mask_key, 1)[0];
  return v;
}

inline float largest_of(Vec v) {
  float most = kNever;
  for (int i = 0; i < kWidth; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

inline float sum_of(Vec v) {
  float sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += v[i];
  return sum;
}

struct RowState {
  float most = kNever, sum = 0;
};

// One row's scores of a block become weights exp(score - most) in p; returns the factor by which what was summed before shrinks.
template <typename X>
inline float weigh_row(const AttentionCall& call, float* scores, int64_t rows, int64_t r, int64_t head, int64_t row, int64_t key,
                       int64_t keys, X* p, int64_t p_length, RowState& state) {
  const Vec infinite = broadcast(-__builtin_inff());
  const int64_t seen = call.causal && row + 1 - key < keys ? (row + 1 - key > 0 ? row + 1 - key : 0) : keys;
  auto at = [&](int64_t j) { return scores + (j / kPanelColumns * rows + r) * kPanelColumns + j % kPanelColumns; };
  Vec most = broadcast(state.most);
  for (int64_t j = 0; j < keys; j += kWidth) {
    const int64_t count = keys - j < kWidth ? keys - j : kWidth;
    Vec v = load(at(j)) * call.scale;
    if (call.mask) v += mask_at(call, head, row, key + j, count);
    for (int64_t i = seen - j > 0 ? seen - j : 0; i < kWidth; ++i) v[i] = -__builtin_inff();
    store(at(j), v);
    most = select(v > most, v, most);
  }
  const float before = state.most;
  state.most = largest_of(most);
  const Vec offset = broadcast(state.most);
  Vec sum{};
  int64_t j = 0;
  for (; j < keys; j += kWidth) {
    const Vec v = load(at(j));
    const Vec w = select(v == infinite, Vec{}, exp(v - offset));
    sum += w;
    store(p + j, w);
  }
  for (; j < p_length; ++j) p[j] = X{};
  const float shrink = before == kNever ? 0.f : exp(broadcast(before - state.most))[0];
  state.sum = state.sum * shrink + sum_of(sum);
  return shrink;
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
  gather_rows(queries, begin, rows, q, b.x_stride, steps * depth);

  RowState states[kStripRows];
  const int64_t last = call.causal && begin + rows < call.keys ? begin + rows : call.keys;  // no row of the strip sees beyond
  const uint8_t* v = b.v;
  for (int64_t key = 0; key < last; key += kKeyBlock) {
    const int64_t all = call.keys - key < kKeyBlock ? call.keys - key : kKeyBlock;
    const int64_t keys = last - key < all ? last - key : all;
    const int64_t all_steps = (all + depth - 1) / depth, value_steps = (keys + depth - 1) / depth;
    for (int64_t panel = 0; panel * kPanelColumns < keys; ++panel) {
      Strips<step>::of[rows - 1](q, b.x_stride, b.k + (key / kPanelColumns + panel) * key_panel, 0, steps,
                                 b.scores + panel * rows * kPanelColumns);
    }
    float shrink[kStripRows];
    for (int64_t r = 0; r < rows; ++r) {
      shrink[r] = weigh_row(call, b.scores, rows, r, head, begin + r, key, keys, p + r * b.p_stride, value_steps * depth, states[r]);
    }
    for (int64_t panel = 0; panel < value_panels; ++panel) {
      float* block = b.block_sums + panel * rows * kPanelColumns;
      float* total = b.sums + panel * rows * kPanelColumns;
      Strips<step>::of[rows - 1](p, b.p_stride, v + panel * all_steps * kStepBytes, 0, value_steps, key == 0 ? total : block);
      if (key == 0) continue;
      for (int64_t i = 0; i < rows * kPanelColumns; i += kWidth) {
        store(total + i, load(total + i) * shrink[i / kPanelColumns] + load(block + i));
      }
    }
    v += value_panels * all_steps * kStepBytes;
  }
  for (int64_t r = 0; r < rows; ++r) {
    // A row that saw no key is zero, as in torch.
    const float factor = states[r].sum == 0 ? 0.f : 1.f / states[r].sum;
    for (int64_t c = 0; c < call.value_depth; c += kWidth) {
      const int64_t count = call.value_depth - c < kWidth ? call.value_depth - c : kWidth;
      const float* from = b.sums + (c / kPanelColumns * rows + r) * kPanelColumns + c % kPanelColumns;
      const Vec y = factor == 0 ? Vec{} : load(from) * factor;
      store_element(call.y, call.y_type, head * call.y_head + (begin + r) * call.y_stride + c, count, y);
    }
  }
}

template <Step step>
void attend(const AttentionCall& call, const AttentionPart& part, void* scratch) {
  AttentionBuffers b;
  lay_out<step>(call, b, scratch);
  pack_keys<step>(call, b.k);
  pack_values<step>(call, b.v);
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
