// SPDX-License-Identifier: Apache-2.0
// Linear with weights packed in scaled columns, as float16 (kernels/half_operands.h) or as 16-bit integers (kernels/int16_operands.h).
// Blocks of rows and strips are those of kernels/linear_vector.h; rows of x are scaled on their way into scratch memory. Rows that do
// not fit are multiplied by the widened weights. Needs one of those operands.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// How weights that a step multiplies scaled are multiplied else, and what rows that are not scaled are put back by then.
template <Step step>
struct Widened;
template <>
struct Widened<Step::int16> {
  static constexpr Step step = Step::widen_int16;
  static constexpr float back = 1;
  static constexpr ElementType type = ElementType::int16;
};
#ifdef SLIPSTREAM_HALF
template <>
struct Widened<Step::half> {
  static constexpr Step step = Step::widen_half;
  static constexpr float back = kWidenedBack;
  static constexpr ElementType type = ElementType::float16;
};
#endif

// Rows that did not fit are multiplied so many at a time.
constexpr int64_t kMisfitsTogether = 2 * kStripRows;

// Rows of a block, and the rest in bytes: where what lies in scratch memory behind x begins, and all of it.
template <Step step>
struct ScaledPlan {
  int64_t rows, back, misfits, widened, bytes;

  ScaledPlan(const LinearCall& call, const LinearPart& part) {
    rows = block_rows_of<step>(call.k, part.m_end - part.m_begin);
    back = round_up(rows * x_stride_of<step>(call.k) * static_cast<int64_t>(sizeof(typename StepOf<step>::X)), 64);
    misfits = back + round_up(rows * 4, 64);
    widened = misfits + round_up(rows * 8, 64);
    bytes = widened + (rows < kMisfitsTogether ? rows : kMisfitsTogether) * x_stride_of<Widened<step>::step>(call.k) * 4 + 64;
  }
};

// What a strip's products are put back by, and bounds on what goes into y.
struct ScaledEnd {
  const float *back_rows, *back_columns;
  float low, high;
};

// y[row ...][column ...] of `rows` rows and `vectors` registers of a panel's columns, straight from registers; sums of all parts but
// the last wait in `sums`.
template <Step step, int rows, int vectors, typename Y>
void scaled_strip_into(const LinearCall& call, const typename StepOf<step>::X* x, int64_t x_stride, const uint8_t* w, int64_t steps,
                       int64_t row, int64_t column, const ScaledEnd& end, float* sums, const WeightsAhead& ahead) {
  constexpr int64_t most = kMostSteps<step>, depth = StepOf<step>::depth;
  int64_t done = 0;
  for (; steps - done > most; done += most) {
    strip_part<step, rows, 1>(x + done * depth, x_stride, w + done * kStepBytes, 0, most, sums, done == 0,
                              {ahead.at + done * ahead.stride, ahead.stride});
  }
  typename StepOf<step>::Sum last[rows][vectors] = {};
  AskForWeights ask({ahead.at + done * ahead.stride, ahead.stride});
  RowsByFours<typename StepOf<step>::X, rows> at(x + done * depth, x_stride);
  w += done * kStepBytes;
  for (const uint8_t* stop = w + (steps - done) * kStepBytes; w < stop; w += kStepBytes) {
    ask.step();
    multiply_step<step, rows>(last, at, w);
    at.step(depth);
  }
  Vec all[rows][vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const Vec back = load(end.back_columns + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec part = stored_sum<step>(last[r][v]);
      all[r][v] = (done == 0 ? part : part + load(sums + r * kPanelColumns + v * kWidth)) * back * end.back_rows[r];
    }
  }
  store_between<Y>(call, all, row, column, end.low, end.high);
}

template <Step step>
using ScaledStripInto = void (*)(const LinearCall&, const typename StepOf<step>::X*, int64_t, const uint8_t*, int64_t, int64_t,
                                 int64_t, const ScaledEnd&, float*, const WeightsAhead&);
template <Step step, int vectors, typename Y, int... rows>
struct ScaledStripIntoTable {
  static constexpr ScaledStripInto<step> of[] = {scaled_strip_into<step, rows, vectors, Y>...};
};
#if SLIPSTREAM_WIDTH == 16
template <Step step, int vectors, typename Y>
using ScaledStripsInto = ScaledStripIntoTable<step, vectors, Y, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
#else
template <Step step, int vectors, typename Y>
using ScaledStripsInto = ScaledStripIntoTable<step, vectors, Y, 1, 2, 3, 4, 5, 6>;
#endif

template <Step step>
class ScaledLinear {
 public:
  using X = typename StepOf<step>::X;

