// SPDX-License-Identifier: Apache-2.0
// Attention in bfloat16 on tiles: the algorithm of kernels/attention.h with both products in two by two tiles. Strips of 32 query
// rows (two rows of tiles) run over blocks of 256 keys. A strip's sums stay where they are from block to block: the tiles add
// products to them, and a row of them is rescaled only when the row finds a larger score. float32 and fewer query rows than a
// tile has take the vector kernel. Needs kernels/amx/linear.h and kernels/attention.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

constexpr int64_t kQueryStrip = 2 * kTileRows;

// Scores of a strip and a block are 32 rows x 256 keys x 4 bytes = 32 KiB of a 48 KiB first-level cache, beside the strip's queries
// (4 KiB at depth 64, 16 KiB at 256); the weights take the scores' place, in half the room. A pass over a block's values is 8 tiles
// deep: 32 products for each 4 tiles of sums read and written.
constexpr int64_t kTileKeyBlock = 256;

// Strips that run over a block before the next one: its keys and values come from beyond the second-level cache once for 128 rows.
// At depth 64 (256): keys and values of a block 64 KiB (256 KiB), queries 16 KiB (64 KiB), sums 32 KiB (128 KiB), of 2 MiB.
constexpr int64_t kStripsTogether = 4;

struct TileAttention {
  int64_t depth_tiles, value_panels;
  uint16_t *k, *v;  // packed keys [panels of 32 keys], packed values [blocks of keys][panels of 32 value columns]
  uint16_t* q;      // [strips together][rows of tiles][depth / 32][16][32]
  float* scores;    // [panels of a block][rows of tiles][16][32]
  float* sums;      // [strips together][panels of value columns][rows of tiles][16][32]
  int64_t key_panel() const { return depth_tiles * kTileDepth * kPanelColumns; }  // elements
};

inline size_t lay_out_tiles(const AttentionCall& call, TileAttention& b, void* memory) {
  const int64_t keys = round_up(call.keys, kPanelColumns), values = round_up(call.value_depth, kPanelColumns);
  b.depth_tiles = round_up(call.depth, kTileDepth) / kTileDepth;
  b.value_panels = values / kPanelColumns;
  uint8_t* at = static_cast<uint8_t*>(memory);
  auto take = [&](int64_t bytes) {
    uint8_t* taken = at;
    at += align64(bytes);
    return taken;
  };
  b.k = reinterpret_cast<uint16_t*>(take(keys * b.depth_tiles * kTileDepth * 2));
  b.v = reinterpret_cast<uint16_t*>(take(keys * values * 2));
  b.q = reinterpret_cast<uint16_t*>(take(kStripsTogether * kQueryStrip * b.depth_tiles * kTileDepth * 2));
  b.scores = reinterpret_cast<float*>(take(kQueryStrip * kTileKeyBlock * 4));
  b.sums = reinterpret_cast<float*>(take(kStripsTogether * kQueryStrip * values * 4));
  return static_cast<size_t>(at - static_cast<uint8_t*>(memory));
}

