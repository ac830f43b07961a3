// SPDX-License-Identifier: Apache-2.0
// Linear on tiles for float32 weights, packed as bfloat16 parts (kernels/linear.h). x is split likewise while it is copied into
// tiles; a float32 product is then the sum of the products of parts that matter. Needs kernels/amx/linear.h.
//
// Three parts of 8 bits are all 24 bits of a float, six products of them miss 2^-26 of each term at most; two parts keep 2^-18.
// Terms are summed in float32, and that sum would lose more than all this if it ran over the whole depth: a pass of 128 starts from
// zero with its smallest products, the sums of eight passes are added up, and those of all such groups.
//
// Where x or the weight is not finite, or a sum overflows, products with the lesser parts make a NaN of an infinity (inf * 0,
// inf - inf). Sums that are not finite are therefore taken from the leading parts alone, as float32 would have them.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Elements of one part of a panel's weights, one tile deep.
constexpr int64_t kPartElements = kTileDepth * kPanelColumns;

// Weights of a pass in three parts: 32 columns x 128 x 6 bytes = 24 KiB of a 48 KiB first-level cache; as much of x streams by.
constexpr int64_t kSplitPassTiles = 128 / kTileDepth, kSplitGroupTiles = 8 * kSplitPassTiles;

// x of a block in all its parts, 1.5 of a 2 MiB second-level cache. A row of 4096 in three parts takes 24 KiB, and with fewer than 64 of them
// the weights would have to come from the third level at 16 bytes a cycle.
inline int64_t split_block_bytes() { return second_level_cache() / 4 * 3; }

// Which part of x is multiplied by which of the weight, the smallest products first: six for three parts, the last three of them
// for two, the last alone for the leading ones.
struct PartProduct {
  int64_t x, w;
};
constexpr PartProduct kPartProducts[] = {{2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}};
constexpr int kPartProductCount = 6, kLeadingProduct = 5;
constexpr int first_product(int64_t parts) { return parts == 3 ? 0 : 3; }

inline int64_t split_block_rows(const LinearCall& call, int64_t rows) {
  return tile_block_rows(packed_depth(ElementType::bfloat16, call.k) * call.weight_parts, rows, split_block_bytes());
}

// How sums are added up over the depth.
struct SplitSums {
  int64_t depth_tiles;
  int64_t tile_rows;  // that the tiles of x were opened with
  float* pass;        // sums of a pass, [32][32]
  float* group;       // sums of a group of passes, as many as there are of the whole
};

// A block of rows of x, and how it is multiplied.
struct SplitBlock : SplitSums {
  const uint16_t* x;  // [row of tiles][k / 32][part][16][32]
  int64_t parts;
  int64_t panel_elements() const { return depth_tiles * parts * kPartElements; }
  int64_t row_of_tiles() const { return depth_tiles * parts * kTileElements; }
};

// v's part in bfloat16, as its bits; `rest` becomes what it leaves, exactly. Rounds to nearest even, but cuts where that would
// overflow. Of what is not finite nothing is left; a NaN stays one.
SLIPSTREAM_INLINE VecU take_part(Vec v, Vec& rest) {
  const VecU bits = reinterpret_cast<VecU>(v);
  const VecI size = reinterpret_cast<VecI>(bits & 0x7fffffffu);
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  const VecU quiet = size > 0x7f800000 ? VecU{} + 0x400000u : VecU{};
  const VecU part = size < 0x7f7f8000 ? rounded : (bits & 0xffff0000u) | quiet;
  rest = size < 0x7f800000 ? v - reinterpret_cast<Vec>(part) : Vec{};
  return part >> 16;
}

// Copies rows [begin, begin + rows) of x, zero-padded both ways.
inline void gather_parts(const LinearCall& call, int64_t begin, int64_t rows, const SplitBlock& block, uint16_t* to) {
  for (int64_t i = 0; i < round_up(rows, kTileRows); ++i) {
    uint16_t* line = to + i / kTileRows * block.row_of_tiles() + i % kTileRows * kTileDepth;
    for (int64_t t = 0; t < block.depth_tiles; ++t, line += block.parts * kTileElements) {
      const int64_t left = i < rows ? call.k - t * kTileDepth : 0;
      const int64_t from = (begin + i) * call.x.stride + t * kTileDepth;
      for (int64_t j = 0; j < kTileDepth; j += kWidth) {
        Vec rest{};
        if (left >= j + kWidth) {
          rest = load_element(call.x.data, call.x.type, from + j);
        } else if (left > j) {
          rest = load_element_partly(call.x.data, call.x.type, from + j, left - j);
        }
        for (int64_t part = 0; part < block.parts; ++part) {
          const VecU bits = take_part(rest, rest);
          *reinterpret_cast<VecHInMemory*>(line + part * kTileElements + j) = narrowed(bits);
        }
      }
    }
  }
}