  ScaledLinear(const LinearCall& call, const LinearPart& part, void* scratch)
      : call_(call), part_(part), panel_bytes_(panel_size(Widened<step>::type, call.k) * 2), x_(static_cast<X*>(scratch)) {
    const ScaledPlan<step> plan(call, part);
    char* bytes = static_cast<char*>(scratch);
    back_ = reinterpret_cast<float*>(bytes + plan.back);
    misfits_ = reinterpret_cast<int64_t*>(bytes + plan.misfits);
    widened_ = reinterpret_cast<float*>(bytes + plan.widened);
  }

  void run() {
    alignas(64) float waiting[kStripRows * kPanelColumns];
    float low, high;
    const bool bounded = ends_in_bounds(call_, low, high);
    for_each_block<step>(
        part_, call_.k, call_.weight, panel_bytes_,
        [&](int64_t row, int64_t rows, int64_t stride) {
          widen_misfits();
          first_ = row;
          for (int64_t r = 0; r < rows; ++r) {
            back_[r] = fit_row(call_.x, row + r, call_.k, x_ + r * stride);
            if (back_[r] == 0) misfits_[misfit_count_++] = row + r;
          }
          return BlockOfX<step>{x_, stride};
        },
        [](int64_t, int64_t) {},
        [&](const X* x, int64_t stride, const uint8_t* w, int64_t steps, int64_t row, int64_t rows, int64_t panel,
            const WeightsAhead& ahead) {
          ask_for_y(call_, steps, row, rows, panel);
          if (!bounded) return false;
          const bool floats = call_.y_type == ElementType::float32;
          const int64_t begin = panel * kPanelColumns, columns = call_.n - begin < kPanelColumns ? call_.n - begin : kPanelColumns;
          for (int64_t c = 0; c < columns; c += kStripColumns) {
            const ScaledEnd end = {back_ + row - first_, back_of(panel) + c, low, high};
            const auto* strips = floats ? strips_of<float>(columns - c) : strips_of<uint16_t>(columns - c);
            strips[rows - 1](call_, x, stride, w + c * kColumnBytes, steps, row, begin + c, end, waiting, ahead);
          }
          return true;
        },
        [&](float* sums, int64_t block, int64_t begin, int64_t rows, int64_t panel) {
          put_back(sums, rows, back_ + begin, back_of(panel));
          finish_tile(call_, sums, kPanelColumns, block + begin, rows, panel * kPanelColumns);
        });
    widen_misfits();
  }

 private:
  const float* back_of(int64_t panel) const {
    return reinterpret_cast<const float*>(static_cast<const char*>(call_.weight) + (panel + 1) * panel_bytes_) - kPanelColumns;
  }

  // By how many columns are left.
  template <typename Y>
  static const ScaledStripInto<step>* strips_of(int64_t columns) {
    return columns > kWidth ? ScaledStripsInto<step, 2, Y>::of : ScaledStripsInto<step, 1, Y>::of;
  }

  // Rows of the last block that did not fit, together.
  void widen_misfits() {
    constexpr Step wide = Widened<step>::step;
    float back[kStripRows];
    for (float& of_row : back) of_row = Widened<step>::back;
    for (int64_t at = 0; at < misfit_count_; at += kMisfitsTogether) {
      const int64_t stop = misfit_count_ - at < kMisfitsTogether ? misfit_count_ : at + kMisfitsTogether;
      for_each_block<wide>(
          {at, stop, part_.panel_begin, part_.panel_end}, call_.k, call_.weight, panel_bytes_,
          [&](int64_t first, int64_t count, int64_t stride) {
            for (int64_t i = 0; i < count; ++i) gather_rows(call_, misfits_[first + i], 1, widened_ + i * stride, stride);
            return BlockOfX<wide>{widened_, stride};
          },
          [](int64_t, int64_t) {}, [](auto&&...) { return false; },
          [&](float* sums, int64_t block, int64_t begin, int64_t rows, int64_t panel) {
            put_back(sums, rows, back, back_of(panel));
            for (int64_t r = 0; r < rows; ++r) {
              finish_tile(call_, sums + r * kPanelColumns, kPanelColumns, misfits_[block + begin + r], 1, panel * kPanelColumns);
            }
          });
    }
    misfit_count_ = 0;
  }

  const LinearCall& call_;
  const LinearPart& part_;
  const int64_t panel_bytes_;
  X* x_;
  float *back_, *widened_;
  int64_t* misfits_;                       // rows of the block that do not fit
  int64_t first_ = 0, misfit_count_ = 0;  // the block's first row
};

template <Step step>
size_t scaled_scratch(const LinearCall& call, const LinearPart& part) {
  return static_cast<size_t>(ScaledPlan<step>(call, part).bytes);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
