// SPDX-License-Identifier: Apache-2.0
// Attention in bfloat16 on tiles: the algorithm of kernels/attention.h with both products in two by two tiles. Strips of 32 query
// rows run over blocks of 256 keys. The tiles add products to a strip's sums, and a row of them is rescaled only when the row finds a
// larger score. float32 takes attention_split.h or the vector kernel, and so do fewer query rows than a tile has. Needs
// kernels/amx/attention_strips.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Scores of a strip and a block are 32 rows x 256 keys x 4 bytes = 32 KiB of a 48 KiB first-level cache, beside the strip's queries
// (4 KiB at depth 64, 16 KiB at 256); the weights take the scores' place, in half the room. A pass over a block's values is 8 tiles
// deep: 32 products for each 4 tiles of sums read and written.
constexpr int64_t kTileKeyBlock = 256;

inline size_t lay_out_tiles(const AttentionCall& call, TileAttention& b, void* memory) {
  Layout layout(memory);
  lay_out_strips(call, 1, kTileKeyBlock, b, layout);
  return layout.bytes();
}

// sums[16 or 32 rows][32] = or += x . w, x's tiles lying x_step elements apart
inline void multiply_strip(const QueryStrip& strip, const uint16_t* x, int64_t x_below, int64_t x_step, const uint16_t* w,
                           int64_t tiles, float* sums, bool first) {
  if (strip.tile_rows() == 2) {
    multiply_2x2<TileDot::bf16>(x, x + x_below, w, tiles, sums, first, x_step);
  } else {
    multiply_1x2<TileDot::bf16>(x, w, tiles, sums, first, x_step);
  }
}

// A strip against the block of keys from `block` on: scores, weights in their place, sums.
inline void attend_block(const AttentionCall& call, const TileAttention& b, int64_t head, int64_t block, QueryStrip& strip) {
  const KeyRange keys = keys_of_block(b, block, strip);
  if (keys.begin >= keys.end) return;
  const int64_t strip_rows = strip.tile_rows() * kTileRows, panel_scores = strip_rows * kPanelColumns;
  const int64_t panels = (keys.end - keys.begin + kPanelColumns - 1) / kPanelColumns;
  const uint16_t* k = b.k + keys.begin / kPanelColumns * b.key_panel();
  for (int64_t panel = 0; panel < panels; ++panel) {
    multiply_strip(strip, strip.q, b.row_of_tiles(), kTileElements, k + panel * b.key_panel(), b.depth_tiles,
                   b.scores + panel * panel_scores, true);
  }
  // A row's weights, 64 bytes a panel, lie over scores of its own and of rows above it, which are weights by then.
  auto place = [&](int64_t r) {
    return RowPlace<uint16_t>{b.scores + r * kPanelColumns, panel_scores,
                              reinterpret_cast<uint16_t*>(b.scores) + r * kTileDepth, 2 * panel_scores};
  };
  float shrinks[kQueryStrip];
  weigh<uint16_t>(call, head, strip.begin, strip.rows, keys, kPanelColumns, place, strip.states, shrinks);
  for (int64_t r = 0; r < strip.rows && !strip.first; ++r) {
    const float shrink = shrinks[r];
    if (shrink == 1) continue;
    for (int64_t panel = 0; panel < b.value_panels; ++panel) {
      float* line = strip.sums + panel * panel_scores + r * kPanelColumns;
      for (int64_t c = 0; c < kPanelColumns; c += kWidth) store(line + c, load(line + c) * shrink);
    }
  }
  const int64_t block_keys = padded_block(call, b, block);
  const uint16_t* v = b.v + (block * b.value_panels + keys.begin - block) * kPanelColumns;
  for (int64_t panel = 0; panel < b.value_panels; ++panel) {
    multiply_strip(strip, reinterpret_cast<const uint16_t*>(b.scores), kTileElements, 2 * panel_scores,
                   v + panel * block_keys * kPanelColumns, panels, strip.sums + panel * panel_scores, strip.first);
  }
  strip.first = false;
}

inline void tile_attention(const AttentionCall& call, const AttentionPart& part, void* scratch) {
  TileAttention b;
  lay_out_tiles(call, b, scratch);
  pack_keys<Step::dot_bf16>(call, b.depth_tiles * kTileDepth / 2, reinterpret_cast<uint8_t*>(b.k));
  pack_values<Step::dot_bf16>(call, kTileKeyBlock, kPanelColumns, reinterpret_cast<uint8_t*>(b.v));
  for_each_strip(
      call, part, b,
      [&](const LinearCall& queries, const QueryStrip& strip) {
        gather_tiles(queries, strip.begin, strip.rows, strip.q, b.depth_tiles);
      },
      [&](int64_t head, int64_t block, QueryStrip& strip) { attend_block(call, b, head, block, strip); });
}

// By the rows of the whole call, not of a thread's part of it: which kernel computes a row must not depend on threads. Without depth
// there are no parts of it.
inline bool takes_tiles(const AttentionCall& call) { return call.bfloat16 && call.queries >= kTileRows; }
inline bool takes_parts(const AttentionCall& call) {
  return !call.bfloat16 && call.parts > 1 && call.depth > 0 && call.queries >= kTileRows;
}

inline size_t amx_attention_scratch(const AttentionCall& call) {
  if (takes_parts(call)) return attention_split_scratch(call);
  TileAttention b;
  return takes_tiles(call) ? lay_out_tiles(call, b, nullptr) : attention_scratch(call);
}

inline void amx_attention(const AttentionCall& call, const AttentionPart& part, void* scratch) {
  if (takes_parts(call)) return attention_split(call, part, scratch);
  takes_tiles(call) ? tile_attention(call, part, scratch) : attention(call, part, scratch);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
