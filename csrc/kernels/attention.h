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
  float *back_q, *back_k, *back_v;  // what products of float16 are put back by: of kStripRows rows, of keys, of [blocks][value columns]
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
  const bool half = step == Step::half;
  b.back_q = reinterpret_cast<float*>(take(half ? kStripRows * 4 : 0));
  b.back_k = reinterpret_cast<float*>(take(half ? round_up(call.keys, kPanelColumns) * 4 : 0));
  b.back_v = reinterpret_cast<float*>(take(half ? (call.keys + kKeyBlock - 1) / kKeyBlock * b.value_columns * 4 : 0));
  return static_cast<size_t>(at - static_cast<uint8_t*>(memory));
}

template <Step step>
void attend(const AttentionCall& call, const AttentionPart& part, void* scratch);

inline const void* query_at(const AttentionCall& call, int64_t head, int64_t row) {
  return static_cast<const char*>(call.q.data) + (head * call.q.head + row * call.q.stride) * bytes_of(call.q.type);
}

// Rows of queries as strips read them: where they lie if they have the step's own type, else copied. Not where they would fall into
// a few sets of the first-level cache.
template <Step step>
BlockOfX<step> queries_of(const AttentionCall& call, const AttentionBuffers& b, int64_t head, int64_t begin, int64_t rows) {
  using X = typename StepOf<step>::X;
#ifdef SLIPSTREAM_HALF
  if constexpr (step == Step::half) {
    const Rows q = {query_at(call, head, begin), call.q.stride, call.q.type};
    Half* to = reinterpret_cast<Half*>(b.q);
    for (int64_t r = 0; r < rows; ++r) b.back_q[r] = fit_row(q, r, call.depth, to + r * b.x_stride);
    return {to, b.x_stride};
  }
#endif
  LinearCall queries;
  queries.k = call.depth;
  queries.x = {query_at(call, head, begin), call.q.stride, call.q.type};
  if (lies_as_read<step>(queries.x, call.depth)) return {static_cast<const X*>(queries.x.data), call.q.stride};
  gather_rows(queries, 0, rows, reinterpret_cast<X*>(b.q), b.x_stride);
  return {reinterpret_cast<const X*>(b.q), b.x_stride};
}

// Keys and values of the next call are asked for while they are few: a quarter of the second-level cache.
inline int64_t bytes_ahead() { return second_level_cache() / 4; }

// What a strip asks for while it computes: its successor's queries, the lines of y that it will write, a share of the next call's
// keys and values. Rows of one head lie apart, which the processor does not foresee; and all of them in one go would fill its line
// buffers and keep loads waiting, so that some are asked for before each product.
struct AskAhead {
  const AttentionCall& call;
  const void *q, *y;
  int64_t rows;       // of q and of y
  KeyRange keys;      // of the next call
  int64_t parts;      // products of the strip
  int64_t asked = 0;  // parts done

  SLIPSTREAM_INLINE void some() {
    if (asked == parts) return;
    const int64_t from = rows * asked / parts, to = rows * (asked + 1) / parts, share = keys.end - keys.begin;
    const int64_t first = keys.begin + share * asked / parts, last = keys.begin + share * (asked + 1) / parts;
    if (q) ask_for_tile<Use::later>(q, call.q.type, call.q.stride, from, to, 0, call.depth);
    if (y) ask_for_tile<Use::later>(y, call.y_type, call.y_stride, from, to, 0, call.value_depth);
    if (call.k_ahead) ask_for_tile<Use::later>(call.k_ahead, call.k.type, call.k.stride, first, last, 0, call.depth);
    if (call.v_ahead) ask_for_tile<Use::later>(call.v_ahead, call.v.type, call.v.stride, first, last, 0, call.value_depth);
    ++asked;
  }
};

// Query rows [begin, begin + rows) of a head; `next` are those of the strip after it, null where there is none.
struct QueryRows {
  int64_t head, begin, rows;
  const void* next;
  KeyRange ahead;  // its share of the next call's keys
};

// Scores [rows][32] of a panel of keys; of a register of them where the rows see no more.
template <Step step>
SLIPSTREAM_INLINE void score_panel(const BlockOfX<step>& q, const uint8_t* k, int64_t steps, int64_t rows,
                                   [[maybe_unused]] int64_t keys, float* scores) {
  if constexpr (step != Step::half && kStripColumns == kPanelColumns) {
    if (keys <= kWidth && steps <= kMostSteps<step>) {
      LinearCall half;
      half.n = kWidth;
      half.y = scores;
      half.y_stride = kPanelColumns;
      const float unbounded = __builtin_inff();
      return StripsInto<step, 1, float>::of[rows - 1](half, q.rows, q.stride, k, steps, 0, 0, -unbounded, unbounded,
                                                    {k, 0});
    }
  }
  Strips<step>::of[rows - 1](q.rows, q.stride, k, 0, steps, scores, false, {k, 0});
}

