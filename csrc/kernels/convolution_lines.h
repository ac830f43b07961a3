// SPDX-License-Identifier: Apache-2.0
// Direct convolution, channels last, with few weights: all that an output sees of one row of pixels is a run of memory, and the
// runs of neighbouring outputs overlap. So a line of x is copied once, zero-padded and in the type that is multiplied, and
// strips read their rows out of it where these lie; nothing is gathered. That is for images of few channels (the first layer of
// a network for vision), where copies and results cost as much as products. Needs kernels/convolution_last_image.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

template <Step step>
int64_t line_steps(const ConvolutionLastCall& call) {
  return (call.kernel_width * call.in_channels + StepOf<step>::depth - 1) / StepOf<step>::depth;
}

// Whether the weights stay in the caches beside lines, and a sum over them, and over a line in the step's own type, is short enough
// to be one.
template <Step step>
bool reads_lines(const ConvolutionLastCall& call) {
  const int64_t panels = (call.linear.n + kPanelColumns - 1) / kPanelColumns, steps = line_steps<step>(call);
  return call.dilation_width == 1 && steps <= kMostSteps<step> && call.kernel_height * steps <= kStepsPerSum &&
         panels * call.panel_bytes() <= weights_beside_rows();
}

// What some neighbouring outputs see: of each of `count` lines `steps` steps of depth, the first output at `offset`, and others
// `stride` elements apart. The weights of the lines are `row_bytes` apart.
template <Step step>
struct SeenLines {
  const typename StepOf<step>::X* const* lines;
  int64_t count, steps, offset, stride, row_bytes;
};

// Where the results of a strip go: to y at its first output and column, between bounds, or unfinished to sums [rows][32], where sums
// of lines wait as well. `back`: what scaled operands are put back by, of the image and of the strip's columns.
struct LinesEnd {
  const LinearCall* call;
  int64_t row, column;
  float low, high;
  float* sums;
  float back;
  const float* back_columns;
};

// sums[r][v] += the product of `rows` outputs and `vectors` registers of columns over lines [begin, end).
template <Step step, int rows, int vectors>
SLIPSTREAM_INLINE void multiply_lines(typename StepOf<step>::Sum (&sums)[rows][vectors], const SeenLines<step>& seen, int64_t begin,
                                      int64_t end, const uint8_t* w) {
  for (int64_t line = begin; line < end; ++line) {
    RowsByFours<typename StepOf<step>::X, rows> x(seen.lines[line] + seen.offset, seen.stride);
    const uint8_t* of_line = w + line * seen.row_bytes;
    for (int64_t s = 0; s < seen.steps; ++s, x.step(StepOf<step>::depth)) {
      multiply_step<step, rows>(sums, x, of_line + s * kStepBytes);
    }
  }
}

template <int rows, int vectors>
SLIPSTREAM_INLINE void store_sums(const Vec (&sums)[rows][vectors], float* to) {
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store(to + r * kPanelColumns + v * kWidth, sums[r][v]);
  }
}

// all[r][v] = the product over all lines; those of scaled operands over as many lines at a time as their sums may be long.
template <Step step, int rows, int vectors>
SLIPSTREAM_INLINE void sum_lines(Vec (&all)[rows][vectors], const SeenLines<step>& seen, const uint8_t* w, const LinesEnd& end) {
  using Sum = typename StepOf<step>::Sum;
  const int64_t together = kScalesX<step> ? kMostSteps<step> / seen.steps : seen.count;
  int64_t done = 0;
  auto add = [&](const Sum (&part)[rows][vectors]) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const Vec sum = stored_sum<step>(part[r][v]);
        all[r][v] = done == 0 ? sum : sum + load(end.sums + r * kPanelColumns + v * kWidth);
      }
    }
  };
  if constexpr (kScalesX<step>) {
    for (; seen.count - done > together; done += together) {
      Sum part[rows][vectors] = {};
      multiply_lines<step, rows, vectors>(part, seen, done, done + together, w);
      add(part);
      store_sums(all, end.sums);
    }
  }
  Sum last[rows][vectors] = {};
  multiply_lines<step, rows, vectors>(last, seen, done, seen.count, w);
  add(last);
  if constexpr (kPutsBack<step>) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const Vec back = load(end.back_columns + v * kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) all[r][v] = all[r][v] * back * end.back;
    }
  }
}