// sums[32][32] of one pass: two rows of tiles by a panel, or one row of tiles by two panels (the second's sums below the first's),
// or by one. Each sum's terms come in the same order whichever it is.
template <int row_tiles, int panels>
inline void multiply_parts(const SplitBlock& block, const uint16_t* x, const uint16_t* w, int64_t tiles, int product,
                           float* sums) {
  constexpr int64_t kSumsStride = kPanelColumns * 4, kWeightStride = kPanelColumns * 4;
  float* below = sums + kTileRows * kPanelColumns;
  tile_zero(0);
  tile_zero(1);
  if constexpr (row_tiles * panels == 2) {
    tile_zero(2);
    tile_zero(3);
  }
  for (; product < kPartProductCount; ++product) {
    const uint16_t* rows = x + kPartProducts[product].x * kTileElements;
    const uint16_t* columns = w + kPartProducts[product].w * kPartElements;
    for (int64_t t = 0; t < tiles; ++t, rows += block.parts * kTileElements, columns += block.parts * kPartElements) {
      tile_load(4, rows, 64);
      tile_load(6, columns, kWeightStride);
      tile_dot_bf16(0, 4, 6);
      tile_load(7, columns + 32, kWeightStride);
      tile_dot_bf16(1, 4, 7);
      if constexpr (row_tiles == 2) {
        tile_load(5, rows + block.row_of_tiles(), 64);
        tile_dot_bf16(2, 5, 6);
        tile_dot_bf16(3, 5, 7);
      }
      if constexpr (panels == 2) {
        tile_load(6, columns + block.panel_elements(), kWeightStride);
        tile_dot_bf16(2, 4, 6);
        tile_load(7, columns + block.panel_elements() + 32, kWeightStride);
        tile_dot_bf16(3, 4, 7);
      }
    }
  }
  tile_store(0, sums, kSumsStride);
  tile_store(1, sums + 16, kSumsStride);
  if constexpr (row_tiles * panels == 2) {
    tile_store(2, below, kSumsStride);
    tile_store(3, below + 16, kSumsStride);
  }
}

// to += from, of which each half has block.tile_rows rows.
inline void add_sums(const SplitSums& block, const float* from, float* to, int halves) {
  for (int half = 0; half < halves; ++half, from += kTileRows * kPanelColumns, to += kTileRows * kPanelColumns) {
    for (int64_t i = 0; i < block.tile_rows * kPanelColumns; i += kWidth) store(to + i, load(to + i) + load(from + i));
  }
}

// The pass that begins at tile t, added to the sums of the passes before it, which lie in sums from `at` on.
// multiply(tiles, to) makes the pass's own.
template <typename Multiply>
inline void add_pass(const SplitSums& block, int64_t t, int halves, float* sums, int64_t at, const Multiply& multiply) {
  const int64_t tiles = block.depth_tiles - t < kSplitPassTiles ? block.depth_tiles - t : kSplitPassTiles;
  const bool is_first_group = t < kSplitGroupTiles, begins = t % kSplitGroupTiles == 0;
  float* group = (is_first_group ? sums : block.group) + at;
  multiply(tiles, begins ? group : block.pass);
  if (!begins) add_sums(block, block.pass, group, halves);
  const bool ends = (t + kSplitPassTiles) % kSplitGroupTiles == 0 || t + tiles == block.depth_tiles;
  if (ends && !is_first_group) add_sums(block, group, sums + at, halves);
}

// multiply_parts over such a pass.
template <int row_tiles, int panels>
inline void multiply_pass(const SplitBlock& block, const uint16_t* x, const uint16_t* w, int64_t t, int product, float* sums,
                          int64_t at) {
  const uint16_t *rows = x + t * block.parts * kTileElements, *columns = w + t * block.parts * kPartElements;
  add_pass(block, t, row_tiles * panels, sums, at, [&](int64_t tiles, float* to) {
    multiply_parts<row_tiles, panels>(block, rows, columns, tiles, product, to);
  });
}

