// SPDX-License-Identifier: Apache-2.0
// Linear on tiles, for bfloat16 weights. x is copied once into tiles (16 rows x 32 k, 1 KiB each) that stay in the second-level
// cache; two rows of tiles by two columns of tiles are multiplied at a time, so that each loaded tile is used twice.
// float32 weights as they are take the vector kernel; split into bfloat16 parts, that of linear_split.h. Needs a tile vocabulary and
// kernels/linear_vector.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

constexpr int64_t kTileRows = 16, kTileDepth = 32, kTileElements = kTileRows * kTileDepth;

// What a tile's 64 bytes a row are: 32 bfloat16, summed in float32, or 64 int8 (u8 of x, s8 of the weight), summed in int32.
// Loops over tiles differ in the one instruction only; they are written in bfloat16's units of two bytes.
enum class TileDot { bf16, int8 };
#define SLIPSTREAM_TILE_DOT(sums, x, w)                        \
  do {                                                         \
    if constexpr (dot == TileDot::int8) tile_dot_int8(sums, x, w); \
    else tile_dot_bf16(sums, x, w);                            \
  } while (0)

// Depth of one pass. Weights of a pass, 32 columns x 256 x 2 bytes = 16 KiB, lie in a 32 KiB or 48 KiB first-level cache beside
// the tiles of x that stream through. Measured on random data, one core: 2.2-2.36 TFLOP/s at 256, 1.8 at 512, 1.37 at 768.
constexpr int64_t kPassTiles = 256 / kTileDepth;

// x of a block stays below five eighths of the second-level cache, 1.25 of 2 MiB; at most 256 rows, whose sums (256 x 32 floats)
// take 32 KiB.
constexpr int64_t kTileBlockRows = 256;
inline int64_t tile_block_bytes() { return second_level_cache() / 8 * 5; }

inline int64_t tile_block_rows(int64_t k, int64_t rows, int64_t bytes = tile_block_bytes()) {
  const int64_t row_bytes = packed_depth(ElementType::bfloat16, k) * 2;
  int64_t block = bytes / row_bytes / (2 * kTileRows) * (2 * kTileRows);
  if (block < 2 * kTileRows) block = 2 * kTileRows;
  if (block > kTileBlockRows) block = kTileBlockRows;
  if (rows <= block) return round_up(rows, kTileRows);
  const int64_t blocks = (rows + block - 1) / block;
  return round_up((rows + blocks - 1) / blocks, 2 * kTileRows);
}

// Copies rows [begin, begin + rows) of x into tiles [row of tiles][k / 32][16][32], zero-padded both ways.
inline void gather_tiles(const LinearCall& call, int64_t begin, int64_t rows, uint16_t* to, int64_t depth_tiles) {
  for (int64_t i = 0; i < round_up(rows, kTileRows); ++i) {
    uint16_t* line = to + (i / kTileRows * depth_tiles) * kTileElements + i % kTileRows * kTileDepth;
    for (int64_t t = 0; t < depth_tiles; ++t, line += kTileElements) {
      const int64_t left = i < rows ? call.k - t * kTileDepth : 0;
      const int64_t from = (begin + i) * call.x.stride + t * kTileDepth;
      for (int64_t j = 0; j < kTileDepth; j += kWidth) {
        Vec v{};
        if (left >= j + kWidth) {
          v = load_element(call.x.data, call.x.type, from + j);
        } else if (left > j) {
          v = load_element_partly(call.x.data, call.x.type, from + j, left - j);
        }
        store(line + j, v);
      }
    }
  }
}

