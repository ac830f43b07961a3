// SPDX-License-Identifier: Apache-2.0
// Linear on vector registers. A thread's part of y is cut into blocks of rows whose copy of x stays in the second-level
// cache; each panel of the weight is then streamed once a block, and strips of a few rows run over the whole depth, so that
// sums never leave registers before they are finished. Needs kernels/linear_finish.h.
//
// A level says how one step of depth is multiplied, by defining before it includes this:
//   SLIPSTREAM_DOT_BF16   vdpbf16ps: x is rounded to bfloat16, two k a step
// Without it bfloat16 weights are widened in registers and x stays float32.

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

enum class Step { dot_bf16, widen_bf16, float32 };

// Elements of x that one step of depth takes, and the type in which x is kept in scratch memory.
template <Step step>
struct StepOf {
  static constexpr int64_t depth = step == Step::float32 ? 1 : 2;
  using X = float;
};
#ifdef SLIPSTREAM_DOT_BF16
template <>
struct StepOf<Step::dot_bf16> {
  static constexpr int64_t depth = 2;
  using X = uint16_t;
};
#endif

// One step: sums[r][v] += x[r][k ...] * w[k ...][v]. w points at this step's kPanelColumns * depth elements.
template <Step step, int rows>
SLIPSTREAM_INLINE void multiply_step(Vec (&sums)[rows][kStripVectors], const typename StepOf<step>::X* x, int64_t x_stride,
                                     const void* w) {
  if constexpr (step == Step::dot_bf16) {
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
  } else if constexpr (step == Step::widen_bf16) {
    Vec first[kStripVectors], second[kStripVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kStripVectors; ++v) {
      const VecU pairs = load_words(static_cast<const uint32_t*>(w) + v * kWidth);
      first[v] = reinterpret_cast<Vec>(pairs << 16);
      second[v] = reinterpret_cast<Vec>(pairs & 0xffff0000u);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec x0 = broadcast(x[r * x_stride]), x1 = broadcast(x[r * x_stride + 1]);
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

// Bytes of weight that one step takes for a column (a float, or a pair of bfloat16), and for the whole panel.
constexpr int64_t kColumnBytes = 4;
constexpr int64_t kStepBytes = kPanelColumns * kColumnBytes;

// sums[rows][32] (one strip of columns of it) = x[rows][k] . panel. Few rows keep too few sums in flight to hide the latency
// of a multiply-add (4 to 6 cycles, two a cycle), so the depth is split over `chains` independent sets of sums.
template <Step step, int rows>
void strip(const typename StepOf<step>::X* x, int64_t x_stride, const uint8_t* w, int64_t steps, float* out) {
  constexpr int chains = rows >= 4 ? 1 : rows >= 2 ? 2 : 4;
  constexpr int64_t depth = StepOf<step>::depth;
  Vec sums[chains][rows][kStripVectors] = {};
  int64_t s = 0;
  for (; s + chains <= steps; s += chains) {
#pragma GCC unroll 4
    for (int c = 0; c < chains; ++c) {
      multiply_step<step, rows>(sums[c], x + (s + c) * depth, x_stride, w + (s + c) * kStepBytes);
    }
  }
  for (; s < steps; ++s) multiply_step<step, rows>(sums[0], x + s * depth, x_stride, w + s * kStepBytes);
  // Unrolled, so that the sums are registers to the end and never an array in memory.
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kStripVectors; ++v) {
      Vec total = sums[0][r][v];
#pragma GCC unroll 4
      for (int c = 1; c < chains; ++c) total += sums[c][r][v];
      store(out + r * kPanelColumns + v * kWidth, total);
    }
  }
}

template <Step step>
using Strip = void (*)(const typename StepOf<step>::X*, int64_t, const uint8_t*, int64_t, float*);

template <Step step, int... rows>
struct StripTable {
  static constexpr Strip<step> of[] = {strip<step, rows>...};
};
#if SLIPSTREAM_WIDTH == 16
template <Step step>
using Strips = StripTable<step, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
#else
template <Step step>
using Strips = StripTable<step, 1, 2, 3, 4, 5, 6>;
#endif

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
  const int64_t lines = (k + 1 + line - 1) / line;
  return (lines | 1) * line;
}

template <Step step>
int64_t block_rows_of(int64_t k, int64_t rows) {
  const int64_t row_bytes = x_stride_of<step>(k) * static_cast<int64_t>(sizeof(typename StepOf<step>::X));
  int64_t block = kBlockBytes / row_bytes / kStripRows * kStripRows;
  if (block < kStripRows) block = kStripRows;
  if (rows <= block) return rows;
  const int64_t blocks = (rows + block - 1) / block;  // blocks of nearly equal size
  return round_up((rows + blocks - 1) / blocks, kStripRows);
}

template <Step step>
size_t vector_scratch(const LinearCall& call, const LinearPart& part) {
  const int64_t rows = block_rows_of<step>(call.k, part.m_end - part.m_begin);
  return static_cast<size_t>(rows * x_stride_of<step>(call.k)) * sizeof(typename StepOf<step>::X) + 64;
}

template <Step step>
void vector_linear(const LinearCall& call, const LinearPart& part, void* scratch) {
  using X = typename StepOf<step>::X;
  X* x = static_cast<X*>(scratch);
  const int64_t stride = x_stride_of<step>(call.k);
  const int64_t steps = (call.k + StepOf<step>::depth - 1) / StepOf<step>::depth;
  const int64_t panel_bytes = panel_size(call.weight_type, call.k) * (call.weight_type == ElementType::float32 ? 4 : 2);
  const int64_t block = block_rows_of<step>(call.k, part.m_end - part.m_begin);
  alignas(64) float sums[kStripRows * kPanelColumns];

  for (int64_t m = part.m_begin; m < part.m_end; m += block) {
    const int64_t rows = part.m_end - m < block ? part.m_end - m : block;
    gather_rows(call, m, rows, x, stride, steps * StepOf<step>::depth);
    const int64_t strips = (rows + kStripRows - 1) / kStripRows;
    for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel) {
      const uint8_t* w = static_cast<const uint8_t*>(call.weight) + panel * panel_bytes;
      for (int64_t s = 0; s < strips; ++s) {
        const int64_t begin = rows * s / strips, end = rows * (s + 1) / strips;  // nearly equal strips: no short last one
        for (int64_t c = 0; c < kPanelColumns; c += kStripColumns) {
          Strips<step>::of[end - begin - 1](x + begin * stride, stride, w + c * kColumnBytes, steps, sums + c);
        }
        finish_tile(call, sums, kPanelColumns, m + begin, end - begin, panel * kPanelColumns);
      }
    }
  }
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
