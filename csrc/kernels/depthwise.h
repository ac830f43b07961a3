// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution, channels last: a register holds neighbouring channels of one pixel. A tile of neighbouring outputs keeps
// its sums in registers over all taps; an input pixel is loaded once a row of the kernel and goes into every sum that it reaches.
// Pixels outside the image are skipped, so nothing is padded or copied. Bound by multiply-adds where the image lies in the cache,
// by reading the image where it does not. Needs kernels/post_op.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Registers of 512 bits: 7 x 2 sums, up to 7 x 2 weights, 2 of x: 30 of 32. Seven, because images of networks are 7, 14, 28, 56
// and 112 wide. With 16 registers, 4 x 2 sums; the weights are then operands in memory.
constexpr int kTilePixels = kWidth == 16 ? 7 : 4;
constexpr int64_t kTileStride = 2 * kWidth;  // of the buffer of sums, a pixel

// A group of rows of y is computed strip by strip of channels, so that weights stay in the first-level cache; meanwhile the next
// group's lines are asked for in the order of memory, which a strip's own accesses, a pixel apart, do not let the processor
// foresee. Two groups of x and of y fit a 1 MiB second-level cache.
constexpr int64_t kGroupBytes = 128 * 1024;

// What a tile's sums are made of. `x` is the tile's first input pixel in the first row of the kernel that lies inside the image;
// it may lie left of the image: only pixels whose bit in `valid` is set are read.
template <typename X>
struct DepthwiseTile {
  const X* x;
  int64_t row, pixel;         // elements
  int64_t kernel_rows;
  const float* weight;        // of the first row of the kernel
  int64_t second;             // floats between the weights of the two registers of a tap
  int64_t channels;           // to load, where the tile is one register wide
  uint64_t valid;
  // Where the sums go: into `sums` [pixel][vector][lane], to be finished from there, or where that is null into y, with bias and a
  // post-op that is one or two bounds.
  float* sums;
  const float* bias;          // or null
  float low, high;
  void* y;
  ElementType y_type;
  int64_t y_pixel, pixels;
};

// Two registers of channels in whatever order they come: bfloat16 as even and odd ones. Or one register in the channels' order.
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

// Even and odd lanes of a register's worth of pairs back side by side: the lower or the upper half of them.
template <int half, int... lane>
SLIPSTREAM_INLINE Vec side_by_side(Vec even, Vec odd, LaneList<lane...>) {
  return __builtin_shufflevector(even, odd, ((lane & 1) * kWidth + half * kWidth / 2 + lane / 2)...);
}

template <typename X, typename Y, int vectors>
SLIPSTREAM_INLINE void store_tile(const DepthwiseTile<X>& tile, Vec (&sums)[kTilePixels][vectors]) {
  const int64_t count = vectors == 2 ? kWidth : tile.channels;
  const Vec low = broadcast(tile.low), high = broadcast(tile.high);
  Vec bias[vectors] = {};
  if (tile.bias) {
    for (int v = 0; v < vectors; ++v) bias[v] = vectors == 2 ? load(tile.bias + v * kWidth) : load_first(tile.bias, count);
  }
  Y* y = static_cast<Y*>(tile.y);
#pragma GCC unroll 8
  for (int i = 0; i < kTilePixels; ++i, y += tile.y_pixel) {
    if (i >= tile.pixels) break;
    Vec ordered[vectors] = {sums[i][0]};
    if constexpr (vectors == 2) {
      ordered[0] = sizeof(X) == 2 ? side_by_side<0>(sums[i][0], sums[i][1], Lanes{}) : sums[i][0];
      ordered[1] = sizeof(X) == 2 ? side_by_side<1>(sums[i][0], sums[i][1], Lanes{}) : sums[i][1];
    }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      const Vec result = at_most(at_least(ordered[v] + bias[v], low), high);
      vectors == 2 ? store(y + v * kWidth, result) : store_first(y, count, result);
    }
  }
}

template <typename X, int vectors>
SLIPSTREAM_INLINE void end_tile(const DepthwiseTile<X>& tile, Vec (&sums)[kTilePixels][vectors]) {
  if (tile.sums) {
#pragma GCC unroll 8
    for (int i = 0; i < kTilePixels; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) store(tile.sums + i * kTileStride + v * kWidth, sums[i][v]);
    }
  } else if (tile.y_type == ElementType::bfloat16) {
    store_tile<X, uint16_t>(tile, sums);
  } else {
    store_tile<X, float>(tile, sums);
  }
}

