// SPDX-License-Identifier: Apache-2.0
// Winograd convolution, channels last, on vector registers; see kernels/winograd_call.h for the algorithm and the layout.
// A block of tiles is transformed into scratch memory, [point][tile][channel]; each point is then a matrix product with its
// panels of weights, by linear's strips, into sums [point][panel][tile][32]; the sums of a tile are transformed back and go
// through bias, residual and post-op into y. Needs kernels/linear_vector.h and kernels/winograd_transform.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// How a part is walked: `tiles` tiles at a time; for each such block of them, panel by panel.
struct WinogradBlock {
  int64_t tiles;
  int64_t row;         // elements from one tile's channels to the next tile's
  int64_t point;       // elements from one point to the next in the transformed input
  int64_t sums_point;  // floats from one point to the next in the sums
};

// At least this many strips a block, though its input may then reach into the third-level cache: a panel's weights are read from
// there too, once a block, and would otherwise be read more often than they are multiplied.
constexpr int64_t kLeastStrips = 3;

template <Step step>
WinogradBlock winograd_block(const WinogradCall& call, int64_t tiles) {
  using X = typename StepOf<step>::X;
  constexpr int64_t line = 64 / sizeof(X);
  WinogradBlock block;
  block.row = x_stride_of<step>(call.in_channels);
  const int64_t tile_bytes = call.points() * block.row * static_cast<int64_t>(sizeof(X));
  int64_t most = block_bytes() / tile_bytes / kStripRows * kStripRows;
  if (most < kLeastStrips * kStripRows) most = kLeastStrips * kStripRows;
  const int64_t blocks = (tiles + most - 1) / most;
  block.tiles = blocks <= 1 ? tiles : round_up((tiles + blocks - 1) / blocks, kStripRows);
  // An odd number of cache lines apart: the points of a tile are written and read together, from different sets of the caches.
  block.point = (block.tiles * block.row / line | 1) * line;
  block.sums_point = block.tiles * kPanelColumns + 16;
  return block;
}

// Transformed pixels become integers a point and a tile at a time, each scaled by its own largest: all points are known first, as
// floats, and what they are put back by is another for each.
template <Step step>
constexpr bool kFitsPoints = step == Step::int16;

// Where in scratch memory, in bytes: a line of zeros, which stands for pixels outside the image, comes first.
template <Step step>
struct WinogradPlan {
  WinogradBlock block;
  int64_t input, sums, back, tile, bytes;  // the last two: one tile's points before they are fitted, and all
  int64_t tile_point;                      // floats from one of those points to the next

  WinogradPlan(const WinogradCall& call, int64_t tiles) : block(winograd_block<step>(call, tiles)) {
    const int64_t points = call.points();
    tile_point = kFitsPoints<step> ? (round_up(call.in_channels, 16) / 16 | 1) * 16 : 0;  // an odd number of lines, as above
    input = round_up(call.in_channels * 4, 64);
    sums = input + points * block.point * static_cast<int64_t>(sizeof(typename StepOf<step>::X));
    back = sums + points * block.sums_point * 4;
    tile = back + round_up(block.tiles * (kFitsPoints<step> ? points : 1) * 4, 64);
    bytes = tile + points * tile_point * 4;
  }
};

template <Step step>
size_t winograd_scratch_of(const WinogradCall& call, const LinearPart& part) {
  return static_cast<size_t>(WinogradPlan<step>(call, part.m_end - part.m_begin).bytes);
}

// How far ahead outputs are asked for: two tiles take about 1000 cycles, a line from memory about 400.
constexpr int64_t kTilesAhead = 2;

// A tile's place: its image, and the first row and column of its outputs.
struct TilePlace {
  int64_t image, row, column;
};

inline TilePlace place_of(const WinogradCall& call, int64_t index) {
  const int64_t across = call.tiles_across(), of_image = call.tiles_down() * across;
  const int64_t image = index / of_image, in_image = index - image * of_image;
  return {image, in_image / across * call.tile, in_image % across * call.tile};
}

