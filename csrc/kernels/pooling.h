// SPDX-License-Identifier: Apache-2.0
// The maximum or the mean of windows of an image, channels last: registers hold neighbouring channels of one output over its whole
// window. Bound by reading the image where windows do not overlap, by loads where they do. Needs kernels/depthwise_tile.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Pairs of registers that go over a window together: so many channels are read side by side.
constexpr int kPoolingPairs = 4;

// One output's window: its first pixel that lies inside the image, rows and columns that do, and steps between them in elements.
template <typename X>
struct Window {
  const X* x;
  int64_t rows, columns, row, pixel;
  float scale;  // of a mean: one over its divisor (a division would cost as much as a window of 2 x 2)
};

// The larger one; a NaN on either side stays.
SLIPSTREAM_INLINE Vec larger(Vec best, Vec x) {
  const Vec kept = select(best < x, x, best);
  return select(x != x, x, kept);
}

// `pairs` times `vectors` registers of channels of one output; `channels` of them where it is one register.
template <bool maximum, typename X, int vectors, int pairs>
void pool_window(const Window<X>& window, X* y, int64_t channels) {
  Vec total[pairs][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < pairs; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) total[i][v] = maximum ? broadcast(-__builtin_inff()) : Vec{};
  }
  const X* row = window.x;
  for (int64_t h = 0; h < window.rows; ++h, row += window.row) {
    Vec line[pairs][vectors] = {};  // a mean's sums are added up by rows: long running sums lose digits
    const X* at = row;
    for (int64_t w = 0; w < window.columns; ++w, at += window.pixel) {
#pragma GCC unroll 8
      for (int i = 0; i < pairs; ++i) {
        Vec x[vectors];
        load_pixel(at + i * kTileChannels, channels, x);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          if (maximum) {
            total[i][v] = larger(total[i][v], x[v]);
          } else {
            line[i][v] += x[v];
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < pairs; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        if (!maximum) total[i][v] += line[i][v];
      }
    }
  }
  const Vec scale = broadcast(window.scale);
#pragma GCC unroll 8
  for (int i = 0; i < pairs; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      if (!maximum) total[i][v] = total[i][v] * scale;
    }
    if constexpr (vectors == 2) {
      store_channels<kWidenedOrder<X, 2>>(y + i * kTileChannels, total[i][0], total[i][1]);
    } else {
      store_first(y, channels, total[i][0]);
    }
  }
}

// All channels from `first` to `last` of one output.
template <bool maximum, typename X>
void pool_pixel(Window<X> window, X* y, int64_t first, int64_t last) {
  constexpr int64_t together = kPoolingPairs * kTileChannels;
  const X* x = window.x;
  int64_t c = first;
  for (; c + together <= last; c += together) {
    window.x = x + c;
    pool_window<maximum, X, 2, kPoolingPairs>(window, y + c, kTileChannels);
  }
  for (; c + kTileChannels <= last; c += kTileChannels) {
    window.x = x + c;
    pool_window<maximum, X, 2, 1>(window, y + c, kTileChannels);
  }
  for (; c < last; c += kWidth) {
    window.x = x + c;
    pool_window<maximum, X, 1, 1>(window, y + c, last - c < kWidth ? last - c : kWidth);
  }
}

// Pixels of the window from `start` on that count for a mean with padding: those that reach beyond the padding do not.
constexpr int64_t counted(int64_t start, int64_t size, int64_t padding, int64_t kernel) {
  return start + kernel < size + padding ? kernel : size + padding - start;
}

template <bool maximum, typename X>
void pooling_of(const PoolingCall& call, const RowsPart& part) {
  const int64_t first = part.block_begin * kBlockChannels, end = part.block_end * kBlockChannels;
  const int64_t last = end < call.channels ? end : call.channels;
  for (int64_t r = part.row_begin; r < part.row_end; ++r) {
    const int64_t image = r / call.out_height, top = r % call.out_height * call.stride_height - call.padding_height;
    const TapRange down = taps_inside(top, call.height, call.dilation_height, call.kernel_height);
    const int64_t counted_down = counted(top, call.height, call.padding_height, call.kernel_height);
    const X* row = static_cast<const X*>(call.x.data) + image * call.x.image + (top + down.first * call.dilation_height) * call.x.row;
    X* y = static_cast<X*>(call.y) + r * call.out_width * call.channels;
    for (int64_t w = 0; w < call.out_width; ++w, y += call.channels) {
      const int64_t left = w * call.stride_width - call.padding_width;
      const TapRange right = taps_inside(left, call.width, call.dilation_width, call.kernel_width);
      int64_t pixels = call.count_padding ? counted_down * counted(left, call.width, call.padding_width, call.kernel_width)
                                          : (down.last - down.first) * (right.last - right.first);
      if (call.divisor) pixels = call.divisor;
      const Window<X> window = {row + (left + right.first * call.dilation_width) * call.x.pixel, down.last - down.first,
                                right.last - right.first, call.x.row * call.dilation_height,
                                call.x.pixel * call.dilation_width, 1.f / static_cast<float>(pixels)};
      pool_pixel<maximum>(window, y, first, last);
    }
  }
}

inline void pooling(const PoolingCall& call, const RowsPart& part) {
  const bool halves = call.x.type == ElementType::bfloat16;
  if (call.maximum) return halves ? pooling_of<true, uint16_t>(call, part) : pooling_of<true, float>(call, part);
  halves ? pooling_of<false, uint16_t>(call, part) : pooling_of<false, float>(call, part);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
