// SPDX-License-Identifier: Apache-2.0
// Convolution, channels first, on vector registers; see kernels/convolution_call.h for the layout. No im2col: a tap is an offset
// into the padded image. Bound by multiply-adds where channels are many, by the copy of the image where they are few.
// Needs kernels/linear_vector.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

constexpr int64_t kMostTaps = 121;  // 11 x 11

// Which columns of a phase's line lie inside the image, and the image's column under the first of them. Column i of the line of
// phase p is column i * stride + p - padding of the image.
struct LineSpan {
  int64_t first, last, column;
};

inline LineSpan span_of(const ConvolutionCall& call, int64_t phase_column) {
  const int64_t stride = call.stride_width, width = call.phase_width();
  int64_t first = (call.padding_width - phase_column + stride - 1) / stride;
  int64_t last = (call.width + call.padding_width - phase_column + stride - 1) / stride;
  first = first < 0 ? 0 : first > width ? width : first;
  last = last < first ? first : last > width ? width : last;
  return {first, last, first * stride + phase_column - call.padding_width};
}

template <int... lane>
SLIPSTREAM_INLINE Vec even_lanes(Vec a, Vec b, LaneList<lane...>) {
  return __builtin_shufflevector(a, b, (2 * lane)...);
}

// `count` elements, `stride` apart, from `index` on; `left` elements of the row lie from there to its end.
SLIPSTREAM_INLINE Vec load_strided(const ConvolutionCall& call, int64_t index, int64_t stride, int64_t count, int64_t left) {
  if (stride == 1) {
    return count == kWidth ? load_element(call.x, call.x_type, index) : load_element_partly(call.x, call.x_type, index, count);
  }
  if (stride == 2) {
    const int64_t second = left - kWidth;
    const Vec a = left >= kWidth ? load_element(call.x, call.x_type, index) : load_element_partly(call.x, call.x_type, index, left);
    const Vec b = second >= kWidth ? load_element(call.x, call.x_type, index + kWidth)
                  : second > 0     ? load_element_partly(call.x, call.x_type, index + kWidth, second)
                                   : Vec{};
    return even_lanes(a, b, Lanes{});
  }
  Vec v{};
  for (int64_t i = 0; i < count; ++i) v[i] = load_element_partly(call.x, call.x_type, index + i * stride, 1)[0];
  return v;
}

SLIPSTREAM_INLINE Vec interleave_bf16(Vec a, Vec b) {
  uint16_t halves[2 * kWidth];
  store(halves, a);
  store(halves + kWidth, b);
  const VecU low = widened(*reinterpret_cast<const VecHInMemory*>(halves));
  const VecU high = widened(*reinterpret_cast<const VecHInMemory*>(halves + kWidth));
  return reinterpret_cast<Vec>(low | (high << 16));
}

// One line of words: row `row` of the padded image, for the channels of a step.
inline void gather_line(const ConvolutionCall& call, int64_t channel, int64_t row, const LineSpan& span, float* to) {
  const int64_t source_row = row - call.padding_height, width = call.phase_width();
  const bool inside = source_row >= 0 && source_row < call.height;
  int64_t i = 0;
  const int64_t first = inside ? span.first : width;
  for (; i < first; ++i) to[i] = 0;
  if (!inside) return;
  const bool pair = call.depth() == 2, both = channel + 1 < call.in_channels;
  const int64_t line = (channel * call.height + source_row) * call.width, plane = call.height * call.width;
  for (int64_t column = span.column; i < span.last; i += kWidth, column += kWidth * call.stride_width) {
    const int64_t count = span.last - i < kWidth ? span.last - i : kWidth, left = call.width - column;
    Vec v = load_strided(call, line + column, call.stride_width, count, left);
    if (pair) {
      v = interleave_bf16(v, both ? load_strided(call, line + plane + column, call.stride_width, count, left) : Vec{});
    }
    if (count == kWidth) {
      store(to + i, v);
    } else {
      store_first(to + i, count, v);
    }
  }
  for (i = span.last; i < width; ++i) to[i] = 0;
}

