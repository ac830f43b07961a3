// SPDX-License-Identifier: Apache-2.0
// Direct convolution, channels last, on tiles, for bfloat16 weights: 16 neighbouring outputs are a tile's rows, and each tap
// loads them from where they lie in the copied image, at one stride. Two rows of tiles by two columns of tiles, passes of
// depth 256 and sums between passes as in amx/linear.h, which this needs. float32 weights take the vector kernel,
// in parts that of convolution_last_split.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// A cache line of 16 places is multiplied by a panel in two products of 16 cycles: two a place, as long as copying its line
// takes.
constexpr int64_t kTileLineProduct = 1;

// Shorter stretches by twos rather than one left over: its two sums would wait for each other, as in linear's multiply_1x4.
constexpr Cut kTileCut = {kTileRows, 2};

// Rows of tiles whose sums are kept between passes: 32 KiB.
constexpr int64_t kTileStretches = kTileBlockRows / kTileRows;

// Where each tile's depth begins in the image, from an output's place on; a panel has them in this order.
inline int64_t find_tile_depth(const ConvolutionLastCall& call, const LastImage& image, int64_t* offsets) {
  const int64_t tiles = packed_depth(ElementType::bfloat16, image.depth) / kTileDepth;
  int64_t found = 0;
  for (int64_t row = 0; row < call.kernel_height; ++row) {
    for (int64_t column = 0; column < call.kernel_width; column += image.across) {
      const int64_t x = tap_offset(call, image, row, column);
      for (int64_t t = 0; t < tiles; ++t) offsets[found++] = x + t * kTileDepth;
    }
  }
  return found;
}

// sums of two stretches (each [16][32], one behind the other) and one panel over `tiles` tiles of depth; `first` starts from
// zero.
inline void convolve_2x2(const uint16_t* x0, const uint16_t* x1, int64_t x_bytes, const int64_t* offsets, const uint16_t* w,
                         int64_t tiles, float* sums, bool first) {
  constexpr int64_t kSumsStride = kPanelColumns * 4, kWeightStride = kPanelColumns * 4;
  float* below = sums + kTileRows * kPanelColumns;
  if (first) {
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
  } else {
    tile_load(0, sums, kSumsStride);
    tile_load(1, sums + 16, kSumsStride);
    tile_load(2, below, kSumsStride);
    tile_load(3, below + 16, kSumsStride);
  }
  for (int64_t t = 0; t < tiles; ++t) {
    const uint16_t* columns = w + t * kTileDepth * kPanelColumns;
    tile_load(4, x0 + offsets[t], x_bytes);
    tile_load(6, columns, kWeightStride);
    tile_dot_bf16(0, 4, 6);
    tile_load(7, columns + 32, kWeightStride);
    tile_dot_bf16(1, 4, 7);
    tile_load(5, x1 + offsets[t], x_bytes);
    tile_dot_bf16(2, 5, 6);
    tile_dot_bf16(3, 5, 7);
  }
  tile_store(0, sums, kSumsStride);
  tile_store(1, sums + 16, kSumsStride);
  tile_store(2, below, kSumsStride);
  tile_store(3, below + 16, kSumsStride);
}

// One stretch against one panel, over the whole depth.
inline void convolve_1x2(const uint16_t* x, int64_t x_bytes, const int64_t* offsets, const uint16_t* w, int64_t tiles,
                         float* sums) {
  constexpr int64_t kSumsStride = kPanelColumns * 4, kWeightStride = kPanelColumns * 4;
  tile_zero(0);
  tile_zero(1);
  for (int64_t t = 0; t < tiles; ++t) {
    const uint16_t* columns = w + t * kTileDepth * kPanelColumns;
    tile_load(4, x + offsets[t], x_bytes);
    tile_load(6, columns, kWeightStride);
    tile_dot_bf16(0, 4, 6);
    tile_load(7, columns + 32, kWeightStride);
    tile_dot_bf16(1, 4, 7);
  }
  tile_store(0, sums, kSumsStride);
  tile_store(1, sums + 16, kSumsStride);
}