// kWidth channels of one tile (or fewer, where `load_pixel` fills up with zeros): to[point * stride].
template <int tile, typename X, typename Load>
SLIPSTREAM_INLINE void transform_input(const Load& load_pixel, X* to, int64_t stride) {
  constexpr int n = tile + 2;
  Vec half[n][n];  // transformed along columns; by column
#pragma GCC unroll 8
  for (int j = 0; j < n; ++j) {
    Vec d[n];
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) d[i] = load_pixel(i, j);
    WinogradTransform<tile>::input(d, half[j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    Vec d[n], v[n];
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j) d[j] = half[j][i];
    WinogradTransform<tile>::input(d, v);
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j) store(to + (i * n + j) * stride, v[j]);
  }
}

// Where the pixels are that a tile sees: in the image, or in the line of zeros.
template <int tile, typename Pixel>
using PixelTable = const Pixel* [tile + 2][tile + 2];

template <int tile, typename Pixel>
void find_pixels(const WinogradCall& call, int64_t index, const Pixel* zeros, PixelTable<tile, Pixel>& pixels) {
  constexpr int n = tile + 2;
  const TilePlace place = place_of(call, index);
  for (int i = 0; i < n; ++i) {
    const int64_t row = place.row + i - call.padding_height;
    const bool row_inside = row >= 0 && row < call.height;
    for (int j = 0; j < n; ++j) {
      const int64_t column = place.column + j - call.padding_width;
      const bool inside = row_inside && column >= 0 && column < call.width;
      const int64_t at = ((place.image * call.height + row) * call.width + column) * call.in_channels;
      pixels[i][j] = inside ? static_cast<const Pixel*>(call.x) + at : zeros;
    }
  }
}

// All channels of one tile: to[point * stride + channel]. The pixels of the next tile are asked for meanwhile: they lie in short pieces,
// of one pixel's channels or a few, which the processor does not foresee.
template <int tile, Step step, typename Pixel, typename To>
SLIPSTREAM_INLINE void transform_tile(const WinogradCall& call, const PixelTable<tile, Pixel>& pixels,
                                      const PixelTable<tile, Pixel>& next, int64_t image, To* to, int64_t stride) {
  constexpr int n = tile + 2;
  const Vec scale = broadcast(step == Step::half ? call.scales[image].scale : 1.f);
  auto fitted = [&](Vec pixel) { return step == Step::half ? pixel * scale : pixel; };
  int64_t c = 0;
  for (; c + kWidth <= call.in_channels; c += kWidth) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
#pragma GCC unroll 8
      for (int j = 2; j < n; ++j) __builtin_prefetch(next[i][j] + c);
    }
    transform_input<tile>([&](int i, int j) { return fitted(load(pixels[i][j] + c)); }, to + c, stride);
  }
  const int64_t left = call.in_channels - c;
  if (left > 0) {
    transform_input<tile>([&](int i, int j) { return fitted(load_first(pixels[i][j] + c, left)); }, to + c, stride);
  }
}

// The scratch memory of a part.
template <Step step>
struct WinogradScratch {
  using X = typename StepOf<step>::X;
  X* input;     // [point][tile][channel]
  float *sums;  // [point][tile][32], of one panel
  float *back;  // [tile], or [point][tile]: what products are put back by
  float *tile;  // [point][channel], of one tile

  WinogradScratch(void* scratch, const WinogradPlan<step>& plan) {
    char* bytes = static_cast<char*>(scratch);
    input = reinterpret_cast<X*>(bytes + plan.input);
    sums = reinterpret_cast<float*>(bytes + plan.sums);
    back = reinterpret_cast<float*>(bytes + plan.back);
    tile = reinterpret_cast<float*>(bytes + plan.tile);
  }
};

// The points of the block's tile t from scratch.tile, as integers. False where they do not fit.
template <int tile, Step step>
bool fit_points(const WinogradCall& call, const WinogradPlan<step>& plan, const WinogradScratch<step>& scratch, int64_t t) {
  constexpr int64_t n = tile + 2;
  return fit_rows_together(scratch.tile, plan.tile_point, n * n, call.in_channels, n + 1, scratch.input + t * plan.block.row,
                           plan.block.point, scratch.back + t, plan.block.tiles);
}