// sums (stride 32 floats) of two rows of tiles and one panel, over one pass; `first` starts from zero. A row's tiles lie x_step
// elements apart.
template <TileDot dot>
inline void multiply_2x2(const uint16_t* x0, const uint16_t* x1, const uint16_t* w, int64_t tiles, float* sums, bool first,
                         int64_t x_step = kTileElements) {
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
    tile_load(4, x0 + t * x_step, 64);
    tile_load(6, columns, kWeightStride);
    SLIPSTREAM_TILE_DOT(0, 4, 6);
    tile_load(7, columns + 32, kWeightStride);
    SLIPSTREAM_TILE_DOT(1, 4, 7);
    tile_load(5, x1 + t * x_step, 64);
    SLIPSTREAM_TILE_DOT(2, 5, 6);
    SLIPSTREAM_TILE_DOT(3, 5, 7);
  }
  tile_store(0, sums, kSumsStride);
  tile_store(1, sums + 16, kSumsStride);
  tile_store(2, below, kSumsStride);
  tile_store(3, below + 16, kSumsStride);
}

// One row of tiles (16 rows of x or fewer) against one panel, over the whole depth or one pass of it.
template <TileDot dot>
inline void multiply_1x2(const uint16_t* x, const uint16_t* w, int64_t tiles, float* sums, bool first = true,
                         int64_t x_step = kTileElements) {
  constexpr int64_t kSumsStride = kPanelColumns * 4, kWeightStride = kPanelColumns * 4;
  if (first) {
    tile_zero(0);
    tile_zero(1);
  } else {
    tile_load(0, sums, kSumsStride);
    tile_load(1, sums + 16, kSumsStride);
  }
  for (int64_t t = 0; t < tiles; ++t) {
    const uint16_t* columns = w + t * kTileDepth * kPanelColumns;
    tile_load(4, x + t * x_step, 64);
    tile_load(6, columns, kWeightStride);
    SLIPSTREAM_TILE_DOT(0, 4, 6);
    tile_load(7, columns + 32, kWeightStride);
    SLIPSTREAM_TILE_DOT(1, 4, 7);
  }
  tile_store(0, sums, kSumsStride);
  tile_store(1, sums + 16, kSumsStride);
}

// The same against two panels at once, into sums[2][16][32]: a product's result is ready after 52 cycles and one can start every
// 16, so two sums alone would leave the unit idle. (Two sums over halves of the depth would do as well, but would make a
// row's last bits depend on how many rows are computed beside it.)
template <TileDot dot>
inline void multiply_1x4(const uint16_t* x, const uint16_t* w, int64_t panel_elements, int64_t tiles, float* sums) {
  constexpr int64_t kSumsStride = kPanelColumns * 4, kWeightStride = kPanelColumns * 4;
  float* second = sums + kTileRows * kPanelColumns;
  tile_zero(0);
  tile_zero(1);
  tile_zero(2);
  tile_zero(3);
  for (int64_t t = 0; t < tiles; ++t) {
    const uint16_t* columns = w + t * kTileDepth * kPanelColumns;
    tile_load(4, x + t * kTileElements, 64);
    tile_load(6, columns, kWeightStride);
    SLIPSTREAM_TILE_DOT(0, 4, 6);
    tile_load(7, columns + 32, kWeightStride);
    SLIPSTREAM_TILE_DOT(1, 4, 7);
    tile_load(6, columns + panel_elements, kWeightStride);
    SLIPSTREAM_TILE_DOT(2, 4, 6);
    tile_load(7, columns + panel_elements + 32, kWeightStride);
    SLIPSTREAM_TILE_DOT(3, 4, 7);
  }
  tile_store(0, sums, kSumsStride);
  tile_store(1, sums + 16, kSumsStride);
  tile_store(2, second, kSumsStride);
  tile_store(3, second + 16, kSumsStride);
}

inline size_t tile_scratch(const LinearCall& call, const LinearPart& part) {
  const int64_t rows = tile_block_rows(call.k, part.m_end - part.m_begin);
  const int64_t sums_rows = rows < 2 * kTileRows ? 2 * kTileRows : rows;  // multiply_1x4 fills two panels' sums
  return static_cast<size_t>(rows * packed_depth(ElementType::bfloat16, call.k) * 2 + sums_rows * kPanelColumns * 4);
}