// A tile of a kernel of `kernel_width` columns that lie side by side. `inside`: all columns are valid.
template <typename X, int vectors, int kernel_width, int stride, bool inside>
void sum_tile(const DepthwiseTile<X>& tile) {
  constexpr int columns = (kTilePixels - 1) * stride + kernel_width;
  Vec sums[kTilePixels][vectors] = {};
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
  end_tile(tile, sums);
}

// The same for any kernel, stride and dilation, tap by tap. `column` is x's column under the tile's first output and first tap.
template <typename X, int vectors>
void sum_tile_of_any(const DepthwiseCall& call, const DepthwiseTile<X>& tile, int64_t column) {
  Vec sums[kTilePixels][vectors] = {};
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
  end_tile(tile, sums);
}

template <typename X>
using SumTile = void (*)(const DepthwiseTile<X>&);

// The kernels for the call's columns, or none where only sum_tile_of_any will do.
template <typename X>
struct SumTiles {
  SumTile<X> inside = nullptr, at_edge = nullptr;
};

template <typename X, int vectors, int kernel_width, int stride>
constexpr SumTiles<X> kSumTiles = {sum_tile<X, vectors, kernel_width, stride, vectors == 2>,
                                   sum_tile<X, vectors, kernel_width, stride, false>};

template <typename X, int vectors>
SumTiles<X> sum_tiles_for(const DepthwiseCall& call) {
  if (call.dilation_width != 1) return {};
  if (call.stride_width == 1) {
    if (call.kernel_width == 3) return kSumTiles<X, vectors, 3, 1>;
    if (call.kernel_width == 5) return kSumTiles<X, vectors, 5, 1>;
    if (call.kernel_width == 7) return kSumTiles<X, vectors, 7, 1>;
  } else if (call.stride_width == 2) {
    if (call.kernel_width == 3) return kSumTiles<X, vectors, 3, 2>;
    if (call.kernel_width == 5) return kSumTiles<X, vectors, 5, 2>;
  }
  return {};
}

// Where a tile's sums go: `pixels` outputs from (image, row, column) on, `channels` of them from `channel` on.
struct TileOfY {
  int64_t image, row, column, pixels, channel, channels;
};

template <PostOp op, typename Y, int vectors, bool split>
void finish_pixels(const DepthwiseCall& call, const TileOfY& to, const float* sums) {
  Y* y = static_cast<Y*>(call.y) + ((to.image * call.out_height + to.row) * call.out_width + to.column) * call.channels + to.channel;
  const Images& residual = call.residual;
  int64_t beside = to.image * residual.image + to.row * residual.row + to.column * residual.pixel + to.channel;
  const int64_t count = vectors == 2 ? kWidth : to.channels;
  Vec bias[vectors] = {};
  if (call.bias) {
    for (int v = 0; v < vectors; ++v) bias[v] = load_element_partly(call.bias, ElementType::float32, to.channel + v * kWidth, count);
  }
  for (int64_t i = 0; i < to.pixels; ++i, sums += kTileStride, y += call.channels, beside += residual.pixel) {
    Vec sum[vectors];
    sum[0] = load(sums);
    if constexpr (vectors == 2) {
      const Vec a = sum[0], b = load(sums + kWidth);
      sum[0] = split ? side_by_side<0>(a, b, Lanes{}) : a;
      sum[1] = split ? side_by_side<1>(a, b, Lanes{}) : b;
    }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      sum[v] += bias[v];
      if (residual.data) {
        sum[v] += vectors == 2 ? load_element(residual.data, residual.type, beside + v * kWidth)
                               : load_element_partly(residual.data, residual.type, beside, count);
      }
      const Vec result = post_op<op>(sum[v]);
      vectors == 2 ? store(y + v * kWidth, result) : store_first(y, count, result);
    }
  }
}