// Tiles [begin, begin + tiles) into scratch.input.
template <int tile, Step step, typename Pixel>
void transform_tiles(const WinogradCall& call, const WinogradPlan<step>& plan, const WinogradScratch<step>& scratch, int64_t begin,
                     int64_t tiles, const Pixel* zeros) {
  PixelTable<tile, Pixel> tables[2];
  find_pixels<tile>(call, begin, zeros, tables[0]);
  for (int64_t t = 0; t < tiles; ++t) {
    const auto& pixels = tables[t % 2];
    auto& next = tables[(t + 1) % 2];
    find_pixels<tile>(call, t + 1 < tiles ? begin + t + 1 : begin + t, zeros, next);
    const int64_t image = place_of(call, begin + t).image;
    if constexpr (kFitsPoints<step>) {
      transform_tile<tile, step>(call, pixels, next, image, scratch.tile, plan.tile_point);
      if (!fit_points<tile>(call, plan, scratch, t)) __atomic_store_n(&call.misfits[image], 1, __ATOMIC_RELAXED);
    } else {
      transform_tile<tile, step>(call, pixels, next, image, scratch.input + t * plan.block.row, plan.block.point);
      if constexpr (kPutsBack<step>) scratch.back[t] = back_of_image<step>(call.scales, image);
    }
  }
}

// The outputs of one tile and one panel from their sums.
template <int tile, PostOp op>
SLIPSTREAM_INLINE void finish_winograd(const WinogradCall& call, const TilePlace& place, const float* sums, int64_t stride,
                                       int64_t panel) {
  constexpr int n = tile + 2;
  const int64_t rows = call.out_height - place.row, columns = call.out_width - place.column;
  const int64_t first = (place.image * call.out_height + place.row) * call.out_width + place.column;
  for (int64_t v = 0; v < kPanelColumns; v += kWidth) {
    const int64_t channel = panel * kPanelColumns + v;
    const int64_t count = call.out_channels - channel < kWidth ? call.out_channels - channel : kWidth;
    if (count <= 0) break;
    Vec half[n][tile];
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j) {
      Vec s[n];
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) s[i] = load(sums + (i * n + j) * stride + v);
      WinogradTransform<tile>::output(s, half[j]);
    }
    const Vec bias = !call.bias ? Vec{} : count == kWidth ? load(call.bias + channel) : load_first(call.bias + channel, count);
    Vec y[tile][tile];
#pragma GCC unroll 8
    for (int i = 0; i < tile; ++i) {
      Vec s[n];
#pragma GCC unroll 8
      for (int j = 0; j < n; ++j) s[j] = half[j][i];
      WinogradTransform<tile>::output(s, y[i]);
    }
    for (int i = 0; i < tile && i < rows; ++i) {
      for (int j = 0; j < tile && j < columns; ++j) {
        const int64_t at = (first + i * call.out_width + j) * call.out_channels + channel;
        Vec sum = y[i][j] + bias;
        if (call.residual) {
          sum += count == kWidth ? load_element(call.residual, call.residual_type, at)
                                 : load_element_partly(call.residual, call.residual_type, at, count);
        }
        store_element(call.y, call.y_type, at, count, post_op<op>(sum));
      }
    }
  }
}

// Asks for the lines that a tile's outputs are written to, and its residual read from.
template <int tile>
SLIPSTREAM_INLINE void ask_for_outputs(const WinogradCall& call, const TilePlace& place, int64_t panel) {
  const int64_t column = panel * kPanelColumns, left = call.out_width - place.column, pixels = left < tile ? left : tile;
  for (int i = 0; i < tile && i < call.out_height - place.row; ++i) {
    const int64_t begin = (place.image * call.out_height + place.row + i) * call.out_width + place.column, end = begin + pixels;
    ask_for_tile<Use::write>(call.y, call.y_type, call.out_channels, begin, end, column, kPanelColumns);
    if (call.residual) ask_for_tile<Use::soon>(call.residual, call.residual_type, call.out_channels, begin, end, column, kPanelColumns);
  }
}

