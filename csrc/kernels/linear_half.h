// SPDX-License-Identifier: Apache-2.0
// Linear with weights packed as float16: kernels/half_operands.h. Blocks of rows and strips are those of kernels/linear_vector.h;
// rows of x become float16 on their way into scratch memory.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

struct HalfPlan {
  int64_t rows, back, widened, bytes;  // rows of a block; bytes from the start of scratch memory, where x lies

  HalfPlan(const LinearCall& call, const LinearPart& part) {
    rows = block_rows_of<Step::half>(call.k, part.m_end - part.m_begin);
    back = round_up(rows * x_stride_of<Step::half>(call.k) * static_cast<int64_t>(sizeof(Half)), 64);
    widened = back + round_up(rows * 4, 64);
    bytes = widened + x_stride_of<Step::widen_half>(call.k) * 4 + 64;
  }
};

// What a strip's products are put back by, and bounds on what goes into y.
struct HalfEnd {
  const float *back_rows, *back_columns;
  float low, high;
};

// y[row ...][column ...] of `rows` rows and `vectors` registers of a panel's columns, straight from registers; sums of all parts but
// the last wait in `sums`.
template <int rows, int vectors, typename Y>
void half_strip_into(const LinearCall& call, const Half* x, int64_t x_stride, const uint8_t* w, int64_t steps, int64_t row,
                     int64_t column, const HalfEnd& end, float* sums, const WeightsAhead& ahead) {
  constexpr int64_t most = kMostSteps<Step::half>, depth = StepOf<Step::half>::depth;
  int64_t done = 0;
  for (; steps - done > most; done += most) {
    strip_part<Step::half, rows, 1>(x + done * depth, x_stride, w + done * kStepBytes, 0, most, sums, done == 0,
                                    {ahead.at + done * ahead.stride, ahead.stride});
  }
  VecHalf last[rows][vectors] = {};
  AskForWeights ask({ahead.at + done * ahead.stride, ahead.stride});
  RowsByFours<Half, rows> at(x + done * depth, x_stride);
  w += done * kStepBytes;
  for (const uint8_t* stop = w + (steps - done) * kStepBytes; w < stop; w += kStepBytes) {
    ask.step();
    multiply_step<Step::half, rows>(last, at, w);
    at.step(depth);
  }
  Vec all[rows][vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const Vec back = load(end.back_columns + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec part = stored_sum(last[r][v]);
      all[r][v] = (done == 0 ? part : part + load(sums + r * kPanelColumns + v * kWidth)) * back * end.back_rows[r];
    }
  }
  store_between<Y>(call, all, row, column, end.low, end.high);
}

using HalfStripInto = void (*)(const LinearCall&, const Half*, int64_t, const uint8_t*, int64_t, int64_t, int64_t, const HalfEnd&,
                               float*, const WeightsAhead&);
template <int vectors, typename Y, int... rows>
struct HalfStripIntoTable {
  static constexpr HalfStripInto of[] = {half_strip_into<rows, vectors, Y>...};
};
template <int vectors, typename Y>
using HalfStripsInto = HalfStripIntoTable<vectors, Y, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;

class HalfLinear {
 public:
  HalfLinear(const LinearCall& call, const LinearPart& part, void* scratch)
      : call_(call), part_(part), panel_bytes_(panel_size(ElementType::float16, call.k) * 2), x_(static_cast<Half*>(scratch)) {
    const HalfPlan plan(call, part);
    back_ = reinterpret_cast<float*>(static_cast<char*>(scratch) + plan.back);
    widened_ = reinterpret_cast<float*>(static_cast<char*>(scratch) + plan.widened);
  }

  void run() {
    alignas(64) float waiting[kStripRows * kPanelColumns];
    float low, high;
    const bool bounded = ends_in_bounds(call_, low, high);
    for_each_block<Step::half>(
        part_, call_.k, call_.weight, panel_bytes_,
        [&](int64_t row, int64_t rows, int64_t stride) {
          widen_misfits();
          for (int64_t r = 0; r < rows; ++r) back_[r] = fit_row(call_.x, row + r, call_.k, x_ + r * stride);
          first_ = row;
          count_ = rows;
          return BlockOfX<Step::half>{x_, stride};
        },
        [](int64_t, int64_t) {},
        [&](const Half* x, int64_t stride, const uint8_t* w, int64_t steps, int64_t row, int64_t rows, int64_t panel,
            const WeightsAhead& ahead) {
          if (!bounded) return false;
          const HalfEnd end = {back_ + row - first_, back_of(panel), low, high};
          const auto* strips = call_.y_type == ElementType::float32 ? strips_of<float>(panel) : strips_of<uint16_t>(panel);
          strips[rows - 1](call_, x, stride, w, steps, row, panel * kPanelColumns, end, waiting, ahead);
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

  // By how many of a panel's columns y has.
  template <typename Y>
  const HalfStripInto* strips_of(int64_t panel) const {
    return call_.n - panel * kPanelColumns > kWidth ? HalfStripsInto<2, Y>::of : HalfStripsInto<1, Y>::of;
  }

  // Rows of the last block that did not fit, one by one and not in float16.
  void widen_misfits() {
    for (int64_t r = 0; r < count_; ++r) {
      if (back_[r] > 0) continue;
      const int64_t row = first_ + r;
      for_each_block<Step::widen_half>(
          {row, row + 1, part_.panel_begin, part_.panel_end}, call_.k, call_.weight, panel_bytes_,
          [&](int64_t, int64_t, int64_t stride) {
            gather_rows(call_, row, 1, widened_, stride);
            return BlockOfX<Step::widen_half>{widened_, stride};
          },
          [](int64_t, int64_t) {}, [](auto&&...) { return false; },
          [&](float* sums, int64_t, int64_t, int64_t, int64_t panel) {
            put_back(sums, 1, &kWidenedBack, back_of(panel));
            finish_tile(call_, sums, kPanelColumns, row, 1, panel * kPanelColumns);
          });
    }
    count_ = 0;
  }

  const LinearCall& call_;
  const LinearPart& part_;
  const int64_t panel_bytes_;
  Half* x_;
  float *back_, *widened_;
  int64_t first_ = 0, count_ = 0;  // rows of the block in scratch memory
};

inline size_t linear_scratch_or_half(const LinearCall& call, const LinearPart& part) {
  if (call.weight_type == ElementType::float16) return static_cast<size_t>(HalfPlan(call, part).bytes);
  return linear_scratch(call, part);
}

inline void linear_or_half(const LinearCall& call, const LinearPart& part, void* scratch) {
  if (call.weight_type == ElementType::float16) return HalfLinear(call, part, scratch).run();
  linear(call, part, scratch);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
