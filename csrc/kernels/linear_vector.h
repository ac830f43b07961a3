// SPDX-License-Identifier: Apache-2.0
// Linear on vector registers. A thread's part of y is cut into blocks of rows whose copy of x stays in the second-level
// cache; each panel of the weight is then streamed once a block, and strips of a few rows run over the whole depth, so that
// sums never leave registers before they are finished. Needs kernels/linear_finish.h.
//
// A level says how one step of depth is multiplied, by defining before it includes this:
//   SLIPSTREAM_DOT_BF16   vdpbf16ps: x is rounded to bfloat16, two k a step
// Without it bfloat16 weights are widened in registers and x stays float32. How int8 is multiplied: simd/dot_int8.h, which this
// needs too; what is int8's own beside that step: kernels/linear_int8.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Registers: rows x kStripVectors sums, the weight's vectors of one step and one broadcast.
//   512 bits, 32 registers: 12 x 2 + 2 + 1 (widened bfloat16: + 2)
//   256 bits, 16 registers:  6 x 2 + 2 + 1; 128 bits likewise
constexpr int kStripVectors = 2;
constexpr int kStripRows = kWidth == 16 ? 12 : 6;
constexpr int kStripColumns = kStripVectors * kWidth;
static_assert(kPanelColumns % kStripColumns == 0, "a panel is a whole number of strips");

// Half of a 1 MiB second-level cache for x; a panel and y's lines take the rest.
constexpr int64_t kBlockBytes = 512 * 1024;

enum class Step { dot_bf16, widen_bf16, widen_both, float32, int8 };  // widen_both: x is kept in bfloat16 too

// Elements of x that one step of depth takes, the type in which x is kept in scratch memory, and that of the sums.
template <Step step>
struct StepOf {
  static constexpr int64_t depth = step == Step::float32 ? 1 : 2;
  using X = float;
  using Sum = Vec;
};
template <>
struct StepOf<Step::dot_bf16> {
  static constexpr int64_t depth = 2;
  using X = uint16_t;
  using Sum = Vec;
};
template <>
struct StepOf<Step::widen_both> {
  static constexpr int64_t depth = 2;
  using X = uint16_t;
  using Sum = Vec;
};
template <>
struct StepOf<Step::int8> {
  static constexpr int64_t depth = 4;
  using X = QuantizedX;
  using Sum = VecI;
};

// Rows of a strip. Where int8 is multiplied in two halves, the halves of the weights need registers: 4 x 2 + 4 + 2 of 16.
template <Step step>
constexpr int kRowsOf = step == Step::int8 && !kDotInt8 && kWidth < 16 ? 4 : kStripRows;

// One step: sums[r][v] += x[r][k ...] * w[k ...][v]. w points at this step's kPanelColumns * depth elements.
template <Step step, int rows>
SLIPSTREAM_INLINE void multiply_step(typename StepOf<step>::Sum (&sums)[rows][kStripVectors],
                                     const typename StepOf<step>::X* x, int64_t x_stride, const void* w) {
  if constexpr (step == Step::int8) {
    WeightsInt8 weights[kStripVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kStripVectors; ++v) weights[v] = load_int8(static_cast<const uint32_t*>(w) + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const FourOfX four = broadcast_four(x + r * x_stride);
#pragma GCC unroll 4
      for (int v = 0; v < kStripVectors; ++v) sums[r][v] = dot_int8(sums[r][v], four, weights[v]);
    }
  } else if constexpr (step == Step::dot_bf16) {
#ifdef SLIPSTREAM_DOT_BF16
    VecU weights[kStripVectors];
    for (int v = 0; v < kStripVectors; ++v) weights[v] = load_words(static_cast<const uint32_t*>(w) + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      uint32_t pair;
      __builtin_memcpy(&pair, x + r * x_stride, sizeof pair);
      const VecU pairs = pair - VecU{};
#pragma GCC unroll 4
      for (int v = 0; v < kStripVectors; ++v) sums[r][v] = dot_bf16(sums[r][v], pairs, weights[v]);
    }
#endif
  } else if constexpr (step == Step::widen_bf16 || step == Step::widen_both) {
    Vec first[kStripVectors], second[kStripVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kStripVectors; ++v) {
      const VecU pairs = load_words(static_cast<const uint32_t*>(w) + v * kWidth);
      first[v] = reinterpret_cast<Vec>(pairs << 16);
      second[v] = reinterpret_cast<Vec>(pairs & 0xffff0000u);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      Vec x0, x1;
      if constexpr (step == Step::widen_both) {
        uint32_t pair;
        __builtin_memcpy(&pair, x + r * x_stride, sizeof pair);
        const VecU pairs = pair - VecU{};
        x0 = reinterpret_cast<Vec>(pairs << 16);
        x1 = reinterpret_cast<Vec>(pairs & 0xffff0000u);
      } else {
        x0 = broadcast(x[r * x_stride]);
        x1 = broadcast(x[r * x_stride + 1]);
      }
#pragma GCC unroll 4
      for (int v = 0; v < kStripVectors; ++v) sums[r][v] += x0 * first[v];
#pragma GCC unroll 4
      for (int v = 0; v < kStripVectors; ++v) sums[r][v] += x1 * second[v];
    }
  } else {
    Vec weights[kStripVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kStripVectors; ++v) weights[v] = load(static_cast<const float*>(w) + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec x0 = broadcast(x[r * x_stride]);
#pragma GCC unroll 4
      for (int v = 0; v < kStripVectors; ++v) sums[r][v] += x0 * weights[v];
    }
  }
}

