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

class HalfLinear {
 public:
  HalfLinear(const LinearCall& call, const LinearPart& part, void* scratch)
      : call_(call), part_(part), panel_bytes_(panel_size(ElementType::float16, call.k) * 2), x_(static_cast<Half*>(scratch)) {
    const HalfPlan plan(call, part);
    back_ = reinterpret_cast<float*>(static_cast<char*>(scratch) + plan.back);
    widened_ = reinterpret_cast<float*>(static_cast<char*>(scratch) + plan.widened);
  }

  void run() {
    for_each_block<Step::half>(
        part_, call_.k, call_.weight, panel_bytes_,
        [&](int64_t row, int64_t rows, int64_t stride) {
          widen_misfits();
          for (int64_t r = 0; r < rows; ++r) back_[r] = fit_row(call_.x, row + r, call_.k, x_ + r * stride);
          first_ = row;
          count_ = rows;
          return BlockOfX<Step::half>{x_, stride};
        },
        [](int64_t, int64_t) {}, [](auto&&...) { return false; },
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

  // Rows of the last block that did not fit, one by one and not in float16.
  void widen_misfits() {
    const float back = power_of_two(kHalfExponent / 2 - kWidenedExponent);
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
            put_back(sums, 1, &back, back_of(panel));
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
