// SPDX-License-Identifier: Apache-2.0
// Linear on vector registers. A thread's part of y is cut into blocks of rows whose copy of x stays in the second-level
// cache; each panel of the weight is then streamed once a block, and strips of a few rows run over the whole depth, so that
// sums never leave registers before they are finished. Needs kernels/multiply_step.h, kernels/linear_finish.h and kernels/ask_for.h;
// what is int8's own: kernels/linear_int8.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Half of the second-level cache for x; a panel and y's lines take the rest.
inline int64_t block_bytes() { return second_level_cache() / 2; }

// A running sum's rounding error grows with its length; sums of this many steps are added up pairwise into y, which holds a
// float32 product of depth 4096 at the error of torch's own (measured: 3e-7 against 1.1e-6 for one running sum). Sums of
// integers have none, and are one sum up to the deepest that there is (32768, four a step).
constexpr int64_t kStepsPerSum = 512;
// In float16 the sums are short: kernels/half_operands.h.
constexpr int64_t kStepsPerHalfSum = 32;
// Of 16-bit integers they are exact, as long as they fit an int32: kernels/int16_operands.h.
constexpr int64_t kStepsPerInt16Sum = 64;
template <Step step>
constexpr int64_t kMostSteps = step == Step::int8    ? 8192
                              : step == Step::half  ? kStepsPerHalfSum
                              : step == Step::int16 ? kStepsPerInt16Sum
                                                    : kStepsPerSum;

// A multiply-add takes 4 to 6 cycles and two can start a cycle, so 8 sums must be in flight. Up to three rows are multiplied by
// several panels at once for that. (Splitting the depth instead would make a row's last bits depend on how many rows are
// computed beside it; as it is, they depend on nothing but the row.)
constexpr int kFewRows = 3;

// One or two rows take all of a panel's columns at a time where half of them would leave every other line of the weights for later:
// reading them is what such rows live on. Where registers are as wide as half a panel, or there are too few, a strip's as else.
template <Step step>
constexpr int vectors_of(int rows) {
  constexpr bool one_register_each = step == Step::float32 || step == Step::int16;
  return kWidth == 8 && rows <= 2 && one_register_each ? kPanelColumns / kWidth : kStripVectors;
}
template <Step step>
constexpr int panels_together(int rows) {
  return (rows == 1 ? 4 : rows <= kFewRows ? 2 : 1) * kStripVectors / vectors_of<step>(rows);
}

// Weights that a later strip will read, from memory or from a cache that all cores share: `stride` bytes of them are asked for at
// each step, so that they arrive while sums are computed. Where there are none: the strip's own, and zero. (By reference: as a value it
// would be stored in two halves and loaded whole, which waits for all stores before it.)
struct WeightsAhead {
  const uint8_t* at;
  int64_t stride;
};

class AskForWeights {
 public:
  SLIPSTREAM_INLINE explicit AskForWeights(const WeightsAhead& ahead) : at_(ahead.at), stride_(ahead.stride) {}
  SLIPSTREAM_INLINE void step() {
    __builtin_prefetch(at_, 0, 2);
    __builtin_prefetch(at_ + 64, 0, 2);  // where one strip asks for a whole panel, a step takes two lines
    at_ += stride_;
  }

 private:
  const uint8_t* at_;
  const int64_t stride_;
};

// Few rows live on reading the weights. Hardware foresees a stream up to the end of its page, and begins anew in the next.
SLIPSTREAM_INLINE void ask_beyond_page(const uint8_t* w) {
  constexpr int64_t page = 4096;
  __builtin_prefetch(w + page, 0, 2);
  __builtin_prefetch(w + page + 64, 0, 2);
}

// sums[panels][rows][32] (so many registers of columns of it) = or += x[rows][k] . panels over at most kMostSteps, as stored_sum has
// it.
template <Step step, int rows, int panels, int vectors = kStripVectors>
SLIPSTREAM_INLINE void strip_part(const typename StepOf<step>::X* x, int64_t x_stride, const uint8_t* w, int64_t panel_bytes,
                                  int64_t steps, float* out, bool first, const WeightsAhead& ahead) {
  typename StepOf<step>::Sum sums[panels][rows][vectors] = {};
  AskForWeights ask(ahead);
  RowsByFours<typename StepOf<step>::X, rows> at(x, x_stride);
  for (const uint8_t* end = w + steps * kStepBytes; w < end; w += kStepBytes) {
    if constexpr (rows > kFewRows) ask.step();
#pragma GCC unroll 4
    for (int p = 0; p < panels; ++p) {
      if constexpr (rows <= kFewRows) ask_beyond_page(w + p * panel_bytes);
      multiply_step<step, rows, vectors>(sums[p], at, w + p * panel_bytes);
    }
    at.step(StepOf<step>::depth);
  }
  // Unrolled, so that the sums are registers to the end and never an array in memory.
#pragma GCC unroll 4
  for (int p = 0; p < panels; ++p) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        float* to = out + (p * rows + r) * kPanelColumns + v * kWidth;
        const Vec sum = stored_sum<step>(sums[p][r][v]);
        store(to, first ? sum : sum + load(to));
      }
    }
  }
}