// The same by panels: pixels are one long row, and the last panel is filled up with zeros.
inline void gather_panels(const ConvolutionCall& call, int64_t begin, int64_t end, float* image) {
  const int64_t pixels = call.positions();
  for (int64_t step = begin; step < end; ++step) {
    const int64_t channel = step * call.depth(), from = channel * pixels;
    const bool pair = call.depth() == 2, both = channel + 1 < call.in_channels;
    for (int64_t i = 0; i < call.panels() * kPanelColumns; i += kWidth) {
      const int64_t count = pixels - i < kWidth ? pixels - i : kWidth;
      Vec v{};
      if (count > 0) {
        v = load_strided(call, from + i, 1, count, count);
        if (pair) v = interleave_bf16(v, both ? load_strided(call, from + pixels + i, 1, count, count) : Vec{});
      }
      store(image + i / kPanelColumns * call.panel_words() + step * kPanelColumns + i % kPanelColumns, v);
    }
  }
}

// Copies channel steps [begin, end) of the image into `image`.
inline void gather_image(const ConvolutionCall& call, int64_t begin, int64_t end, void* image) {
  if (call.by_panels()) return gather_panels(call, begin, end, static_cast<float*>(image));
  const int64_t width = call.phase_width(), height = call.phase_height();
  for (int64_t phase = 0; phase < call.phases(); ++phase) {
    const int64_t phase_row = phase / call.stride_width;
    const LineSpan span = span_of(call, phase % call.stride_width);
    for (int64_t step = begin; step < end; ++step) {
      float* to = static_cast<float*>(image) + step * call.plane_words() + phase * call.phase_words();
      for (int64_t h = 0; h < height; ++h, to += width) {
        gather_line(call, step * call.depth(), h * call.stride_height + phase_row, span, to);
      }
    }
  }
}

// Words from an output's position in the image to what tap t multiplies.
inline int64_t tap_offset(const ConvolutionCall& call, int64_t t) {
  const int64_t down = t / call.kernel_width * call.dilation_height, right = t % call.kernel_width * call.dilation_width;
  const int64_t phase = down % call.stride_height * call.stride_width + right % call.stride_width;
  return phase * call.phase_words() + down / call.stride_height * call.phase_width() + right / call.stride_width;
}

// sums[rows][32] of one panel of positions, over all channels and taps.
template <Step step, int rows>
void convolve_strip(const typename StepOf<step>::X* weight, int64_t weight_stride, const uint8_t* image, int64_t plane_bytes,
                    const int64_t* tap_bytes, int64_t taps, int64_t steps, float* out) {
  constexpr int64_t depth = StepOf<step>::depth;
  const int64_t chunk = kStepsPerSum / taps > 0 ? kStepsPerSum / taps : 1;
  for (int64_t column = 0; column < kPanelColumns; column += kStripColumns) {
    const uint8_t* at = image + column * kColumnBytes;
    for (int64_t begin = 0; begin < steps; begin += chunk) {
      const int64_t end = steps - begin < chunk ? steps : begin + chunk;
      Vec sums[rows][kStripVectors] = {};
      for (int64_t s = begin; s < end; ++s) {
        const typename StepOf<step>::X* w = weight + s * taps * depth;
        const uint8_t* plane = at + s * plane_bytes;
        for (int64_t t = 0; t < taps; ++t) {
          multiply_step<step, rows>(sums, w + t * depth, weight_stride, plane + tap_bytes[t]);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kStripVectors; ++v) {
          float* to = out + r * kPanelColumns + column + v * kWidth;
          store(to, begin == 0 ? sums[r][v] : sums[r][v] + load(to));
        }
      }
    }
  }
}

template <Step step>
using ConvolveStrip = void (*)(const typename StepOf<step>::X*, int64_t, const uint8_t*, int64_t, const int64_t*, int64_t, int64_t,
                               float*);
