// SPDX-License-Identifier: Apache-2.0
// What both attention kernels on tiles share, that in bfloat16 and that in parts of it: strips of 32 query rows (two rows of tiles)
// run over blocks of keys. A strip's sums stay where they are from block to block. Needs kernels/amx/linear.h and
// kernels/attention.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

constexpr int64_t kQueryStrip = 2 * kTileRows;

// Strips that run over a block before the next one: its keys and values come from beyond the second-level cache once for 128 rows.
// At depth 64 (256), in bfloat16: keys and values of a block of 256 64 KiB (256 KiB), queries 16 KiB (64 KiB), sums 32 KiB
// (128 KiB), of 2 MiB; in three parts half as many keys, three times their size.
constexpr int64_t kStripsTogether = 4;

struct TileAttention {
  int64_t parts, key_block;
  int64_t depth_tiles, value_panels;
  uint16_t *k, *v;  // packed keys [panels of 32 keys], packed values [blocks of keys][panels of 32 value columns]
  uint16_t* q;      // [strips together][rows of tiles][depth / 32][part][16][32]
  float* scores;    // [panels of a block][rows of tiles][16][32]
  float* sums;      // [strips together][panels of value columns][rows of tiles][16][32]
  int64_t key_panel() const { return depth_tiles * kTileDepth * kPanelColumns * parts; }  // elements
  int64_t row_of_tiles() const { return depth_tiles * kTileElements * parts; }
};

// Lays buffers out one after the other, at 64-byte boundaries.
struct Layout {
  uint8_t *begin, *at;
  explicit Layout(void* memory) : begin(static_cast<uint8_t*>(memory)), at(begin) {}
  template <typename T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(at);
    at += align64(count * static_cast<int64_t>(sizeof(T)));
    return taken;
  }
  size_t bytes() const { return static_cast<size_t>(at - begin); }
};

inline void lay_out_strips(const AttentionCall& call, int64_t parts, int64_t key_block, TileAttention& b, Layout& layout) {
  const int64_t keys = round_up(call.keys, kPanelColumns), values = round_up(call.value_depth, kPanelColumns);
  b.parts = parts;
  b.key_block = key_block;
  b.depth_tiles = round_up(call.depth, kTileDepth) / kTileDepth;
  b.value_panels = values / kPanelColumns;
  b.k = layout.take<uint16_t>(keys * b.depth_tiles * kTileDepth * parts);
  b.v = layout.take<uint16_t>(keys * values * parts);
  b.q = layout.take<uint16_t>(kStripsTogether * 2 * b.row_of_tiles());
  b.scores = layout.take<float>(kQueryStrip * key_block);
  b.sums = layout.take<float>(kStripsTogether * kQueryStrip * values);
}

struct QueryStrip {
  int64_t begin, rows;
  KeyRange seen;
  uint16_t* q;
  float* sums;
  bool first;  // nothing is in `sums` yet
  RowState states[kQueryStrip];
  int64_t tile_rows() const { return rows > kTileRows ? 2 : 1; }
};

// What a strip sees of the block of keys from `block` on, from the beginning of a panel.
inline KeyRange keys_of_block(const TileAttention& b, int64_t block, const QueryStrip& strip) {
  KeyRange keys = {block, block + b.key_block < strip.seen.end ? block + b.key_block : strip.seen.end};
  if (strip.seen.begin > block) keys.begin = strip.seen.begin / kPanelColumns * kPanelColumns;
  return keys;
}

// The keys of that block, with those that pad its last panel.
inline int64_t padded_block(const AttentionCall& call, const TileAttention& b, int64_t block) {
  return call.keys - block < b.key_block ? round_up(call.keys - block, kPanelColumns) : b.key_block;
}

// Strips begin at multiples of 32 rows whatever the part, and see what all of those rows see: what is multiplied for a row does not
// depend on how rows were shared out, even where a value that nobody sees is not finite.
inline void begin_strip(const AttentionCall& call, const TileAttention& b, const AttentionPart& part, int64_t number,
                        int64_t place, QueryStrip& strip) {
  const int64_t whole = number * kQueryStrip, beyond = whole + kQueryStrip;
  strip.begin = whole > part.begin ? whole : part.begin;
  strip.rows = (beyond < part.end ? beyond : part.end) - strip.begin;
  strip.seen = keys_of_rows(call, whole, (beyond < call.queries ? beyond : call.queries) - 1);
  strip.sums = b.sums + place * kQueryStrip * b.value_panels * kPanelColumns;
  strip.q = b.q + place * 2 * b.row_of_tiles();
  strip.first = true;
  begin_rows(strip.states, strip.rows);
}

// gather(queries, strip) copies a strip's queries into its tiles; attend(head, block, strip) takes in what it sees of a block.
template <typename Gather, typename Attend>
inline void for_each_strip(const AttentionCall& call, const AttentionPart& part, const TileAttention& b, const Gather& gather,
                           const Attend& attend) {
  open_tiles(kTileRows);
  QueryStrip strip[kStripsTogether];
  const int64_t end = (part.end + kQueryStrip - 1) / kQueryStrip;
  for (int64_t head = 0; head < call.heads; ++head) {
    LinearCall queries;
    queries.k = call.depth;
    queries.x = {query_at(call, head, 0), call.q.stride, call.q.type};
    for (int64_t number = part.begin / kQueryStrip; number < end; number += kStripsTogether) {
      const int64_t strips = end - number < kStripsTogether ? end - number : kStripsTogether;
      for (int64_t s = 0; s < strips; ++s) {
        begin_strip(call, b, part, number + s, s, strip[s]);
        gather(queries, strip[s]);
      }
      const int64_t first = strip[0].seen.begin / b.key_block * b.key_block, last = strip[strips - 1].seen.end;
      for (int64_t block = first; block < last; block += b.key_block) {
        for (int64_t s = 0; s < strips; ++s) attend(head, block, strip[s]);
      }
      for (int64_t s = 0; s < strips; ++s) {
        finish_rows(call, head, strip[s].begin, strip[s].rows, strip[s].sums, strip[s].tile_rows() * kTileRows, strip[s].states);
      }
    }
  }
  close_tiles();
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