// Bytes of weight that one step takes for a column (a float, a pair of bfloat16, four int8), and for the whole panel.
constexpr int64_t kColumnBytes = 4;
constexpr int64_t kStepBytes = kPanelColumns * kColumnBytes;

// A running sum's rounding error grows with its length; sums of this many steps are added up pairwise into y, which holds a
// float32 product of depth 4096 at the error of torch's own (measured: 3e-7 against 1.1e-6 for one running sum). Sums of
// integers have none, and are one sum up to the deepest that there is (32768, four a step).
constexpr int64_t kStepsPerSum = 512;
template <Step step>
constexpr int64_t kMostSteps = step == Step::int8 ? 8192 : kStepsPerSum;

// A multiply-add takes 4 to 6 cycles and two can start a cycle, so 8 sums must be in flight. Up to three rows are multiplied by
// several panels at once for that. (Splitting the depth instead would make a row's last bits depend on how many rows are
// computed beside it; as it is, they depend on nothing but the row.)
constexpr int kFewRows = 3;
constexpr int panels_together(int rows) { return rows == 1 ? 4 : rows <= kFewRows ? 2 : 1; }

// sums[panels][rows][32] (one strip of columns of it) = or += x[rows][k] . panels over at most kMostSteps. Integer sums
// are stored as they are, in the floats' place.
template <Step step, int rows, int panels>
SLIPSTREAM_INLINE void strip_part(const typename StepOf<step>::X* x, int64_t x_stride, const uint8_t* w, int64_t panel_bytes,
                                  int64_t steps, float* out, bool first) {
  typename StepOf<step>::Sum sums[panels][rows][kStripVectors] = {};
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 4
    for (int p = 0; p < panels; ++p) {
      multiply_step<step, rows>(sums[p], x + s * StepOf<step>::depth, x_stride, w + p * panel_bytes + s * kStepBytes);
    }
  }
  // Unrolled, so that the sums are registers to the end and never an array in memory.
#pragma GCC unroll 4
  for (int p = 0; p < panels; ++p) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kStripVectors; ++v) {
        float* to = out + (p * rows + r) * kPanelColumns + v * kWidth;
        const Vec sum = reinterpret_cast<Vec>(sums[p][r][v]);
        store(to, first ? sum : sum + load(to));
      }
    }
  }
}

template <Step step, int rows, int panels>
void strip(const typename StepOf<step>::X* x, int64_t x_stride, const uint8_t* w, int64_t panel_bytes, int64_t steps,
           float* out) {
  for (int64_t column = 0; column < kPanelColumns; column += kStripColumns) {
    int64_t done = 0;
    do {
      const int64_t part = steps - done < kMostSteps<step> ? steps - done : kMostSteps<step>;
      strip_part<step, rows, panels>(x + done * StepOf<step>::depth, x_stride, w + column * kColumnBytes + done * kStepBytes,
                                     panel_bytes, part, out + column, done == 0);
      done += part;
    } while (done < steps);
  }
}

template <Step step>
using Strip = void (*)(const typename StepOf<step>::X*, int64_t, const uint8_t*, int64_t, int64_t, float*);

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
constexpr Strip<step> kFewRowStrips[] = {strip<step, 1, panels_together(1)>, strip<step, 2, panels_together(2)>,
                                         strip<step, 3, panels_together(3)>};