template <Step step, int... rows>
struct ConvolveTable {
  static constexpr ConvolveStrip<step> of[] = {convolve_strip<step, rows>...};
};
#if SLIPSTREAM_WIDTH == 16
template <Step step>
using ConvolveStrips = ConvolveTable<step, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
#else
template <Step step>
using ConvolveStrips = ConvolveTable<step, 1, 2, 3, 4, 5, 6>;
#endif

// A run of a panel's sums that are outputs: neighbours in one row of y.
struct Run {
  int64_t from, to, count;
};

// The runs of the panel at `position`; between them lie the sums that fall between rows of y.
inline int find_runs(const ConvolutionCall& call, int64_t position, Run (&runs)[kPanelColumns]) {
  const int64_t line = call.phase_width();
  const int64_t stop = position + kPanelColumns < call.positions() ? position + kPanelColumns : call.positions();
  int64_t h = position / line, w = position - h * line;
  int found = 0;
  for (int64_t at = position; at < stop; ++h, w = 0) {
    const int64_t next_line = at - w + line;
    if (w < call.out_width) {
      const int64_t end = at - w + call.out_width;
      runs[found++] = {at - position, h * call.out_width + w, (end < stop ? end : stop) - at};
    }
    at = next_line;
  }
  return found;
}

// Bias, post-op and residual over a panel of sums, and those that are outputs to their places in y. The residual comes before the
// post-op: act(conv(x) + residual), as residual networks do.
template <PostOp op>
inline void finish_panel(const ConvolutionCall& call, const float* sums, int64_t rows, int64_t channel, const Run* runs, int found) {
  const int64_t pixels = call.out_height * call.out_width;
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = sums + r * kPanelColumns;
    const Vec bias = broadcast(call.bias ? call.bias[channel + r] : 0.f);
    for (int n = 0; n < found; ++n) {
      const int64_t to = (channel + r) * pixels + runs[n].to;
      for (int64_t i = 0; i < runs[n].count; i += kWidth) {
        const int64_t count = runs[n].count - i < kWidth ? runs[n].count - i : kWidth;
        Vec v = load(row + runs[n].from + i) + bias;  // may read beyond the run: the buffer has a register's slack
        if (call.residual) {
          v += count == kWidth ? load_element(call.residual, call.residual_type, to + i)
                               : load_element_partly(call.residual, call.residual_type, to + i, count);
        }
        store_element(call.y, call.y_type, to + i, count, post_op<op>(v));
      }
    }
  }
}

template <Step step>
void convolve(const ConvolutionCall& call, const ConvolutionPart& part, const void* image) {
  using X = typename StepOf<step>::X;
  int64_t tap_bytes[kMostTaps];
  for (int64_t t = 0; t < call.taps(); ++t) tap_bytes[t] = 4 * tap_offset(call, t);
  const int64_t plane_bytes = call.by_panels() ? kStepBytes : call.plane_words() * 4;
  const X* weight = static_cast<const X*>(call.weight);
  const int64_t channels = part.end - part.begin, strips = (channels + kStripRows - 1) / kStripRows;
  alignas(64) float sums[kStripRows * kPanelColumns + kWidth];
  // Positions in blocks, so that the image's part for a block stays in the second-level cache while all channels pass over it.
  const int64_t panel_bytes = call.steps() * (kPanelColumns + 8) * 4;
  int64_t block = block_bytes() / panel_bytes;
  if (block < 1) block = 1;
  for (int64_t first = part.panel_begin; first < part.panel_end; first += block) {
    const int64_t last = part.panel_end - first < block ? part.panel_end : first + block;
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t begin = part.begin + channels * s / strips, end = part.begin + channels * (s + 1) / strips;
      for (int64_t panel = first; panel < last; ++panel) {
        const int64_t position = panel * kPanelColumns;
        const uint8_t* at = static_cast<const uint8_t*>(image) + (call.by_panels() ? panel * call.panel_words() : position) * 4;
        ConvolveStrips<step>::of[end - begin - 1](weight + begin * call.weight_stride, call.weight_stride, at, plane_bytes,
                                                  tap_bytes, call.taps(), call.steps(), sums);
        Run runs[kPanelColumns];
        const int found = find_runs(call, position, runs);
        with_post_op(call.post_op, [&](auto op) {
          finish_panel<decltype(op)::value>(call, sums, end - begin, begin, runs, found);
        });
      }
    }
  }
}