template <Step step, int rows, int vectors, typename Y>
void strip_of_lines(const SeenLines<step>& seen, const uint8_t* w, const LinesEnd& end) {
  Vec sums[rows][vectors];
  sum_lines<step, rows, vectors>(sums, seen, w, end);
  store_between<Y>(*end.call, sums, end.row, end.column, end.low, end.high);
}

// The same into end.sums, unfinished.
template <Step step, int rows, int vectors>
void sums_of_lines(const SeenLines<step>& seen, const uint8_t* w, const LinesEnd& end) {
  Vec sums[rows][vectors];
  sum_lines<step, rows, vectors>(sums, seen, w, end);
  store_sums(sums, end.sums);
}

template <Step step>
using StripOfLines = void (*)(const SeenLines<step>&, const uint8_t*, const LinesEnd&);
template <Step step, int vectors, int... rows>
struct StripOfLinesTable {
  static constexpr StripOfLines<step> into_sums[] = {sums_of_lines<step, rows, vectors>...};
  static constexpr StripOfLines<step> into_float[] = {strip_of_lines<step, rows, vectors, float>...};
  static constexpr StripOfLines<step> into_bf16[] = {strip_of_lines<step, rows, vectors, uint16_t>...};
};
#if SLIPSTREAM_WIDTH == 16
template <Step step, int vectors>
using StripsOfLines = StripOfLinesTable<step, vectors, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
#else
template <Step step, int vectors>
using StripsOfLines = StripOfLinesTable<step, vectors, 1, 2, 3, 4, 5, 6>;
#endif

template <Step step, int vectors>
const StripOfLines<step>* strips_of_lines(const LinearCall& call, bool bounded) {
  if (!bounded) return StripsOfLines<step, vectors>::into_sums;
  return call.y_type == ElementType::float32 ? StripsOfLines<step, vectors>::into_float
                                             : StripsOfLines<step, vectors>::into_bf16;
}

template <typename X>
bool all_finite(const X* x, int64_t count) {
  constexpr uint32_t high = 0x7f800000u, low = sizeof(X) == 2 ? 0x7f80u : 0u;
  VecI found{};
  for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(X))) {
    for (int64_t w = 0; w < kLineWords; w += kWidth) {
      const VecU words = load_words(x + i + w * 4 / static_cast<int64_t>(sizeof(X)));
      found |= (words & high) == high;
      if constexpr (low != 0) found |= (words & low) == low;
    }
  }
  bool any = false;
  for (int i = 0; i < kWidth; ++i) any |= found[i] != 0;
  return !any;
}

// What a part keeps in scratch memory: a ring of lines, and room for the windows of one strip where they must not overlap.
template <Step step>
struct LinesPlan {
  using X = typename StepOf<step>::X;
  static constexpr int64_t kInLine = 64 / static_cast<int64_t>(sizeof(X));
  int64_t steps, pixels, line, lines, window, windows, bytes;

  explicit LinesPlan(const ConvolutionLastCall& call) {
    steps = line_steps<step>(call);
    pixels = (call.out_width - 1) * call.stride_width + call.kernel_width;
    line = round_up(pixels * call.in_channels + StepOf<step>::depth, kInLine);
    lines = call.reach_height() + 1;
    window = round_up(steps * StepOf<step>::depth, kInLine);
    windows = call.kernel_height * kStripRows * window;
    bytes = (lines * line + windows) * static_cast<int64_t>(sizeof(X)) + lines * 16 + call.kernel_height * 16;
  }
};

// Lines of x as outputs of one row see them, read once each as rows of y go by.
template <Step step>
class Lines {
 public:
  using X = typename StepOf<step>::X;