// The sums of one panel.
template <Step step>
void multiply_points(const WinogradCall& call, const WinogradBlock& block, int64_t tiles, int64_t panel,
                     const WinogradScratch<step>& scratch) {
  const int64_t points = call.points(), strips = (tiles + kStripRows - 1) / kStripRows;
  const int64_t depth = StepOf<step>::depth, steps = (call.in_channels + depth - 1) / depth;
  const int64_t panel_bytes = panel_size(call.weight_type, call.in_channels) * (call.weight_type == ElementType::float32 ? 4 : 2);
  const int64_t share = panel_bytes / strips, stride = steps > 0 ? share / steps : 0;
  const uint8_t* w = static_cast<const uint8_t*>(call.weight) + panel * points * panel_bytes;
  for (int64_t point = 0; point < points; ++point, w += panel_bytes) {
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t begin = tiles * s / strips, end = tiles * (s + 1) / strips;
      float* sums = scratch.sums + point * block.sums_point + begin * kPanelColumns;
      Strips<step>::of[end - begin - 1](scratch.input + point * block.point + begin * block.row, block.row, w, panel_bytes, steps, sums,
                                        false, {w + panel_bytes + s * share, stride});
      if constexpr (kPutsBack<step>) {
        const float* back = scratch.back + begin + (kFitsPoints<step> ? point * block.tiles : 0);
        put_back(sums, end - begin, back, reinterpret_cast<const float*>(w + panel_bytes) - kPanelColumns);
      }
    }
  }
}

template <int tile, Step step>
void winograd_of(const WinogradCall& call, const LinearPart& part, void* zeros) {
  const WinogradPlan<step> plan(call, part.m_end - part.m_begin);
  const WinogradBlock& block = plan.block;
  const WinogradScratch<step> scratch(zeros, plan);
  __builtin_memset(zeros, 0, static_cast<size_t>(plan.input));

  for (int64_t m = part.m_begin; m < part.m_end; m += block.tiles) {
    const int64_t tiles = part.m_end - m < block.tiles ? part.m_end - m : block.tiles;
    if (call.x_type == ElementType::float32) {
      transform_tiles<tile, step>(call, plan, scratch, m, tiles, static_cast<const float*>(zeros));
    } else {
      transform_tiles<tile, step>(call, plan, scratch, m, tiles, static_cast<const uint16_t*>(zeros));
    }
    for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel) {
      multiply_points(call, block, tiles, panel, scratch);
      with_post_op(call.post_op, [&](auto op) {
        for (int64_t t = 0; t < tiles; ++t) {
          if (t + kTilesAhead < tiles) ask_for_outputs<tile>(call, place_of(call, m + t + kTilesAhead), panel);
          const float* from = scratch.sums + t * kPanelColumns;
          finish_winograd<tile, decltype(op)::value>(call, place_of(call, m + t), from, block.sums_point, panel);
        }
      });
    }
  }
}

#ifdef SLIPSTREAM_DOT_BF16
constexpr Step kWinogradStep = Step::dot_bf16;
#else
constexpr Step kWinogradStep = Step::widen_bf16;  // transformed tiles stay float32
#endif

inline size_t winograd_scratch(const WinogradCall& call, const LinearPart& part) {
  return call.weight_type == ElementType::bfloat16 ? winograd_scratch_of<kWinogradStep>(call, part)
                                                   : winograd_scratch_of<Step::float32>(call, part);
}

inline void winograd(const WinogradCall& call, const LinearPart& part, void* scratch) {
  if (call.weight_type == ElementType::bfloat16) return winograd_of<2, kWinogradStep>(call, part, scratch);
  call.tile == 4 ? winograd_of<4, Step::float32>(call, part, scratch) : winograd_of<2, Step::float32>(call, part, scratch);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
