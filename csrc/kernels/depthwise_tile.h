// SPDX-License-Identifier: Apache-2.0
// A tile of a depthwise convolution, channels last: a register holds neighbouring channels of one pixel. Neighbouring outputs keep
// their sums in registers over all taps; an input pixel is loaded once a row of the kernel and goes into every sum that it reaches.
// Pixels outside the image are skipped, so nothing is padded or copied. Needs kernels/post_op.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Registers of 512 bits: 7 x 2 sums, up to 7 x 2 weights, 2 of x: 30 of 32. Seven, because images of networks are 7, 14, 28, 56
// and 112 wide. With 16 registers, 4 x 2 sums; the weights are then operands in memory.
constexpr int kTilePixels = kWidth == 16 ? 7 : 4;
constexpr int64_t kTileChannels = 2 * kWidth;

// The order of a tile's channels over the lanes of its two registers: as they are; even ones before odd ones, as bfloat16 come
// apart by a shift and a mask; or by fours, as pixels are paired for dot products.
enum class Order { natural, split, paired };

// The register and lane of a channel, and (the same formula) of a weight in its packed block.
constexpr int64_t slot_of(Order order, int64_t channel) {
  if (order == Order::split) return channel % 2 * kWidth + channel / 2;
  if (kWidth == 16 && order == Order::paired) return paired_slot(channel);
  return channel;
}

// What a tile's sums are made of. `x` is the tile's first input pixel in the first row of the kernel that lies inside the image;
// it may lie left of the image: only pixels whose bit in `valid` is set are read.
template <typename X>
struct DepthwiseTile {
  const X* x;
  int64_t row, pixel;         // elements
  int64_t kernel_rows;
  const float* weight;        // of the first row of the kernel
  int64_t second;             // floats between the weights of the two registers of a tap
  int64_t channels;           // of the tile, where it is one register wide
  uint64_t valid;
  const float* bias;          // in the tile's order
  // Where the sums go: into `sums` [pixel][kTileChannels] to be finished from there, or where that is null into y, with a post-op
  // that is two bounds.
  float* sums;
  float low, high;
  void* y;
  ElementType y_type;
  int64_t y_pixel, pixels;
};

// Two registers of channels: bfloat16 as even and odd ones. Or one register in the channels' order.
SLIPSTREAM_INLINE void load_pixel(const float* p, int64_t, Vec (&v)[2]) {
  v[0] = load(p);
  v[1] = load(p + kWidth);
}
SLIPSTREAM_INLINE void load_pixel(const uint16_t* p, int64_t, Vec (&v)[2]) {
  const VecU words = load_words(p);
  v[0] = reinterpret_cast<Vec>(words << 16);
  v[1] = reinterpret_cast<Vec>(words & 0xffff0000u);
}
template <typename X>
SLIPSTREAM_INLINE void load_pixel(const X* p, int64_t channels, Vec (&v)[1]) {
  v[0] = kWidth < 16 && channels == kWidth ? load(p) : load_first(p, channels);
}

// The first or the second register of channels in their own order, from a tile's two.
template <Order order, int half, int... lane>
SLIPSTREAM_INLINE Vec in_order(Vec a, Vec b, LaneList<lane...>) {
  return __builtin_shufflevector(a, b, slot_of(order, half * kWidth + lane)...);
}

template <Order order>
SLIPSTREAM_INLINE void store_channels(float* y, Vec a, Vec b) {
  store(y, in_order<order, 0>(a, b, Lanes{}));
  store(y + kWidth, in_order<order, 1>(a, b, Lanes{}));
}

#ifdef SLIPSTREAM_CONVERT_BF16
template <Order order, int... lane>
SLIPSTREAM_INLINE void store_halves(uint16_t* y, VecHH halves, LaneList<lane...>) {
  *reinterpret_cast<VecHHInMemory*>(y) = __builtin_shufflevector(halves, halves, slot_of(order, lane)...);
}