// With `onto`, added to what `out` holds.
template <Step step, int rows, int panels, int vectors = kStripVectors>
void strip(const typename StepOf<step>::X* x, int64_t x_stride, const uint8_t* w, int64_t panel_bytes, int64_t steps,
           float* out, bool onto, const WeightsAhead& ahead) {
  for (int64_t column = 0; column < kPanelColumns; column += vectors * kWidth) {
    int64_t done = 0;
    do {
      const int64_t part = steps - done < kMostSteps<step> ? steps - done : kMostSteps<step>;
      strip_part<step, rows, panels, vectors>(x + done * StepOf<step>::depth, x_stride,
                                              w + column * kColumnBytes + done * kStepBytes, panel_bytes, part, out + column,
                                              done == 0 && !onto, {ahead.at + done * ahead.stride, ahead.stride});
      done += part;
    } while (done < steps);
  }
}

template <Step step>
using Strip = void (*)(const typename StepOf<step>::X*, int64_t, const uint8_t*, int64_t, int64_t, float*, bool, const WeightsAhead&);

template <Step step, int... rows>
struct StripTable {
  static constexpr Strip<step> of[] = {strip<step, rows, 1>...};
};
#if SLIPSTREAM_WIDTH == 16
template <Step step>
using Strips = StripTable<step, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
#else
template <Step step>
using Strips = StripTable<step, 1, 2, 3, 4, 5, 6>;
#endif

template <Step step>
constexpr Strip<step> kFewRowStrips[] = {strip<step, 1, panels_together<step>(1), vectors_of<step>(1)>,
                                         strip<step, 2, panels_together<step>(2), vectors_of<step>(2)>,
                                         strip<step, 3, panels_together<step>(3), vectors_of<step>(3)>};

// Copies rows of x into scratch memory in the step's own type, zero-padded to a whole register.
template <typename To>
void gather_rows(const LinearCall& call, int64_t begin, int64_t rows, To* to, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    To* line = to + i * stride;
    const int64_t from = (begin + i) * call.x.stride;
    int64_t k = 0;
    for (; k + kWidth <= call.k; k += kWidth) store(line + k, load_element(call.x.data, call.x.type, from + k));
    if (k < call.k) store(line + k, load_element_partly(call.x.data, call.x.type, from + k, call.k - k));
  }
}

// Few panels repay no copy of x: rows that have the step's own type are read where they lie. Not where strips of them would
// fall into a few sets of the first-level cache.
constexpr int64_t kPanelsInPlace = 8;
template <Step step>
bool lies_as_read(const Rows& x, int64_t k) {
  constexpr ElementType own = sizeof(typename StepOf<step>::X) == 2 ? ElementType::bfloat16 : ElementType::float32;
  return x.type == own && k % StepOf<step>::depth == 0 &&
         x.stride * static_cast<int64_t>(sizeof(typename StepOf<step>::X)) % 2048 != 0;
}
template <Step step>
bool reads_in_place(const LinearCall& call, const LinearPart& part) {
  return lies_as_read<step>(call.x, call.k) && part.panel_end - part.panel_begin <= kPanelsInPlace;
}

// Rows in scratch memory start an odd number of cache lines apart: a power of two would put all rows of a strip into the same
// few sets of the first-level cache.
template <Step step>
int64_t x_stride_of(int64_t k) {
  constexpr int64_t line = 64 / sizeof(typename StepOf<step>::X);
  const int64_t lines = (k + StepOf<step>::depth + line - 1) / line;
  return (lines | 1) * line;
}

template <Step step>
int64_t block_rows_of(int64_t k, int64_t rows) {
  const int64_t row_bytes = x_stride_of<step>(k) * static_cast<int64_t>(sizeof(typename StepOf<step>::X));
  int64_t block = block_bytes() / row_bytes / kRowsOf<step> * kRowsOf<step>;
  if (block < kRowsOf<step>) block = kRowsOf<step>;
  if (rows <= block) return rows;
  const int64_t blocks = (rows + block - 1) / block;  // blocks of nearly equal size
  return round_up((rows + blocks - 1) / blocks, kRowsOf<step>);
}

