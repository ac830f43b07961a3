// SPDX-License-Identifier: Apache-2.0
// Direct convolution, channels last, on vector registers: linear's strips, whose sums stay in registers over all taps. How
// rows of the product are found: kernels/convolution_last_image.h. Needs kernels/linear_vector.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

constexpr Cut kStripCut = {kStripRows, 1};

// A run of depth: where it begins in the image, from an output's place on, and in a panel, in bytes; steps of multiply-adds.
struct DepthRun {
  int64_t x, weight, steps;
};

// A cache line of a place is 16 steps of two multiply-adds by a panel; copying it takes about two cycles.
constexpr int64_t kLineProduct = 16;

// Runs of all taps, none longer than a running sum may be.
template <Step step>
int64_t runs_of_a_tap(const LastImage& image) {
  const int64_t steps = (image.depth + StepOf<step>::depth - 1) / StepOf<step>::depth;
  return (steps + kMostSteps<step> - 1) / kMostSteps<step>;
}

template <Step step>
int64_t find_depth(const ConvolutionLastCall& call, const LastImage& image, DepthRun* runs) {
  constexpr int64_t depth = StepOf<step>::depth;
  const int64_t steps = (image.depth + depth - 1) / depth, pieces = runs_of_a_tap<step>(image);
  int64_t found = 0;
  for (int64_t row = 0; row < call.kernel_height; ++row) {
    for (int64_t column = 0; column < call.kernel_width; column += image.across) {
      const int64_t x = tap_offset(call, image, row, column);
      const int64_t weight = row * call.row_bytes() + column * call.in_channels / depth * kStepBytes;
      for (int64_t p = 0; p < pieces; ++p) {
        const int64_t first = steps * p / pieces, last = steps * (p + 1) / pieces;
        runs[found++] = {x + first * depth, weight + first * kStepBytes, last - first};
      }
    }
  }
  return found;
}

// sums[rows][32] = the product of `rows` outputs and a panel.
template <Step step, int rows>
void strip_of_runs(const typename StepOf<step>::X* x, int64_t x_stride, const uint8_t* w, const DepthRun* runs, int64_t count,
                   float* out) {
  for (int64_t column = 0; column < kPanelColumns; column += kStripColumns) {
    int64_t run = 0;
    do {
      const bool first = run == 0;
      typename StepOf<step>::Sum sums[rows][kStripVectors] = {};
      int64_t done = 0;
      do {
        RowsByFours<typename StepOf<step>::X, rows> from(x + runs[run].x, x_stride);
        const uint8_t* weight = w + column * kColumnBytes + runs[run].weight;
        for (int64_t s = 0; s < runs[run].steps; ++s, from.step(StepOf<step>::depth)) {
          multiply_step<step, rows>(sums, from, weight + s * kStepBytes);
        }
        done += runs[run].steps;
        ++run;
      } while (run < count && done + runs[run].steps <= kMostSteps<step>);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kStripVectors; ++v) {
          float* to = out + r * kPanelColumns + column + v * kWidth;
          const Vec sum = stored_sum<step>(sums[r][v]);
          store(to, first ? sum : sum + load(to));
        }
      }
    } while (run < count);
  }
}

template <Step step>
using StripOfRuns = void (*)(const typename StepOf<step>::X*, int64_t, const uint8_t*, const DepthRun*, int64_t, float*);
template <Step step, int... rows>
struct StripOfRunsTable {
  static constexpr StripOfRuns<step> of[] = {strip_of_runs<step, rows>...};
};
#if SLIPSTREAM_WIDTH == 16
template <Step step>
using StripsOfRuns = StripOfRunsTable<step, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
#else
template <Step step>
using StripsOfRuns = StripOfRunsTable<step, 1, 2, 3, 4, 5, 6>;
#endif

template <Step step>
struct LastPlan {
  using X = typename StepOf<step>::X;
  LastImage image;
  LastScratch scratch;

  LastPlan(const ConvolutionLastCall& call, const LinearPart& part)
      : image(last_image<X>(call, part.m_end - part.m_begin, block_bytes(), kLineProduct)) {
    const int64_t runs = call.taps() / image.across * runs_of_a_tap<step>(image);
    scratch = last_scratch<X>(call, image, kStripCut, kStripRows * kPanelColumns, 3 * runs);
  }
};

template <Step step>
void convolve_last(const ConvolutionLastCall& call, const LinearPart& part, void* scratch) {
  using X = typename StepOf<step>::X;
  const LastPlan<step> plan(call, part);
  char* memory = static_cast<char*>(scratch);
  float* sums = reinterpret_cast<float*>(memory + plan.scratch.sums);
  DepthRun* runs = reinterpret_cast<DepthRun*>(memory + plan.scratch.products);
  const int64_t count = find_depth<step>(call, plan.image, runs);
  const uint8_t* weight = static_cast<const uint8_t*>(call.linear.weight);
  for_each_block_of_rows<X>(
      call, plan.image, plan.scratch, kStripCut, part.m_begin, part.m_end, scratch,
      [&](const Stretch<X>* stretches, int64_t stretch_count) {
        for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel) {
          const uint8_t* w = weight + panel * call.panel_bytes();
          for (int64_t s = 0; s < stretch_count; ++s) {
            const Stretch<X>& stretch = stretches[s];
            StripsOfRuns<step>::of[stretch.count - 1](stretch.x, plan.image.position, w, runs, count, sums);
            if constexpr (kPutsBack<step>) {
              float back[kStripRows];
              const float of_image = back_of_image<step>(call.scales, stretch.pixel / (call.out_height * call.out_width));
              for (float& of_row : back) of_row = of_image;
              put_back(sums, stretch.count, back, back_of_columns(call, panel));
            }
            finish_stretch(call, plan.image, stretch, sums, panel);
          }
        }
      });
}

template <Step step>
size_t scratch_of(const ConvolutionLastCall& call, const LinearPart& part) {
  const int64_t bytes = reads_lines<step>(call) ? LinesPlan<step>(call).bytes : LastPlan<step>(call, part).scratch.bytes;
  return static_cast<size_t>(bytes);
}

template <Step step>
void lines_or_images(const ConvolutionLastCall& call, const LinearPart& part, void* scratch) {
  reads_lines<step>(call) ? convolve_lines<step>(call, part, scratch) : convolve_last<step>(call, part, scratch);
}

// Rows of y are the part's rows here: out_height of each image.
inline size_t convolution_last_scratch(const ConvolutionLastCall& call, const LinearPart& part) {
  return call.linear.weight_type == ElementType::bfloat16 ? scratch_of<kBf16Step>(call, part)
                                                          : scratch_of<Step::float32>(call, part);
}

inline void convolution_last(const ConvolutionLastCall& call, const LinearPart& part, void* scratch) {
  call.linear.weight_type == ElementType::bfloat16 ? lines_or_images<kBf16Step>(call, part, scratch)
                                                   : lines_or_images<Step::float32>(call, part, scratch);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