// Copies rows of x into scratch memory in the step's own type, zero-padded to `depth`.
template <typename To>
void gather_rows(const LinearCall& call, int64_t begin, int64_t rows, To* to, int64_t stride, int64_t depth) {
  for (int64_t i = 0; i < rows; ++i) {
    To* line = to + i * stride;
    const int64_t from = (begin + i) * call.x.stride;
    int64_t k = 0;
    for (; k + kWidth <= call.k; k += kWidth) store(line + k, load_element(call.x.data, call.x.type, from + k));
    if (k < call.k) {
      const Vec rest = load_element_partly(call.x.data, call.x.type, from + k, call.k - k);
      for (int64_t j = k; j < call.k; ++j) {
        To lanes[kWidth];
        store(lanes, rest);
        line[j] = lanes[j - k];
      }
    }
    for (k = call.k; k < depth; ++k) line[k] = To{};
  }
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
  int64_t block = kBlockBytes / row_bytes / kRowsOf<step> * kRowsOf<step>;
  if (block < kRowsOf<step>) block = kRowsOf<step>;
  if (rows <= block) return rows;
  const int64_t blocks = (rows + block - 1) / block;  // blocks of nearly equal size
  return round_up((rows + blocks - 1) / blocks, kRowsOf<step>);
}

template <Step step>
size_t vector_scratch(const LinearCall& call, const LinearPart& part) {
  const int64_t rows = block_rows_of<step>(call.k, part.m_end - part.m_begin);
  return static_cast<size_t>(rows * x_stride_of<step>(call.k)) * sizeof(typename StepOf<step>::X) + 64;
}

// Computes `part` by blocks of rows. gather(row, rows, x, stride, depth) copies a block of rows of x into scratch memory;
// finish(sums, block, begin, rows, panel) takes the sums [rows][32] of a panel and of the rows from block + begin on, `block`
// being the block's first row.
template <Step step, typename Gather, typename Finish>
SLIPSTREAM_INLINE void for_each_block(const LinearPart& part, int64_t k, const void* weight, int64_t panel_bytes,
                                      typename StepOf<step>::X* x, const Gather& gather, const Finish& finish) {
  const int64_t stride = x_stride_of<step>(k);
  const int64_t steps = (k + StepOf<step>::depth - 1) / StepOf<step>::depth;
  const int64_t block = block_rows_of<step>(k, part.m_end - part.m_begin);
  alignas(64) float sums[kStripRows * kPanelColumns];
  static_assert(kStripRows >= kFewRows * panels_together(2) && kStripRows >= panels_together(1), "sums hold several panels");

  for (int64_t m = part.m_begin; m < part.m_end; m += block) {
    const int64_t rows = part.m_end - m < block ? part.m_end - m : block;
    gather(m, rows, x, stride, steps * StepOf<step>::depth);
    const int64_t strips = (rows + kRowsOf<step> - 1) / kRowsOf<step>;
    int64_t panel = part.panel_begin;
    const uint8_t* w = static_cast<const uint8_t*>(weight) + panel * panel_bytes;
    if (rows <= kFewRows) {
      const int together = panels_together(static_cast<int>(rows));
      for (; panel + together <= part.panel_end; panel += together, w += together * panel_bytes) {
        kFewRowStrips<step>[rows - 1](x, stride, w, panel_bytes, steps, sums);
        for (int p = 0; p < together; ++p) finish(sums + p * rows * kPanelColumns, m, 0, rows, panel + p);
      }
    }
    for (; panel < part.panel_end; ++panel, w += panel_bytes) {
      for (int64_t s = 0; s < strips; ++s) {
        const int64_t begin = rows * s / strips, end = rows * (s + 1) / strips;  // nearly equal strips: no short last one
        Strips<step>::of[end - begin - 1](x + begin * stride, stride, w, panel_bytes, steps, sums);
        finish(sums, m, begin, end - begin, panel);
      }
    }
  }
}

template <Step step>
void vector_linear(const LinearCall& call, const LinearPart& part, void* scratch) {
  using X = typename StepOf<step>::X;
  const int64_t panel_bytes = panel_size(call.weight_type, call.k) * (call.weight_type == ElementType::float32 ? 4 : 2);
  for_each_block<step>(
      part, call.k, call.weight, panel_bytes, static_cast<X*>(scratch),
      [&](int64_t row, int64_t rows, X* x, int64_t stride, int64_t depth) { gather_rows(call, row, rows, x, stride, depth); },
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