// Of long rows so few fit into the second-level cache that weights would stream past them faster than memory gives them: 12 rows
// of depth 5632 in float32 ask for 20 GB/s a core. So many steps of many more rows are multiplied at once then, and the sums wait
// in memory, of which they ask 24 bytes for each thousand steps. The order of sums stays what it is.
constexpr int64_t kStepsAtOnce = 2 * kStepsPerSum;
constexpr int64_t kWaitingSums = 256 * 1024;  // floats

// How a part is cut: `deep`, else by whole rows; a block's rows, and how many panels' sums wait.
struct DeepPlan {
  bool deep;
  int64_t rows, panels, x_stride, x_bytes;
};

template <Step step>
DeepPlan deep_plan(const LinearCall& call, const LinearPart& part) {
  constexpr int64_t depth = StepOf<step>::depth;
  const int64_t rows = part.m_end - part.m_begin, panels = part.panel_end - part.panel_begin;
  DeepPlan plan{};
  plan.deep = call.k > kStepsAtOnce * depth && rows > block_rows_of<step>(call.k, rows);
  if (!plan.deep) return plan;
  plan.rows = block_rows_of<step>(kStepsAtOnce * depth, rows);
  plan.panels = kWaitingSums / (plan.rows * kPanelColumns);
  if (plan.panels > panels) plan.panels = panels;
  if (plan.panels < 1) plan.panels = 1;
  plan.x_stride = x_stride_of<step>(kStepsAtOnce * depth);
  plan.x_bytes = round_up(plan.rows * plan.x_stride * static_cast<int64_t>(sizeof(typename StepOf<step>::X)), 64);
  return plan;
}

template <Step step>
size_t vector_scratch(const LinearCall& call, const LinearPart& part) {
  const DeepPlan deep = deep_plan<step>(call, part);
  if (deep.deep) return static_cast<size_t>(deep.x_bytes + deep.panels * deep.rows * kPanelColumns * 4) + 64;
  const int64_t rows = block_rows_of<step>(call.k, part.m_end - part.m_begin);
  return static_cast<size_t>(rows * x_stride_of<step>(call.k)) * sizeof(typename StepOf<step>::X) + 64;
}

// Rows of a block as strips read them.
template <Step step>
struct BlockOfX {
  const typename StepOf<step>::X* rows;
  int64_t stride;
};

// Steps of depth that take as long as a line from another cache or memory.
constexpr int64_t kStepsOfALine = 64;

// Asks for what the sums of a strip and a panel go to, and for what goes there with them: its lines lie a row apart, and arrive
// while the sums are computed.
SLIPSTREAM_INLINE void ask_for_y(const LinearCall& call, int64_t steps, int64_t row, int64_t rows, int64_t panel) {
  if (steps < kStepsOfALine) return;
  const int64_t column = panel * kPanelColumns, columns = call.n - column < kPanelColumns ? call.n - column : kPanelColumns;
  ask_for_tile<Use::write>(call.y, call.y_type, call.y_stride, row, row + rows, column, columns);
  const Rows* const others[] = {&call.residual, &call.multiplier};
  for (const Rows* other : others) {
    if (other->data) ask_for_tile<Use::soon>(other->data, other->type, other->stride, row, row + rows, column, columns);
  }
}

// Up to so many bytes of weights stay in the second-level cache beside y: then a strip runs over all panels before the next one
// begins, which reads x once and writes rows of y whole.
inline int64_t weights_beside_rows() { return second_level_cache() / 8; }