template <Step step>
void attend_strip(const AttentionCall& call, const AttentionBuffers& b, const QueryRows& strip) {
  using X = typename StepOf<step>::X;
  constexpr int64_t depth = StepOf<step>::depth;
  // Keys begin where sums do, or other rows of the strip would change the order of a row's.
  constexpr int64_t together = step == Step::half ? round_up(kStepsPerHalfSum * depth, kPanelColumns) : kPanelColumns;
  X* p = reinterpret_cast<X*>(b.p);
  const int64_t head = strip.head, begin = strip.begin, rows = strip.rows;
  const int64_t steps = (call.depth + depth - 1) / depth, key_panel = steps * kStepBytes;
  const int64_t value_panels = b.value_columns / kPanelColumns;
  const BlockOfX<step> q = queries_of<step>(call, b, head, begin, rows);
  const KeyRange seen = keys_of_rows(call, begin, begin + rows - 1);
  const int64_t panels = (seen.end + kPanelColumns - 1) / kPanelColumns - seen.begin / kPanelColumns;
  const void* y = static_cast<const char*>(call.y) + (head * call.y_head + begin * call.y_stride) * bytes_of(call.y_type);
  AskAhead ahead = {call, strip.next, y, rows, strip.ahead, (panels > 0 ? panels : 0) + value_panels};
  RowState states[kStripRows];
  begin_rows(states, rows);
#ifdef SLIPSTREAM_HALF
  float back_p[kStripRows];  // weights are between 0 and 1 and not scaled
  for (int64_t r = 0; r < rows; ++r) back_p[r] = power_of_two(-kHalfExponent / 2);
#endif
  bool first = true;
  for (int64_t block = seen.begin / kKeyBlock * kKeyBlock; block < seen.end; block += kKeyBlock) {
    const int64_t all = call.keys - block < kKeyBlock ? call.keys - block : kKeyBlock, all_steps = (all + depth - 1) / depth;
    KeyRange keys = {block, seen.end - block < all ? seen.end : block + all};
    if (seen.begin > block) keys.begin = seen.begin / together * together;
    for (int64_t panel = keys.begin / kPanelColumns; panel * kPanelColumns < keys.end; ++panel) {
      ahead.some();
      score_panel(q, b.k + panel * key_panel, steps, rows, keys.end - panel * kPanelColumns,
                  b.scores + (panel * kPanelColumns - block) * rows);
#ifdef SLIPSTREAM_HALF
      if constexpr (step == Step::half) {
        put_back(b.scores + (panel * kPanelColumns - block) * rows, rows, b.back_q, b.back_k + panel * kPanelColumns);
      }
#endif
    }
    float shrink[kStripRows];
    auto place = [&](int64_t r) {
      return RowPlace<X>{b.scores + (keys.begin - block) * rows + r * kPanelColumns, rows * kPanelColumns,
                         p + r * b.p_stride + keys.begin - block, kPanelColumns};
    };
    weigh<X>(call, head, begin, rows, keys, depth, place, states, shrink);
    const int64_t skipped = (keys.begin - block) / depth, value_steps = (keys.end - keys.begin + depth - 1) / depth;
    const uint8_t* v = b.v + block / depth * value_panels * kStepBytes + skipped * kStepBytes;
    for (int64_t panel = 0; panel < value_panels; ++panel) {
      float* sums = b.block_sums + panel * rows * kPanelColumns;
      float* total = b.sums + panel * rows * kPanelColumns;
      ahead.some();
      Strips<step>::of[rows - 1](p + skipped * depth, b.p_stride, v + panel * all_steps * kStepBytes, 0, value_steps,
                                 first ? total : sums, false, {v, 0});
#ifdef SLIPSTREAM_HALF
      if constexpr (step == Step::half) {
        put_back(first ? total : sums, rows, back_p, b.back_v + block / kKeyBlock * b.value_columns + panel * kPanelColumns);
      }
#endif
      if (first) continue;
      for (int64_t i = 0; i < rows * kPanelColumns; i += kWidth) {
        store(total + i, load(total + i) * shrink[i / kPanelColumns] + load(sums + i));
      }
    }
    first = false;
  }
  finish_rows(call, head, begin, rows, b.sums, rows, states);
}