// sums[rows][32] = x . panel
template <TileDot dot>
inline void tile_panel(const uint16_t* x, const uint16_t* w, int64_t depth_tiles, int64_t rows, float* sums) {
  const int64_t row_of_tiles = depth_tiles * kTileElements;
  const int64_t tile_rows = round_up(rows, kTileRows);
  const int64_t pairs = tile_rows / (2 * kTileRows);
  for (int64_t t = 0; t < depth_tiles; t += kPassTiles) {
    const int64_t tiles = depth_tiles - t < kPassTiles ? depth_tiles - t : kPassTiles;
    for (int64_t p = 0; p < pairs; ++p) {
      const uint16_t* x0 = x + 2 * p * row_of_tiles + t * kTileElements;
      multiply_2x2<dot>(x0, x0 + row_of_tiles, w + t * kTileDepth * kPanelColumns, tiles, sums + 2 * p * kTileRows * kPanelColumns,
                   t == 0);
    }
  }
  if (tile_rows % (2 * kTileRows)) {  // an odd row of tiles is left
    multiply_1x2<dot>(x + 2 * pairs * row_of_tiles, w, depth_tiles, sums + 2 * pairs * kTileRows * kPanelColumns);
  }
}

// Computes `part` by blocks of rows. gather(row, rows) copies a block of rows of x into the tiles `x`; finish(sums, block, rows,
// panel) takes the sums [rows][32] of the block and a panel, `block` being its first row.
template <TileDot dot, typename Gather, typename Finish>
inline void for_each_tile_block(const LinearPart& part, int64_t block_rows, int64_t depth_tiles, const void* weight,
                                int64_t panel_bytes, const uint16_t* x, float* sums, const Gather& gather,
                                const Finish& finish) {
  const int64_t part_rows = part.m_end - part.m_begin, panel_elements = panel_bytes / 2;
  const uint16_t* panels = static_cast<const uint16_t*>(weight);
  open_tiles(static_cast<int>(part_rows < kTileRows ? part_rows : kTileRows));
  for (int64_t m = part.m_begin; m < part.m_end; m += block_rows) {
    const int64_t rows = part.m_end - m < block_rows ? part.m_end - m : block_rows;
    gather(m, rows);
    int64_t panel = part.panel_begin;
    for (; rows <= kTileRows && panel + 2 <= part.panel_end; panel += 2) {
      multiply_1x4<dot>(x, panels + panel * panel_elements, panel_elements, depth_tiles, sums);
      finish(sums, m, rows, panel);
      finish(sums + kTileRows * kPanelColumns, m, rows, panel + 1);
    }
    for (; panel < part.panel_end; ++panel) {
      tile_panel<dot>(x, panels + panel * panel_elements, depth_tiles, rows, sums);
      finish(sums, m, rows, panel);
    }
  }
  close_tiles();
}

inline void tile_linear(const LinearCall& call, const LinearPart& part, void* scratch) {
  const int64_t depth_tiles = packed_depth(ElementType::bfloat16, call.k) / kTileDepth;
  const int64_t block = tile_block_rows(call.k, part.m_end - part.m_begin);
  uint16_t* x = static_cast<uint16_t*>(scratch);
  float* sums = reinterpret_cast<float*>(x + block * depth_tiles * kTileDepth);
  for_each_tile_block<TileDot::bf16>(
      part, block, depth_tiles, call.weight, panel_size(ElementType::bfloat16, call.k) * 2, x, sums,
      [&](int64_t row, int64_t rows) { gather_tiles(call, row, rows, x, depth_tiles); },
      [&](const float* from, int64_t block_begin, int64_t rows, int64_t panel) {
        finish_tile(call, from, kPanelColumns, block_begin, rows, panel * kPanelColumns);
      });
}

// Without depth there is no tile.
inline bool takes_tiles(const LinearCall& call) { return call.weight_type == ElementType::bfloat16 && call.k > 0; }

inline size_t amx_linear_scratch(const LinearCall& call, const LinearPart& part) {
  return takes_tiles(call) ? tile_scratch(call, part) : linear_scratch(call, part);
}

inline void amx_linear(const LinearCall& call, const LinearPart& part, void* scratch) {
  takes_tiles(call) ? tile_linear(call, part, scratch) : linear(call, part, scratch);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