// Computes `part` by blocks of rows. gather(row, rows, stride) gives a block of rows of x, in scratch memory at that stride or
// where they lie; ahead(begin, end) is told of rows that come next; into(rows of x, stride, w, steps, row, rows, panel, weights
// ahead) writes y from some rows and a panel, where it can; else finish(sums, block, begin, rows, panel) takes the sums [rows][32] of a panel
// and of the rows from block + begin on, `block` being the block's first row.
template <Step step, typename Gather, typename Ahead, typename Into, typename Finish>
SLIPSTREAM_INLINE void for_each_block(const LinearPart& part, int64_t k, const void* weight, int64_t panel_bytes,
                                      const Gather& gather, const Ahead& ahead, const Into& into,
                                      const Finish& finish) {
  const int64_t steps = (k + StepOf<step>::depth - 1) / StepOf<step>::depth;
  const int64_t block = block_rows_of<step>(k, part.m_end - part.m_begin);
  alignas(64) float sums[kStripRows * kPanelColumns];
  static_assert(kStripRows >= kFewRows * panels_together<step>(3) && kStripRows >= panels_together<step>(1), "sums hold several panels");
  const uint8_t* weights = static_cast<const uint8_t*>(weight);
  const bool by_rows = (part.panel_end - part.panel_begin) * panel_bytes <= weights_beside_rows();

  for (int64_t m = part.m_begin; m < part.m_end; m += block) {
    const int64_t rows = part.m_end - m < block ? part.m_end - m : block;
    const BlockOfX<step> x = gather(m, rows, x_stride_of<step>(k));
    // Strips of nearly equal size, so that there is no short last one: the first `more` of them have a row more than `least`.
    const int64_t strips = (rows + kRowsOf<step> - 1) / kRowsOf<step>, least = rows / strips, more = rows % strips;
    int64_t first = part.panel_begin;
    if (rows <= kFewRows) {
      const int together = panels_together<step>(static_cast<int>(rows));
      for (; first + together <= part.panel_end; first += together) {
        kFewRowStrips<step>[rows - 1](x.rows, x.stride, weights + first * panel_bytes, panel_bytes, steps, sums, false, {});
        for (int p = 0; p < together; ++p) finish(sums + p * rows * kPanelColumns, m, 0, rows, first + p);
      }
    }
    const int64_t panels = part.panel_end - first, share = panel_bytes / strips;
    const int64_t stride = steps > 0 ? share / steps : 0;
    for (int64_t i = 0; i < (by_rows ? strips : panels); ++i) {
      for (int64_t j = 0; j < (by_rows ? panels : strips); ++j) {
        const int64_t s = by_rows ? i : j, panel = first + (by_rows ? j : i), begin = s * least + (s < more ? s : more);
        const int64_t count = least + (s < more ? 1 : 0);
        if (by_rows && j == 0 && s + 1 < strips) ahead(m + begin + count, m + begin + 2 * count);
        const auto* at = x.rows + begin * x.stride;
        const uint8_t* w = weights + panel * panel_bytes;
        const int64_t next = panel + 1 < part.panel_end ? panel + 1 : m + block < part.m_end ? first : panel;
        const bool asks = !by_rows && next != panel;
        const WeightsAhead later = {asks ? weights + next * panel_bytes + s * share : w, asks ? stride : 0};
        if (into(at, x.stride, w, steps, m + begin, count, panel, later)) continue;
        Strips<step>::of[count - 1](at, x.stride, w, panel_bytes, steps, sums, false, later);
        finish(sums, m, begin, count, panel);
      }
    }
  }
}

// The bounds on the value that a post-op is, where it is nothing else and the sums can go from registers into y.
inline bool ends_in_bounds(const LinearCall& call, float& low, float& high) {
  low = call.post_op == PostOp::none ? -__builtin_inff() : 0.f;
  high = call.post_op == PostOp::relu6 ? 6.f : __builtin_inff();
  const bool residual_fits = !call.residual.data || call.residual_first || call.post_op == PostOp::none;
  return !call.multiplier.data && residual_fits &&
         (call.post_op == PostOp::none || call.post_op == PostOp::relu || call.post_op == PostOp::relu6);
}

// Sums of `rows` rows and `vectors` registers of columns through alpha, bias and residual, and between bounds, to
// y[row ...][column ...], straight from registers.
template <typename Y, int rows, int vectors>
SLIPSTREAM_INLINE void store_between(const LinearCall& call, Vec (&sums)[rows][vectors], int64_t row, int64_t column,
                                     float low_bound, float high_bound) {
  const Vec low = broadcast(low_bound), high = broadcast(high_bound);
  Y* y = static_cast<Y*>(call.y) + row * call.y_stride + column;
  const int64_t beside = row * call.residual.stride + column;
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const int64_t left = call.n - column - v * kWidth, count = left < kWidth ? left : kWidth;
    const bool whole = count == kWidth;
    auto element = [&](const void* data, ElementType type, int64_t index) {
      return whole ? load_element(data, type, index) : load_element_partly(data, type, index, count);
    };
    if (count <= 0) return;
    if (call.alpha != 1) {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) sums[r][v] = sums[r][v] * call.alpha;
    }
    if (call.bias) {
      const Vec bias = element(call.bias, call.bias_type, column + v * kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) sums[r][v] += bias;
    }
    if (call.residual.data) {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        sums[r][v] += element(call.residual.data, call.residual.type, beside + r * call.residual.stride + v * kWidth);
      }
    }
    if (whole) {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) store(y + r * call.y_stride + v * kWidth, at_most(at_least(sums[r][v], low), high));
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        store_first(y + r * call.y_stride + v * kWidth, count, at_most(at_least(sums[r][v], low), high));
      }
    }
  }
}