  Lines(const ConvolutionLastCall& call, const LinesPlan<step>& plan, void* scratch)
      : call_(call), plan_(plan), ring_(static_cast<X*>(scratch)), windows_(ring_ + plan.lines * plan.line),
        held_(reinterpret_cast<int64_t*>(windows_ + plan.windows)), finite_(held_ + plan.lines),
        seen_(reinterpret_cast<const X**>(finite_ + plan.lines)), separate_(seen_ + call.kernel_height) {
    for (int64_t i = 0; i < plan.lines; ++i) held_[i] = -1;
  }

  // Has all lines at hand that the row of y, counted through all images, sees.
  void move_to(int64_t row) {
    const int64_t index = row / call_.out_height;
    const int64_t top = row % call_.out_height * call_.stride_height - call_.padding_height;
    const TapRange inside = taps_inside(top, call_.height, call_.dilation_height, call_.kernel_height);
    first_ = inside.first;
    count_ = inside.last - inside.first;
    overlap_ = true;
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t source = top + (first_ + i) * call_.dilation_height, slot = source % plan_.lines;
      read(index, source, slot);
      seen_[i] = ring_ + slot * plan_.line;
      overlap_ &= finite_[slot] != 0;
    }
  }

  // Kernel rows before those that lie in the image.
  int64_t first() const { return first_; }

  // What the outputs [position, position + rows) see.
  SeenLines<step> at(int64_t position, int64_t rows, int64_t row_bytes) {
    const int64_t apart = call_.stride_width * call_.in_channels, offset = position * apart;
    if (overlap_) return {seen_, count_, plan_.steps, offset, apart, row_bytes};
    for (int64_t i = 0; i < count_; ++i) {
      X* to = windows_ + i * kStripRows * plan_.window;
      separate_[i] = to;
      const X* from = seen_[i] + offset;
      for (int64_t r = 0; r < rows; ++r) copy_window(from + r * apart, to + r * plan_.window);
    }
    return {separate_, count_, plan_.steps, 0, plan_.window, row_bytes};
  }

 private:
  void read(int64_t index, int64_t source, int64_t slot) {
    const int64_t name = index * call_.height + source;
    if (held_[slot] == name) return;
    held_[slot] = name;
    X* line = ring_ + slot * plan_.line;
    const int64_t used = plan_.pixels * call_.in_channels;
    copy_pixels(call_, index, source, -call_.padding_width, plan_.pixels, call_.in_channels, line);
    __builtin_memset(line + used, 0, static_cast<size_t>(plan_.line - used) * sizeof(X));
    // A step that goes beyond a window takes a neighbour times a weight of zero. (What was scaled is finite.)
    const bool beyond = !kScalesX<step> && plan_.steps * StepOf<step>::depth != call_.kernel_width * call_.in_channels;
    finite_[slot] = !beyond || all_finite(line, plan_.line);
  }

  void copy_window(const X* from, X* to) {
    const int64_t depth = call_.kernel_width * call_.in_channels;
    __builtin_memcpy(to, from, static_cast<size_t>(depth) * sizeof(X));
    for (int64_t k = depth; k < plan_.window; ++k) to[k] = X{};
  }

  const ConvolutionLastCall& call_;
  const LinesPlan<step>& plan_;
  X* ring_;
  X* windows_;
  int64_t* held_;    // the row of x in each place of the ring, counted through all images
  int64_t* finite_;  // whether it may be multiplied by zero
  const X** seen_;
  const X** separate_;
  int64_t first_ = 0, count_ = 0;
  bool overlap_ = true;
};

// Sums [rows][32] through bias and activation into y; without the choices that finish_tile has for each register.
template <PostOp op, typename Y>
void finish_rows_of_lines(const LinearCall& call, const float* sums, int64_t row, int64_t rows, int64_t column,
                          int64_t columns) {
  for (int64_t c = 0; c < columns; c += kWidth) {
    const int64_t count = columns - c < kWidth ? columns - c : kWidth;
    const Vec bias = call.bias ? load_element_partly(call.bias, call.bias_type, column + c, count) : Vec{};
    Y* y = static_cast<Y*>(call.y) + row * call.y_stride + column + c;
    for (int64_t r = 0; r < rows; ++r, y += call.y_stride) {
      const Vec v = post_op_into<op>(kTypeOf<Y>, load(sums + r * kPanelColumns + c) + bias);
      count == kWidth ? store(y, v) : store_first(y, count, v);
    }
  }
}