template <Order order>
SLIPSTREAM_INLINE void store_channels(uint16_t* y, Vec a, Vec b) {
  store_halves<order>(y, halves_of(a, b), MakeLanes<2 * kWidth>::List{});
}
#else
template <Order order>
SLIPSTREAM_INLINE void store_channels(uint16_t* y, Vec a, Vec b) {
  store(y, in_order<order, 0>(a, b, Lanes{}));
  store(y + kWidth, in_order<order, 1>(a, b, Lanes{}));
}
#endif

template <Order order, typename Y, typename X, int vectors>
SLIPSTREAM_INLINE void store_tile(const DepthwiseTile<X>& tile, Vec (&sums)[kTilePixels][vectors]) {
  const Vec low = broadcast(tile.low), high = broadcast(tile.high);
  const int64_t pixels = tile.pixels, step = tile.y_pixel, channels = tile.channels;
  Y* y = static_cast<Y*>(tile.y);
#pragma GCC unroll 8
  for (int i = 0; i < kTilePixels; ++i, y += step) {
    if (i >= pixels) break;
    const Vec a = at_most(at_least(sums[i][0], low), high);
    if constexpr (vectors == 2) {
      store_channels<order>(y, a, at_most(at_least(sums[i][1], low), high));
    } else {
      store_first(y, channels, a);
    }
  }
}

template <Order order, typename X, int vectors>
SLIPSTREAM_INLINE void end_tile(const DepthwiseTile<X>& tile, Vec (&sums)[kTilePixels][vectors]) {
  if (tile.sums) {
    float* to = tile.sums;
#pragma GCC unroll 8
    for (int i = 0; i < kTilePixels; ++i, to += kTileChannels) {
      if constexpr (vectors == 2) {
        store_channels<order>(to, sums[i][0], sums[i][1]);
      } else {
        store(to, sums[i][0]);
      }
    }
  } else if (tile.y_type == ElementType::bfloat16) {
    store_tile<order, uint16_t>(tile, sums);
  } else {
    store_tile<order, float>(tile, sums);
  }
}

template <typename X, int vectors>
SLIPSTREAM_INLINE void begin_tile(const DepthwiseTile<X>& tile, Vec (&sums)[kTilePixels][vectors]) {
#pragma GCC unroll 8
  for (int i = 0; i < kTilePixels; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sums[i][v] = load(tile.bias + v * kWidth);
  }
}

template <typename X, int vectors>
constexpr Order kWidenedOrder = sizeof(X) == 2 && vectors == 2 ? Order::split : Order::natural;

// A tile of a kernel of `kernel_width` columns that lie side by side. `inside`: all columns are valid.
template <typename X, int vectors, int kernel_width, int stride, bool inside>
void sum_tile(const DepthwiseTile<X>& tile) {
  constexpr int columns = (kTilePixels - 1) * stride + kernel_width;
  Vec sums[kTilePixels][vectors];
  begin_tile(tile, sums);
  const X* row = tile.x;
  const float* w = tile.weight;
  const int64_t pixel = tile.pixel;
  const uint64_t valid = tile.valid;
  for (int64_t h = 0; h < tile.kernel_rows; ++h, row += tile.row, w += kernel_width * kBlockChannels) {
    Vec weights[kernel_width][vectors];
#pragma GCC unroll 8
    for (int k = 0; k < kernel_width; ++k) {
      weights[k][0] = load(w + k * kBlockChannels);
      if (vectors == 2) weights[k][vectors - 1] = load(w + k * kBlockChannels + tile.second);
    }
    const X* at = row;
#pragma GCC unroll 20
    for (int c = 0; c < columns; ++c, at += pixel) {
      if (!inside && !(valid >> c & 1)) continue;
      Vec x[vectors];
      load_pixel(at, tile.channels, x);
#pragma GCC unroll 8
      for (int i = 0; i < kTilePixels; ++i) {
        const int k = c - i * stride;
        if (k < 0 || k >= kernel_width) continue;
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sums[i][v] += x[v] * weights[k][v];
      }
    }
  }
  end_tile<kWidenedOrder<X, vectors>>(tile, sums);
}