// y[row ...][column ...] of `rows` rows and `vectors` registers of columns.
template <Step step, int rows, int vectors, typename Y>
void strip_into(const LinearCall& call, const typename StepOf<step>::X* x, int64_t x_stride, const uint8_t* w, int64_t steps,
                int64_t row, int64_t column, float low_bound, float high_bound, const WeightsAhead& ahead) {
  typename StepOf<step>::Sum sums[rows][vectors] = {};
  AskForWeights ask(ahead);
  RowsByFours<typename StepOf<step>::X, rows> at(x, x_stride);
  for (const uint8_t* end = w + steps * kStepBytes; w < end; w += kStepBytes) {
    ask.step();
    multiply_step<step, rows>(sums, at, w);
    at.step(StepOf<step>::depth);
  }
  store_between<Y>(call, sums, row, column, low_bound, high_bound);
}

template <Step step>
using StripInto = void (*)(const LinearCall&, const typename StepOf<step>::X*, int64_t, const uint8_t*, int64_t, int64_t,
                           int64_t, float, float, const WeightsAhead&);

template <Step step, int vectors, typename Y, int... rows>
struct StripIntoTable {
  static constexpr StripInto<step> of[] = {strip_into<step, rows, vectors, Y>...};
};
#if SLIPSTREAM_WIDTH == 16
template <Step step, int vectors, typename Y>
using StripsInto = StripIntoTable<step, vectors, Y, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
#else
template <Step step, int vectors, typename Y>
using StripsInto = StripIntoTable<step, vectors, Y, 1, 2, 3, 4, 5, 6>;
#endif

// The columns of a panel that y has, strip by strip of them; one register of them where no more are left.
template <Step step, typename Y>
void panel_into(const LinearCall& call, const typename StepOf<step>::X* x, int64_t x_stride, const uint8_t* w, int64_t steps,
                int64_t row, int64_t rows, int64_t panel, float low, float high, const WeightsAhead& ahead) {
  const int64_t begin = panel * kPanelColumns, columns = call.n - begin < kPanelColumns ? call.n - begin : kPanelColumns;
  for (int64_t c = 0; c < columns; c += kStripColumns) {
    const auto kernel = columns - c > kWidth ? StripsInto<step, 2, Y>::of[rows - 1] : StripsInto<step, 1, Y>::of[rows - 1];
    kernel(call, x, x_stride, w + c * kColumnBytes, steps, row, begin + c, low, high, ahead);
  }
}

// `count` steps of the product of a block's rows and some panels, from `done` on: to `sums` [panel][row][32], or onto them.
template <Step step>
void multiply_deep(const LinearPart& block, const typename StepOf<step>::X* x, int64_t x_stride, const uint8_t* weights,
                   int64_t panel_bytes, int64_t done, int64_t count, float* sums) {
  const int64_t rows = block.m_end - block.m_begin, strips = (rows + kRowsOf<step> - 1) / kRowsOf<step>;
  for (int64_t panel = block.panel_begin; panel < block.panel_end; ++panel, sums += rows * kPanelColumns) {
    const uint8_t* w = weights + panel * panel_bytes + done * kStepBytes;
    const int64_t share = panel + 1 < block.panel_end ? count * kStepBytes / strips : 0;
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t begin = rows * s / strips, end = rows * (s + 1) / strips;
      const WeightsAhead later = {share ? w + panel_bytes + s * share : w, share / count};
      Strips<step>::of[end - begin - 1](x + begin * x_stride, x_stride, w, panel_bytes, count, sums + begin * kPanelColumns,
                                        done > 0, later);
    }
  }
}