inline void finish_lines(const LinearCall& call, const float* sums, int64_t row, int64_t rows, int64_t column,
                         int64_t columns) {
  if (call.residual.data) return finish_tile(call, sums, kPanelColumns, row, rows, column);
  with_post_op(call.post_op, [&](auto tag) {
    constexpr PostOp op = decltype(tag)::value;
    call.y_type == ElementType::bfloat16 ? finish_rows_of_lines<op, uint16_t>(call, sums, row, rows, column, columns)
                                         : finish_rows_of_lines<op, float>(call, sums, row, rows, column, columns);
  });
}

// Strips of one row of y, whose lines are at hand.
template <Step step>
void convolve_row(const ConvolutionLastCall& call, const LinearPart& part, Lines<step>& lines, int64_t row, LinesEnd end,
                  bool bounded) {
  const LinearCall& linear = call.linear;
  const StripOfLines<step>* two = strips_of_lines<step, 2>(linear, bounded);
  const StripOfLines<step>* one = strips_of_lines<step, 1>(linear, bounded);
  const int64_t panel_bytes = call.panel_bytes(), row_bytes = call.row_bytes();
  const uint8_t* weight = static_cast<const uint8_t*>(linear.weight) + lines.first() * row_bytes;
  end.back = back_of_image<step>(call.scales, row / call.out_height);
  const int64_t strips = (call.out_width + kStripRows - 1) / kStripRows, stop = part.m_end * call.out_width;
  const int64_t y_bytes = linear.y_stride * (linear.y_type == ElementType::float32 ? 4 : 2);
  const bool whole_rows = (part.panel_end - part.panel_begin) * kPanelColumns >= linear.n;
  float* sums = end.sums;
  for (int64_t s = 0; s < strips; ++s) {
    const int64_t position = call.out_width * s / strips, rows = call.out_width * (s + 1) / strips - position;
    const SeenLines<step> seen = lines.at(position, rows, row_bytes);
    end.row = row * call.out_width + position;
    const int64_t next = end.row + rows, after = next + kStripRows;
    // Results are written faster than hardware brings in what they replace.
    if (whole_rows) ask_for_rows<Use::write>(linear.y, next, after < stop ? after : stop, y_bytes);
    for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel) {
      const int64_t begin = panel * kPanelColumns;
      const int64_t columns = linear.n - begin < kPanelColumns ? linear.n - begin : kPanelColumns;
      const uint8_t* w = weight + panel * panel_bytes;
      for (int64_t c = 0; c < columns; c += kStripColumns) {
        end.column = begin + c;
        end.sums = sums + c;
        if (kPutsBack<step>) end.back_columns = back_of_columns(call, panel) + c;
        (columns - c > kWidth ? two : one)[rows - 1](seen, w + c * kColumnBytes, end);
      }
      if (!bounded) finish_lines(linear, sums, end.row, rows, begin, columns);
    }
  }
}

template <Step step>
void convolve_lines(const ConvolutionLastCall& call, const LinearPart& part, void* scratch) {
  const LinesPlan<step> plan(call);
  Lines<step> lines(call, plan, scratch);
  alignas(64) float sums[kStripRows * kPanelColumns];
  LinesEnd end{&call.linear, 0, 0, 0, 0, sums, 1, nullptr};
  const bool bounded = ends_in_bounds(call.linear, end.low, end.high) && !call.linear.residual.data;
  for (int64_t row = part.m_begin; row < part.m_end; ++row) {
    lines.move_to(row);
    convolve_row(call, part, lines, row, end, bounded);
  }
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