template <int vectors, bool split>
void finish_tile_of_y(const DepthwiseCall& call, const TileOfY& to, const float* sums) {
  with_post_op(call.post_op, [&](auto tag) {
    constexpr PostOp op = decltype(tag)::value;
    call.y_type == ElementType::bfloat16 ? finish_pixels<op, uint16_t, vectors, split>(call, to, sums)
                                         : finish_pixels<op, float, vectors, split>(call, to, sums);
  });
}

// Whether the post-op is bounds on the value, and nothing else comes after bias.
inline bool bounds_of(const DepthwiseCall& call, float& low, float& high) {
  low = call.post_op == PostOp::none ? -__builtin_inff() : 0.f;
  high = call.post_op == PostOp::relu6 ? 6.f : __builtin_inff();
  return !call.residual.data && (call.post_op == PostOp::none || call.post_op == PostOp::relu || call.post_op == PostOp::relu6);
}

// Lines of memory that will be needed, asked for a few at a time.
struct Ahead {
  const char *x = nullptr, *x_end = nullptr, *y = nullptr, *y_end = nullptr;
  int64_t x_step = 0, y_step = 0;  // bytes a call

  SLIPSTREAM_INLINE void ask() {
    for (const char* stop = x + x_step; x < stop && x < x_end; x += 64) __builtin_prefetch(x, 0, 2);
    for (const char* stop = y + y_step; y < stop && y < y_end; y += 64) __builtin_prefetch(y, 1, 2);
  }
};

// Rows [begin, end) of y of one image.
struct RowGroup {
  int64_t image, begin, end;
};

// Of `group`, `channels` channels from `channel` on: two registers of them, or one and perhaps not all of it.
template <typename X, int vectors>
void depthwise_strip(const DepthwiseCall& call, const RowGroup& group, int64_t channel, int64_t channels, Ahead& ahead) {
  constexpr bool split = sizeof(X) == 2 && vectors == 2;
  const SumTiles<X> kernels = sum_tiles_for<X, vectors>(call);
  const int64_t in_block = channel % kBlockChannels, block = channel - in_block;
  const float* weight = (split ? call.split_weight() + in_block / 2 : call.weight + in_block) + block * call.taps();
  DepthwiseTile<X> tile{};
  tile.row = call.x.row * call.dilation_height;
  tile.pixel = call.x.pixel;
  tile.second = split ? kBlockChannels / 2 : kWidth;
  tile.channels = channels;
  alignas(64) float sums[kTilePixels * kTileStride];
  const bool direct = bounds_of(call, tile.low, tile.high);
  tile.sums = direct ? nullptr : sums;
  tile.bias = call.bias ? call.bias + channel : nullptr;
  tile.y_type = call.y_type;
  tile.y_pixel = call.channels;
  const int64_t columns = (kTilePixels - 1) * call.stride_width + call.kernel_width;
  const int64_t pixels = call.out_width < kTilePixels ? call.out_width : kTilePixels, y_size = call.y_type == ElementType::float32 ? 4 : 2;
  tile.pixels = pixels;
  for (int64_t h = group.begin; h < group.end; ++h) {
    const int64_t top = h * call.stride_height - call.padding_height, step = call.dilation_height;
    const int64_t above = top < 0 ? (-top + step - 1) / step : 0;
    int64_t below = top < call.height ? (call.height - top + step - 1) / step : 0;
    if (below > call.kernel_height) below = call.kernel_height;
    tile.kernel_rows = below > above ? below - above : 0;
    tile.weight = weight + above * call.kernel_width * kBlockChannels;
    const X* row = static_cast<const X*>(call.x.data) + group.image * call.x.image + (top + above * step) * call.x.row + channel;
    for (int64_t w = 0; w < call.out_width; w += kTilePixels) {
      w = w + pixels <= call.out_width ? w : call.out_width - pixels;  // the last tile begins earlier rather than be cut short
      ahead.ask();
      const int64_t left = w * call.stride_width - call.padding_width, right = call.width - left;
      tile.x = row + left * call.x.pixel;
      const int64_t to = ((group.image * call.out_height + h) * call.out_width + w) * call.channels + channel;
      tile.y = static_cast<char*>(call.y) + to * y_size;
      if (!kernels.inside) {
        sum_tile_of_any<X, vectors>(call, tile, left);
      } else if (left >= 0 && right >= columns) {
        tile.valid = ~uint64_t{0};
        kernels.inside(tile);
      } else {
        const int64_t first = left < 0 ? (-left < columns ? -left : columns) : 0;
        const int64_t last = right < columns ? (right > 0 ? right : 0) : columns;
        tile.valid = ((uint64_t{1} << last) - 1) & ~((uint64_t{1} << first) - 1);
        kernels.at_edge(tile);
      }
      if (!direct) finish_tile_of_y<vectors, split>(call, {group.image, h, w, pixels, channel, channels}, sums);
    }
  }
}