#ifdef SLIPSTREAM_HALF
// Packed keys and values, which are bfloat16, become float16 where they lie. False where some do not fit.
inline bool fit_packed(const AttentionCall& call, const AttentionBuffers& b) {
  const int64_t key_steps = (call.depth + 1) / 2, panels = b.value_columns / kPanelColumns;
  bool fits = true;
  for (int64_t key = 0; key < call.keys; key += kPanelColumns) {
    uint8_t* panel = b.k + key / kPanelColumns * key_steps * kStepBytes;
    fits &= fit_panel_of_halves(panel, key_steps, panel, b.back_k + key);
  }
  uint8_t* panel = b.v;
  for (int64_t first = 0; first < call.keys; first += kKeyBlock) {
    const int64_t left = call.keys - first, steps = ((left < kKeyBlock ? left : kKeyBlock) + 1) / 2;
    for (int64_t p = 0; p < panels; ++p, panel += steps * kStepBytes) {
      fits &= fit_panel_of_halves(panel, steps, panel, b.back_v + first / kKeyBlock * b.value_columns + p * kPanelColumns);
    }
  }
  return fits;
}

// Rows of queries that do not fit, again and in float32.
inline void attend_misfits(const AttentionCall& call, const AttentionPart& part, void* scratch) {
  for (int64_t row = part.begin; row < part.end; ++row) {
    bool fits = true;
    for (int64_t head = 0; head < call.heads; ++head) {
      fits &= operand_scale(largest_magnitude(query_at(call, head, row), call.q.type, 0, call.depth)).back > 0;
    }
    if (!fits) attend<Step::float32>(call, {row, row + 1}, scratch);
  }
}
#endif

template <Step step>
void attend(const AttentionCall& call, const AttentionPart& part, void* scratch) {
  AttentionBuffers b;
  lay_out<step>(call, b, scratch);
  constexpr int64_t depth = StepOf<step>::depth;
  pack_keys<step>(call, (call.depth + depth - 1) / depth, b.k);
  pack_values<step>(call, kKeyBlock, depth, b.v);
#ifdef SLIPSTREAM_HALF
  if constexpr (step == Step::half) {
    if (!fit_packed(call, b)) return attend<Step::float32>(call, part, scratch);
  }
#endif
  const bool few = b.k_bytes + b.v_bytes <= bytes_ahead();
  const int64_t length = part.end - part.begin, strips = (length + kStripRows - 1) / kStripRows;
  for (int64_t head = 0; head < call.heads; ++head) {
    const bool last = head + 1 == call.heads;
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t begin = part.begin + length * s / strips, end = part.begin + length * (s + 1) / strips;
      QueryRows strip = {head, begin, end - begin, call.q_ahead, {0, 0}};
      if (s + 1 < strips) {
        strip.next = query_at(call, head, end);
      } else if (!last) {
        strip.next = query_at(call, head + 1, part.begin);
      }
      if (last && few) strip.ahead = {call.keys * s / strips, call.keys * (s + 1) / strips};
      attend_strip<step>(call, b, strip);
    }
  }
#ifdef SLIPSTREAM_HALF
  if constexpr (step == Step::half) attend_misfits(call, part, scratch);
#endif
}

// Without dot products of bfloat16, scores of widened pairs would be no faster than float32 and less exact.
#ifdef SLIPSTREAM_DOT_BF16
constexpr Step kAttentionStep = Step::dot_bf16;
#else
constexpr Step kAttentionStep = Step::float32;
#endif

#ifdef SLIPSTREAM_HALF
// Fewer queries do not repay converting keys and values.
constexpr int64_t kLeastQueriesOfHalf = 48;
inline bool attends_half(const AttentionCall& call) { return call.bfloat16 && call.queries >= kLeastQueriesOfHalf; }
#endif

inline size_t attention_scratch(const AttentionCall& call) {
  AttentionBuffers b;
#ifdef SLIPSTREAM_HALF
  if (attends_half(call)) {
    const size_t half = lay_out<Step::half>(call, b, nullptr), plain = lay_out<Step::float32>(call, b, nullptr);
    return half > plain ? half : plain;
  }
#endif
  return call.bfloat16 ? lay_out<kAttentionStep>(call, b, nullptr) : lay_out<Step::float32>(call, b, nullptr);
}

inline void attention(const AttentionCall& call, const AttentionPart& part, void* scratch) {
#ifdef SLIPSTREAM_HALF
  if (attends_half(call)) return attend<Step::half>(call, part, scratch);
#endif
  call.bfloat16 ? attend<kAttentionStep>(call, part, scratch) : attend<Step::float32>(call, part, scratch);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