template <Step step>
void deep_linear(const LinearCall& call, const LinearPart& part, const DeepPlan& plan, int64_t panel_bytes, void* scratch) {
  using X = typename StepOf<step>::X;
  constexpr int64_t depth = StepOf<step>::depth;
  X* x = static_cast<X*>(scratch);
  float* sums = reinterpret_cast<float*>(static_cast<char*>(scratch) + plan.x_bytes);
  const int64_t steps = (call.k + depth - 1) / depth, element = call.x.type == ElementType::float32 ? 4 : 2;
  LinearPart block;
  for (block.m_begin = part.m_begin; block.m_begin < part.m_end; block.m_begin = block.m_end) {
    block.m_end = part.m_end - block.m_begin < plan.rows ? part.m_end : block.m_begin + plan.rows;
    const int64_t rows = block.m_end - block.m_begin;
    for (block.panel_begin = part.panel_begin; block.panel_begin < part.panel_end; block.panel_begin = block.panel_end) {
      const int64_t left = part.panel_end - block.panel_begin;
      block.panel_end = block.panel_begin + (left < plan.panels ? left : plan.panels);
      for (int64_t done = 0; done < steps; done += kStepsAtOnce) {
        LinearCall piece = call;
        piece.x.data = static_cast<const char*>(call.x.data) + done * depth * element;
        const bool last = steps - done <= kStepsAtOnce;
        piece.k = last ? call.k - done * depth : kStepsAtOnce * depth;
        gather_rows(piece, block.m_begin, rows, x, plan.x_stride);
        multiply_deep<step>(block, x, plan.x_stride, static_cast<const uint8_t*>(call.weight), panel_bytes, done,
                            last ? steps - done : kStepsAtOnce, sums);
      }
      for (int64_t panel = block.panel_begin; panel < block.panel_end; ++panel) {
        const float* of_panel = sums + (panel - block.panel_begin) * rows * kPanelColumns;
        finish_tile(call, of_panel, kPanelColumns, block.m_begin, rows, panel * kPanelColumns);
      }
    }
  }
}

template <Step step>
void vector_linear(const LinearCall& call, const LinearPart& part, void* scratch) {
  using X = typename StepOf<step>::X;
  const int64_t panel_bytes = panel_size(call.weight_type, call.k) * (call.weight_type == ElementType::float32 ? 4 : 2);
  const DeepPlan deep = deep_plan<step>(call, part);
  if (deep.deep) return deep_linear<step>(call, part, deep, panel_bytes, scratch);
  const bool in_place = reads_in_place<step>(call, part);
  const int64_t x_bytes = call.x.stride * static_cast<int64_t>(sizeof(X));
  const bool far = (part.m_end - part.m_begin) * x_bytes > block_bytes();
  float low, high;
  const bool bounded = ends_in_bounds(call, low, high) && call.k <= kMostSteps<step> * StepOf<step>::depth;
  for_each_block<step>(
      part, call.k, call.weight, panel_bytes,
      [&](int64_t row, int64_t rows, int64_t stride) {
        if (in_place) return BlockOfX<step>{static_cast<const X*>(call.x.data) + row * call.x.stride, call.x.stride};
        gather_rows(call, row, rows, static_cast<X*>(scratch), stride);
        return BlockOfX<step>{static_cast<const X*>(scratch), stride};
      },
      [&](int64_t begin, int64_t end) {
        if (in_place && far) ask_for_rows<Use::later>(call.x.data, begin, end, x_bytes);
      },
      [&](const X* x, int64_t stride, const uint8_t* w, int64_t steps, int64_t row, int64_t rows, int64_t panel,
          const WeightsAhead& ahead) {
        ask_for_y(call, steps, row, rows, panel);
        if (!bounded) return false;
        const auto kernel = call.y_type == ElementType::float32 ? panel_into<step, float> : panel_into<step, uint16_t>;
        kernel(call, x, stride, w, steps, row, rows, panel, low, high, ahead);
        return true;
      },
      [&](float* sums, int64_t block, int64_t begin, int64_t rows, int64_t panel) {
        finish_tile(call, sums, kPanelColumns, block + begin, rows, panel * kPanelColumns);
      });
}

#ifdef SLIPSTREAM_DOT_BF16
constexpr Step kBf16Step = Step::dot_bf16;
#else
constexpr Step kBf16Step = Step::widen_bf16;
#endif

inline size_t linear_scratch(const LinearCall& call, const LinearPart& part) {
  return call.weight_type == ElementType::bfloat16 ? vector_scratch<kBf16Step>(call, part)
                                                   : vector_scratch<Step::float32>(call, part);
}

inline void linear(const LinearCall& call, const LinearPart& part, void* scratch) {
  call.weight_type == ElementType::bfloat16 ? vector_linear<kBf16Step>(call, part, scratch)
                                            : vector_linear<Step::float32>(call, part, scratch);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