// sums [count][16][32] of stretches and one panel.
inline void convolve_panel(const Stretch<uint16_t>* stretches, int64_t count, int64_t x_bytes, const int64_t* offsets,
                           const uint16_t* w, int64_t depth_tiles, float* sums) {
  constexpr int64_t kTileSums = kTileRows * kPanelColumns;
  for (int64_t t = 0; t < depth_tiles; t += kPassTiles) {
    const int64_t tiles = depth_tiles - t < kPassTiles ? depth_tiles - t : kPassTiles;
    for (int64_t s = 0; s + 2 <= count; s += 2) {
      convolve_2x2(stretches[s].x, stretches[s + 1].x, x_bytes, offsets + t, w + t * kTileDepth * kPanelColumns, tiles,
                   sums + s * kTileSums, t == 0);
    }
  }
  if (count % 2) convolve_1x2(stretches[count - 1].x, x_bytes, offsets, w, depth_tiles, sums + (count - 1) * kTileSums);
}

struct TilePlan {
  LastImage image;
  LastScratch scratch;

  TilePlan(const ConvolutionLastCall& call, const LinearPart& part)
      : image(last_image<uint16_t>(call, part.m_end - part.m_begin, tile_block_bytes(), kTileLineProduct)) {
    const int64_t depth_tiles = call.taps() / image.across * packed_depth(ElementType::bfloat16, image.depth) / kTileDepth;
    scratch = last_scratch<uint16_t>(call, image, kTileCut, kTileBlockRows * kPanelColumns, depth_tiles);
  }
};

inline void tile_convolution(const ConvolutionLastCall& call, const LinearPart& part, void* scratch) {
  const TilePlan plan(call, part);
  char* memory = static_cast<char*>(scratch);
  float* sums = reinterpret_cast<float*>(memory + plan.scratch.sums);
  int64_t* offsets = reinterpret_cast<int64_t*>(memory + plan.scratch.products);
  const int64_t depth_tiles = find_tile_depth(call, plan.image, offsets), x_bytes = plan.image.position * 2;
  const uint16_t* weight = static_cast<const uint16_t*>(call.linear.weight);
  for_each_block_of_rows<uint16_t>(
      call, plan.image, plan.scratch, kTileCut, part.m_begin, part.m_end, scratch,
      [&](const Stretch<uint16_t>* stretches, int64_t stretch_count) {
        int64_t most = 0;
        for (int64_t s = 0; s < stretch_count; ++s) most = stretches[s].count > most ? stretches[s].count : most;
        open_tiles(static_cast<int>(most));
        for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel) {
          for (int64_t first = 0; first < stretch_count; first += kTileStretches) {
            const int64_t count = stretch_count - first < kTileStretches ? stretch_count - first : kTileStretches;
            const uint16_t* w = weight + panel * call.panel_elements();
            convolve_panel(stretches + first, count, x_bytes, offsets, w, depth_tiles, sums);
            for (int64_t s = 0; s < count; ++s) {
              finish_stretch(call, plan.image, stretches[first + s], sums + s * kTileRows * kPanelColumns, panel);
            }
          }
        }
        close_tiles();
      });
}

inline size_t amx_convolution_last_scratch(const ConvolutionLastCall& call, const LinearPart& part) {
  return call.linear.weight_type == ElementType::bfloat16 ? static_cast<size_t>(TilePlan(call, part).scratch.bytes)
                                                          : convolution_last_scratch(call, part);
}

inline void amx_convolution_last(const ConvolutionLastCall& call, const LinearPart& part, void* scratch) {
  call.linear.weight_type == ElementType::bfloat16 ? tile_convolution(call, part, scratch)
                                                   : convolution_last(call, part, scratch);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
