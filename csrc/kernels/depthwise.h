// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution, channels last: which tiles there are, in which order they are computed, and what is asked for ahead. Bound
// by multiply-adds where the image lies in the cache, by reading it where it does not. Needs kernels/depthwise_tile.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

template <int number>
struct Number {
  static constexpr int value = number;
};

// A group of rows of y is computed strip by strip of channels, so that weights stay in the first-level cache; meanwhile the next
// group's lines are asked for in the order of memory, which a strip's own accesses, a pixel apart, do not let the processor
// foresee. Two groups of x and of y fit the second-level cache.
inline int64_t group_bytes() { return second_level_cache() / 8; }

template <typename X>
using SumTile = void (*)(const DepthwiseTile<X>&);

// The tile kernels for a call, none where only sum_tile_of_any will do, and what they want of weights.
template <typename X>
struct SumTiles {
  SumTile<X> inside = nullptr, at_edge = nullptr;
  Order order;
  const float* weight;  // of the first block
  int64_t taps, row;    // steps of kBlockChannels floats: of the whole kernel, of a row of it
};

template <int kernel_width, typename X>
bool use_paired(const DepthwiseCall& call, SumTiles<X>& tiles) {
#ifdef SLIPSTREAM_DOT_BF16
  if constexpr (sizeof(X) == 2) {
    const int64_t steps = pair_steps(kernel_width);
    tiles = {sum_tile_paired<kernel_width, true>, sum_tile_paired<kernel_width, false>, Order::paired, call.paired_weight(),
             call.kernel_height * steps, steps};
    return true;
  }
#endif
  (void)call;
  (void)tiles;
  return false;
}

template <typename X, int vectors>
SumTiles<X> sum_tiles_for(const DepthwiseCall& call) {
  constexpr Order order = kWidenedOrder<X, vectors>;
  SumTiles<X> tiles = {nullptr, nullptr, order, order == Order::split ? call.split_weight() : call.weight, call.taps(),
                       call.kernel_width};
  auto use = [&](auto width, auto stride) {
    tiles.inside = sum_tile<X, vectors, decltype(width)::value, decltype(stride)::value, vectors == 2>;
    tiles.at_edge = sum_tile<X, vectors, decltype(width)::value, decltype(stride)::value, false>;
    return tiles;
  };
  if (call.dilation_width != 1) return tiles;
  if (call.stride_width == 1) {
    if (call.kernel_width == 3) return use(Number<3>{}, Number<1>{});
    if (call.kernel_width == 5) return vectors == 2 && use_paired<5>(call, tiles) ? tiles : use(Number<5>{}, Number<1>{});
    if (call.kernel_width == 7) return vectors == 2 && use_paired<7>(call, tiles) ? tiles : use(Number<7>{}, Number<1>{});
  } else if (call.stride_width == 2) {
    if (call.kernel_width == 3) return use(Number<3>{}, Number<2>{});
    if (call.kernel_width == 5) return use(Number<5>{}, Number<2>{});
  }
  return tiles;
}

// Where a tile's sums go: `pixels` outputs from (image, row, column) on, `channels` of them from `channel` on.
struct TileOfY {
  int64_t image, row, column, pixels, channel, channels;
};

template <PostOp op, typename Y, int vectors>
void finish_pixels(const DepthwiseCall& call, const TileOfY& to, const float* sums) {
  Y* y = static_cast<Y*>(call.y) + ((to.image * call.out_height + to.row) * call.out_width + to.column) * call.channels + to.channel;
  const Images& residual = call.residual;
  int64_t beside = to.image * residual.image + to.row * residual.row + to.column * residual.pixel + to.channel;
  for (int64_t i = 0; i < to.pixels; ++i, sums += kTileChannels, y += call.channels, beside += residual.pixel) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      Vec sum = load(sums + v * kWidth);
      if (residual.data) {
        sum += vectors == 2 ? load_element(residual.data, residual.type, beside + v * kWidth)
                            : load_element_partly(residual.data, residual.type, beside, to.channels);
      }
      const Vec result = post_op_into<op>(call.y_type, sum);
      vectors == 2 ? store(y + v * kWidth, result) : store_first(y, to.channels, result);
    }
  }
}

template <int vectors>
void finish_tile_of_y(const DepthwiseCall& call, const TileOfY& to, const float* sums) {
  with_post_op(call.post_op, [&](auto tag) {
    constexpr PostOp op = decltype(tag)::value;
    call.y_type == ElementType::bfloat16 ? finish_pixels<op, uint16_t, vectors>(call, to, sums)
                                         : finish_pixels<op, float, vectors>(call, to, sums);
  });
}

// Whether what comes after the bias is bounds on the value and nothing else.
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
  const SumTiles<X> kernels = sum_tiles_for<X, vectors>(call);
  const bool split = kernels.order == Order::split;
  const int64_t in_block = channel % kBlockChannels;
  const float* weight = kernels.weight + (channel - in_block) * kernels.taps + (split ? in_block / 2 : in_block);
  DepthwiseTile<X> tile{};
  tile.row = call.x.row * call.dilation_height;
  tile.pixel = call.x.pixel;
  tile.second = split ? kBlockChannels / 2 : kWidth;
  tile.channels = channels;
  alignas(64) float sums[kTilePixels * kTileChannels], bias[kTileChannels] = {};
  for (int64_t c = 0; call.bias && c < channels; ++c) bias[slot_of(kernels.order, c)] = call.bias[channel + c];
  const bool direct = bounds_of(call, tile.low, tile.high);
  tile.sums = direct ? nullptr : sums;
  tile.bias = bias;
  tile.y_type = call.y_type;
  tile.y_pixel = call.channels;
  const int64_t columns = (kTilePixels - 1) * call.stride_width + call.kernel_width;
  const int64_t pixels = call.out_width < kTilePixels ? call.out_width : kTilePixels, y_size = call.y_type == ElementType::float32 ? 4 : 2;
  tile.pixels = pixels;
  for (int64_t h = group.begin; h < group.end; ++h) {
    const int64_t top = h * call.stride_height - call.padding_height;
    const TapRange taps = taps_inside(top, call.height, call.dilation_height, call.kernel_height);
    tile.kernel_rows = taps.last - taps.first;
    tile.weight = weight + taps.first * kernels.row * kBlockChannels;
    const X* row = static_cast<const X*>(call.x.data) + group.image * call.x.image + (top + taps.first * call.dilation_height) * call.x.row + channel;
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
      if (!direct) finish_tile_of_y<vectors>(call, {group.image, h, w, pixels, channel, channels}, sums);
    }
  }
}

// Splits rows of y, counted through all images, into groups.
class RowGroups {
 public:
  RowGroups(const DepthwiseCall& call, int64_t end) : call_(call), end_(end) {
    const int64_t row_bytes = call.width * call.channels * (call.x.type == ElementType::float32 ? 4 : 2) * call.stride_height;
    together_ = group_bytes() / (row_bytes + 1) + 1;
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
void depthwise_of(const DepthwiseCall& call, const RowsPart& part) {
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

inline void depthwise_last(const DepthwiseCall& call, const RowsPart& part) {
  call.x.type == ElementType::bfloat16 ? depthwise_of<uint16_t>(call, part) : depthwise_of<float>(call, part);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