#ifdef SLIPSTREAM_DOT_BF16
constexpr Step kConvolutionStep = Step::dot_bf16;
#else
constexpr Step kConvolutionStep = Step::widen_both;
#endif

inline void convolution(const ConvolutionCall& call, const ConvolutionPart& part, const void* image) {
  call.weight_type == ElementType::bfloat16 ? convolve<kConvolutionStep>(call, part, image)
                                            : convolve<Step::float32>(call, part, image);
}

// Output rows that are summed at a time: independent sums that hide the latency of a multiply-add.
constexpr int kDepthwiseRows = 4;

// Output rows [h, h + rows) of one channel from its plane: a tap's weight is broadcast once for all of them.
template <PostOp op, int rows>
inline void depthwise_rows(const ConvolutionCall& call, const float* plane, const float* w, const int64_t* offsets, Vec bias,
                           int64_t h, int64_t to) {
  const int64_t line = call.phase_width(), taps = call.taps();
  for (int64_t i = 0; i < call.out_width; i += kWidth) {
    Vec sums[rows];
    for (int r = 0; r < rows; ++r) sums[r] = bias;
    const float* at = plane + h * line + i;
    for (int64_t t = 0; t < taps; ++t) {
      const Vec weight = broadcast(w[t]);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sums[r] += weight * load(at + offsets[t] + r * line);
    }
    const int64_t count = call.out_width - i < kWidth ? call.out_width - i : kWidth;
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const int64_t index = to + r * call.out_width + i;
      Vec v = sums[r];
      if (call.residual) {
        v += count == kWidth ? load_element(call.residual, call.residual_type, index)
                             : load_element_partly(call.residual, call.residual_type, index, count);
      }
      store_element(call.y, call.y_type, index, count, post_op<op>(v));
    }
  }
}

// One input channel a group: output channels [begin, end), each from its own plane. call is as for one group with in_channels = 1
// and float32 weights; `image` has room for one plane. Bound by the copy of the image up to 3 x 3, by loads beyond.
inline void depthwise(const ConvolutionCall& call, int64_t begin, int64_t end, int64_t outputs_of_a_channel, float* image) {
  int64_t offsets[kMostTaps];
  for (int64_t t = 0; t < call.taps(); ++t) offsets[t] = tap_offset(call, t);
  const int64_t pixels = call.out_height * call.out_width;
  int64_t present = -1;
  for (int64_t channel = begin; channel < end; ++channel) {
    if (channel / outputs_of_a_channel != present) {
      present = channel / outputs_of_a_channel;
      ConvolutionCall one = call;
      one.x = static_cast<const char*>(call.x) + present * call.height * call.width * (call.x_type == ElementType::float32 ? 4 : 2);
      gather_image(one, 0, 1, image);  // (one channel's only panels in a row are its plane)
    }
    const float* w = static_cast<const float*>(call.weight) + channel * call.weight_stride;
    const Vec bias = broadcast(call.bias ? call.bias[channel] : 0.f);
    with_post_op(call.post_op, [&](auto op) {
      int64_t h = 0, to = channel * pixels;
      for (; h + kDepthwiseRows <= call.out_height; h += kDepthwiseRows, to += kDepthwiseRows * call.out_width) {
        depthwise_rows<decltype(op)::value, kDepthwiseRows>(call, image, w, offsets, bias, h, to);
      }
      for (; h < call.out_height; ++h, to += call.out_width) {
        depthwise_rows<decltype(op)::value, 1>(call, image, w, offsets, bias, h, to);
      }
    });
  }
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