struct QueryStrip {
  int64_t begin, rows;
  KeyRange seen;
  const uint16_t* q;
  float* sums;
  bool first;  // nothing is in `sums` yet
  RowState states[kQueryStrip];
  int64_t tile_rows() const { return rows > kTileRows ? 2 : 1; }
};

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
  KeyRange keys = {block, block + kTileKeyBlock < strip.seen.end ? block + kTileKeyBlock : strip.seen.end};
  if (strip.seen.begin > block) keys.begin = strip.seen.begin / kPanelColumns * kPanelColumns;
  if (keys.begin >= keys.end) return;
  const int64_t strip_rows = strip.tile_rows() * kTileRows, panel_scores = strip_rows * kPanelColumns;
  const int64_t panels = (keys.end - keys.begin + kPanelColumns - 1) / kPanelColumns;
  const uint16_t* k = b.k + keys.begin / kPanelColumns * b.key_panel();
  for (int64_t panel = 0; panel < panels; ++panel) {
    multiply_strip(strip, strip.q, b.depth_tiles * kTileElements, kTileElements, k + panel * b.key_panel(), b.depth_tiles,
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
  const int64_t block_keys = call.keys - block < kTileKeyBlock ? round_up(call.keys - block, kPanelColumns) : kTileKeyBlock;
  const uint16_t* v = b.v + (block * b.value_panels + keys.begin - block) * kPanelColumns;
  for (int64_t panel = 0; panel < b.value_panels; ++panel) {
    multiply_strip(strip, reinterpret_cast<const uint16_t*>(b.scores), kTileElements, 2 * panel_scores,
                   v + panel * block_keys * kPanelColumns, panels, strip.sums + panel * panel_scores, strip.first);
  }
  strip.first = false;
}

// Strips begin at multiples of 32 rows whatever the part, and see what all of those rows see: what is multiplied for a row does not
// depend on how rows were shared out, even where a value that nobody sees is not finite.
inline void begin_strip(const AttentionCall& call, const TileAttention& b, const AttentionPart& part, int64_t head,
                        int64_t number, int64_t place, QueryStrip& strip) {
  const int64_t whole = number * kQueryStrip, beyond = whole + kQueryStrip, row_of_tiles = b.depth_tiles * kTileElements;
  strip.begin = whole > part.begin ? whole : part.begin;
  strip.rows = (beyond < part.end ? beyond : part.end) - strip.begin;
  strip.seen = keys_of_rows(call, whole, (beyond < call.queries ? beyond : call.queries) - 1);
  strip.sums = b.sums + place * kQueryStrip * b.value_panels * kPanelColumns;
  uint16_t* q = b.q + place * 2 * row_of_tiles;
  LinearCall queries;
  queries.k = call.depth;
  queries.x = {call.q.data, call.q.stride, call.q.type};
  queries.x.data = static_cast<const char*>(call.q.data) + head * call.q.head * (call.q.type == ElementType::float32 ? 4 : 2);
  gather_tiles(queries, strip.begin, strip.rows, q, b.depth_tiles);
  strip.q = q;
  strip.first = true;
  begin_rows(strip.states, strip.rows);
}

inline void tile_attention(const AttentionCall& call, const AttentionPart& part, void* scratch) {
  TileAttention b;
  lay_out_tiles(call, b, scratch);
  pack_keys<Step::dot_bf16>(call, b.depth_tiles * kTileDepth / 2, reinterpret_cast<uint8_t*>(b.k));
  pack_values<Step::dot_bf16>(call, kTileKeyBlock, kPanelColumns, reinterpret_cast<uint8_t*>(b.v));
  open_tiles(kTileRows);
  QueryStrip strip[kStripsTogether];
  const int64_t end = (part.end + kQueryStrip - 1) / kQueryStrip;
  for (int64_t head = 0; head < call.heads; ++head) {
    for (int64_t number = part.begin / kQueryStrip; number < end; number += kStripsTogether) {
      const int64_t strips = end - number < kStripsTogether ? end - number : kStripsTogether;
      for (int64_t s = 0; s < strips; ++s) begin_strip(call, b, part, head, number + s, s, strip[s]);
      const int64_t first = strip[0].seen.begin / kTileKeyBlock * kTileKeyBlock, last = strip[strips - 1].seen.end;
      for (int64_t block = first; block < last; block += kTileKeyBlock) {
        for (int64_t s = 0; s < strips; ++s) attend_block(call, b, head, block, strip[s]);
      }
      for (int64_t s = 0; s < strips; ++s) {
        finish_rows(call, head, strip[s].begin, strip[s].rows, strip[s].sums, strip[s].tile_rows() * kTileRows, strip[s].states);
      }
    }
  }
  close_tiles();
}

// By the rows of the whole call, not of a thread's part of it: which kernel computes a row must not depend on threads.
inline bool takes_tiles(const AttentionCall& call) { return call.bfloat16 && call.queries >= kTileRows; }

inline size_t amx_attention_scratch(const AttentionCall& call) {
  TileAttention b;
  return takes_tiles(call) ? lay_out_tiles(call, b, nullptr) : attention_scratch(call);
}

inline void amx_attention(const AttentionCall& call, const AttentionPart& part, void* scratch) {
  takes_tiles(call) ? tile_attention(call, part, scratch) : attention(call, part, scratch);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