// Splits rows of y, counted through all images, into groups.
class RowGroups {
 public:
  RowGroups(const DepthwiseCall& call, int64_t end) : call_(call), end_(end) {
    const int64_t row_bytes = call.width * call.channels * (call.x.type == ElementType::float32 ? 4 : 2) * call.stride_height;
    together_ = kGroupBytes / (row_bytes + 1) + 1;
  }

  // From row `row` on; empty at the end.
  RowGroup at(int64_t row) const {
    const int64_t image = row / call_.out_height, begin = row % call_.out_height;
    int64_t stop = begin + together_ < call_.out_height ? begin + together_ : call_.out_height;
    if (stop - begin > end_ - row) stop = begin + end_ - row;
    return {image, begin, stop};
  }

  // What `group` will read and write, in `calls` shares.
  Ahead ahead(const RowGroup& group, int64_t calls) const {
    Ahead ahead;
    if (group.end <= group.begin || call_.x.pixel != call_.channels) return ahead;
    const int64_t reach = (call_.kernel_height - 1) * call_.dilation_height;
    int64_t top = group.begin * call_.stride_height - call_.padding_height;
    int64_t bottom = (group.end - 1) * call_.stride_height - call_.padding_height + reach + 1;
    if (group.begin > 0) top += reach + 1 - call_.stride_height;  // the group before has read the rest
    top = top < 0 ? 0 : top;
    bottom = bottom > call_.height ? call_.height : bottom;
    const int64_t x_size = call_.x.type == ElementType::float32 ? 4 : 2, y_size = call_.y_type == ElementType::float32 ? 4 : 2;
    const char* x = static_cast<const char*>(call_.x.data) + group.image * call_.x.image * x_size;
    ahead.x = x + top * call_.x.row * x_size;
    ahead.x_end = x + bottom * call_.x.row * x_size;
    const int64_t line = call_.out_width * call_.channels * y_size;
    ahead.y = static_cast<const char*>(call_.y) + (group.image * call_.out_height + group.begin) * line;
    ahead.y_end = ahead.y + (group.end - group.begin) * line;
    ahead.x_step = round_up((ahead.x_end - ahead.x) / calls + 1, 64);
    ahead.y_step = round_up((ahead.y_end - ahead.y) / calls + 1, 64);
    return ahead;
  }

 private:
  const DepthwiseCall& call_;
  int64_t end_, together_;
};

template <typename X>
void depthwise_of(const DepthwiseCall& call, const DepthwisePart& part) {
  const RowGroups groups(call, part.row_end);
  const int64_t first = part.block_begin * kBlockChannels, blocks_end = part.block_end * kBlockChannels;
  const int64_t last = blocks_end < call.channels ? blocks_end : call.channels;
  const int64_t strips = (last - first + 2 * kWidth - 1) / (2 * kWidth), tiles = (call.out_width + kTilePixels - 1) / kTilePixels;
  for (int64_t row = part.row_begin; row < part.row_end;) {
    const RowGroup group = groups.at(row);
    const int64_t rows = group.end - group.begin;
    Ahead ahead = row + rows < part.row_end ? groups.ahead(groups.at(row + rows), rows * strips * tiles) : Ahead{};
    int64_t c = first;
    for (; c + 2 * kWidth <= last; c += 2 * kWidth) depthwise_strip<X, 2>(call, group, c, 2 * kWidth, ahead);
    for (; c < last; c += kWidth) depthwise_strip<X, 1>(call, group, c, last - c < kWidth ? last - c : kWidth, ahead);
    row += rows;
  }
}

inline void depthwise_last(const DepthwiseCall& call, const DepthwisePart& part) {
  call.x.type == ElementType::bfloat16 ? depthwise_of<uint16_t>(call, part) : depthwise_of<float>(call, part);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