// sums[rows][32] = x . panel, by the products from `product` on.
inline void split_panel(const SplitBlock& block, const uint16_t* w, int64_t rows, int product, float* sums) {
  const int64_t tile_rows = round_up(rows, kTileRows), pairs = tile_rows / (2 * kTileRows);
  constexpr int64_t kPairSums = 2 * kTileRows * kPanelColumns;
  for (int64_t t = 0; t < block.depth_tiles; t += kSplitPassTiles) {
    for (int64_t p = 0; p < pairs; ++p) {
      multiply_pass<2, 1>(block, block.x + 2 * p * block.row_of_tiles(), w, t, product, sums, p * kPairSums);
    }
    if (tile_rows % (2 * kTileRows)) {
      multiply_pass<1, 1>(block, block.x + 2 * pairs * block.row_of_tiles(), w, t, product, sums, pairs * kPairSums);
    }
  }
}

// Whether all of sums[rows][32] are.
inline bool are_finite(const float* sums, int64_t rows) {
  Vec distance{};  // v - v is NaN where v is not finite, else 0
  for (int64_t i = 0; i < rows * kPanelColumns; i += kWidth) distance = distance + (load(sums + i) - load(sums + i));
  return sum_of_lanes(distance)[0] == 0;
}

// Those that are not, from `again`.
inline void replace_not_finite(float* sums, const float* again, int64_t rows) {
  for (int64_t i = 0; i < rows * kPanelColumns; i += kWidth) {
    const Vec sum = load(sums + i);
    store(sums + i, select(sum - sum == 0, sum, load(again + i)));
  }
}

// Sums that are not finite, from the leading parts. `again` has room for as many.
inline void mend_sums(const SplitBlock& block, const uint16_t* w, int64_t rows, float* sums, float* again) {
  if (are_finite(sums, rows)) return;
  split_panel(block, w, rows, kLeadingProduct, again);
  replace_not_finite(sums, again, rows);
}

struct SplitScratch {
  int64_t x_elements, sums_floats;
  static SplitScratch of(const LinearCall& call, const LinearPart& part) {
    const int64_t rows = split_block_rows(call, part.m_end - part.m_begin);
    const int64_t sums_rows = rows < 2 * kTileRows ? 2 * kTileRows : rows;  // one row of tiles has two panels' sums
    return {rows * packed_depth(ElementType::bfloat16, call.k) * call.weight_parts, sums_rows * kPanelColumns};
  }
};

inline size_t amx_linear_split_scratch(const LinearCall& call, const LinearPart& part) {
  const SplitScratch size = SplitScratch::of(call, part);
  return static_cast<size_t>(size.x_elements * 2 + (3 * size.sums_floats + 2 * kTileRows * kPanelColumns) * 4);
}

inline void amx_linear_split(const LinearCall& call, const LinearPart& part, void* scratch) {
  const SplitScratch size = SplitScratch::of(call, part);
  const int64_t part_rows = part.m_end - part.m_begin, block_rows = split_block_rows(call, part_rows);
  uint16_t* x = static_cast<uint16_t*>(scratch);
  float* sums = reinterpret_cast<float*>(x + size.x_elements);
  float *again = sums + size.sums_floats, *group = again + size.sums_floats;
  const SplitSums by_passes{packed_depth(ElementType::bfloat16, call.k) / kTileDepth,
                            part_rows < kTileRows ? part_rows : kTileRows, group + size.sums_floats, group};
  const SplitBlock block{by_passes, x, call.weight_parts};
  const uint16_t* weight = static_cast<const uint16_t*>(call.weight);
  const int first = first_product(block.parts);

  open_tiles(static_cast<int>(block.tile_rows));
  for (int64_t m = part.m_begin; m < part.m_end; m += block_rows) {
    const int64_t rows = part.m_end - m < block_rows ? part.m_end - m : block_rows;
    gather_parts(call, m, rows, block, x);
    auto finish = [&](float* from, int64_t panel) {
      mend_sums(block, weight + panel * block.panel_elements(), rows, from, again);
      finish_tile(call, from, kPanelColumns, m, rows, panel * kPanelColumns);
    };
    int64_t panel = part.panel_begin;
    for (; rows <= kTileRows && panel + 2 <= part.panel_end; panel += 2) {
      for (int64_t t = 0; t < block.depth_tiles; t += kSplitPassTiles) {
        multiply_pass<1, 2>(block, x, weight + panel * block.panel_elements(), t, first, sums, 0);
      }
      finish(sums, panel);
      finish(sums + kTileRows * kPanelColumns, panel + 1);
    }
    for (; panel < part.panel_end; ++panel) {
      split_panel(block, weight + panel * block.panel_elements(), rows, first, sums);
      finish(sums, panel);
    }
  }
  close_tiles();
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