// The same for any kernel, stride and dilation, tap by tap. `column` is x's column under the tile's first output and first tap.
template <typename X, int vectors>
void sum_tile_of_any(const DepthwiseCall& call, const DepthwiseTile<X>& tile, int64_t column) {
  Vec sums[kTilePixels][vectors];
  begin_tile(tile, sums);
  const X* row = tile.x;
  const float* w = tile.weight;
  for (int64_t h = 0; h < tile.kernel_rows; ++h, row += tile.row) {
    for (int64_t k = 0; k < call.kernel_width; ++k, w += kBlockChannels) {
      Vec weights[vectors];
      weights[0] = load(w);
      if (vectors == 2) weights[vectors - 1] = load(w + tile.second);
#pragma GCC unroll 8
      for (int i = 0; i < kTilePixels; ++i) {
        const int64_t shift = i * call.stride_width + k * call.dilation_width;
        if (static_cast<uint64_t>(column + shift) >= static_cast<uint64_t>(call.width)) continue;
        Vec x[vectors];
        load_pixel(row + shift * tile.pixel, tile.channels, x);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sums[i][v] += x[v] * weights[v];
      }
    }
  }
  end_tile<kWidenedOrder<X, vectors>>(tile, sums);
}

#ifdef SLIPSTREAM_DOT_BF16
// bfloat16, stride 1, an odd number of columns: neighbouring pixels are paired once and two taps are multiplied at a time. The last
// tap is alone; its pixel is the later one of a pair, and is widened, so that no pixel beyond the kernel is touched.
template <int kernel_width, bool inside>
void sum_tile_paired(const DepthwiseTile<uint16_t>& tile) {
  constexpr int columns = kTilePixels - 1 + kernel_width, pairs = kernel_width / 2;
  Vec sums[kTilePixels][2];
  begin_tile(tile, sums);
  const uint16_t* row = tile.x;
  const float* w = tile.weight;
  const int64_t pixel = tile.pixel;
  const uint64_t valid = tile.valid;
  for (int64_t h = 0; h < tile.kernel_rows; ++h, row += tile.row, w += (pairs + 1) * kBlockChannels) {
    VecU weights[pairs][2];
#pragma GCC unroll 8
    for (int k = 0; k < pairs; ++k) {
      weights[k][0] = load_words(w + k * kBlockChannels);
      weights[k][1] = load_words(w + k * kBlockChannels + kWidth);
    }
    const Vec last[2] = {load(w + pairs * kBlockChannels), load(w + pairs * kBlockChannels + kWidth)};
    const uint16_t* at = row;
    VecU here{}, next{};
    if (inside || (valid & 1)) here = load_words(at);
#pragma GCC unroll 20
    for (int c = 0; c + 1 < columns; ++c, here = next) {
      at += pixel;
      if (inside || (valid >> (c + 1) & 1)) {
        next = load_words(at);
      } else {
        next = VecU{};
        if (!(valid >> c & 1)) continue;
      }
      const VecU both[2] = {pair_low(here, next), pair_high(here, next)};
#pragma GCC unroll 8
      for (int i = 0; i < kTilePixels; ++i) {
        const int k = c - i;
        if (k < 0 || k >= kernel_width - 1) continue;
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          if (k % 2 == 0) sums[i][v] = dot_bf16(sums[i][v], both[v], weights[k / 2][v]);
          if (k == kernel_width - 2) sums[i][v] += reinterpret_cast<Vec>(both[v] & 0xffff0000u) * last[v];
        }
      }
    }
  }
  end_tile<Order::paired>(tile, sums);
}
#endif

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
