// SPDX-License-Identifier: Apache-2.0
// Attention in float32 on tiles, both products from parts of bfloat16: queries, keys and values are split while they are copied or
// packed, the softmax's weights after it. The scores are float32 throughout, and the products those of linear_split.h, their
// passes and what it does about infinities with them. Needs that, kernels/amx/pack_parts.h and kernels/amx/attention_strips.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// One pass of the second product, which starts from zero: 32 rows x 128 keys are 16 KiB of scores, their weights in three parts
// 24 KiB, and 32 columns of values 24 KiB, of a 48 KiB first-level cache.
constexpr int64_t kSplitKeyBlock = kSplitPassTiles * kTileDepth;

struct SplitAttention : TileAttention {
  uint16_t* weights;  // [rows of tiles][keys / 32][part][16][32]
  float *product, *again, *pass, *group;  // [32][32]
  SplitBlock block_of(const uint16_t* x, int64_t tiles) const { return {{tiles, kTileRows, pass, group}, x, parts}; }
};

inline size_t lay_out_split(const AttentionCall& call, SplitAttention& b, void* memory) {
  Layout layout(memory);
  lay_out_strips(call, call.parts, kSplitKeyBlock, b, layout);
  b.weights = layout.take<uint16_t>(kQueryStrip * kSplitKeyBlock * call.parts);
  b.product = layout.take<float>(kQueryStrip * kPanelColumns);
  b.again = layout.take<float>(kQueryStrip * kPanelColumns);
  b.pass = layout.take<float>(kQueryStrip * kPanelColumns);
  b.group = layout.take<float>(kQueryStrip * kPanelColumns);
  return layout.bytes();
}

inline void pack_keys_and_values(const AttentionCall& call, const SplitAttention& b) {
  MatrixToPack keys;
  keys.data = call.k.data;
  keys.type = call.k.type;
  keys.k = call.depth;
  keys.n = call.keys;
  keys.k_stride = 1;
  keys.n_stride = call.k.stride;
  keys.parts = call.parts;
  pack_in_parts(keys, b.k);
  MatrixToPack values;
  values.type = call.v.type;
  values.n = call.value_depth;
  values.k_stride = call.v.stride;
  values.n_stride = 1;
  values.parts = call.parts;
  for (int64_t block = 0; block < call.keys; block += kSplitKeyBlock) {
    values.k = call.keys - block < kSplitKeyBlock ? call.keys - block : kSplitKeyBlock;
    values.data = static_cast<const char*>(call.v.data) + block * call.v.stride * bytes_of(call.v.type);
    pack_in_parts(values, b.v + block * b.value_panels * kPanelColumns * call.parts);
  }
}

// sums[16 or 32 rows][32] = x . w
inline void multiply_split(const SplitAttention& b, const SplitBlock& x, const uint16_t* w, int64_t rows, float* sums) {
  split_panel(x, w, rows, first_product(x.parts), sums);
  mend_sums(x, w, rows, sums, b.again);
}

// A strip's weights, which lie where its scores lay, in tiles of parts. Rows that are none are zero.
inline void split_weights(const SplitAttention& b, const QueryStrip& strip, int64_t panels) {
  const int64_t strip_rows = strip.tile_rows() * kTileRows;
  for (int64_t r = 0; r < strip_rows; ++r) {
    uint16_t* line = b.weights + r / kTileRows * panels * b.parts * kTileElements + r % kTileRows * kTileDepth;
    const float* from = b.scores + r * kPanelColumns;
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t c = 0; c < kTileDepth; c += kWidth) {
        Vec rest = r < strip.rows ? load(from + panel * strip_rows * kPanelColumns + c) : Vec{};
        for (int64_t part = 0; part < b.parts; ++part) {
          const VecU bits = take_part(rest, rest);
          *reinterpret_cast<VecHInMemory*>(line + (panel * b.parts + part) * kTileElements + c) = narrowed(bits);
        }
      }
    }
  }
}

// A strip against the block of keys from `block` on: scores, weights in their place, sums.
inline void attend_block_split(const AttentionCall& call, const SplitAttention& b, int64_t head, int64_t block,
                               QueryStrip& strip) {
  const KeyRange keys = keys_of_block(b, block, strip);
  if (keys.begin >= keys.end) return;
  const int64_t strip_rows = strip.tile_rows() * kTileRows, panel_scores = strip_rows * kPanelColumns;
  const int64_t panels = (keys.end - keys.begin + kPanelColumns - 1) / kPanelColumns;
  const uint16_t* k = b.k + keys.begin / kPanelColumns * b.key_panel();
  const SplitBlock queries = b.block_of(strip.q, b.depth_tiles), weights = b.block_of(b.weights, panels);
  for (int64_t panel = 0; panel < panels; ++panel) {
    multiply_split(b, queries, k + panel * b.key_panel(), strip_rows, b.scores + panel * panel_scores);
  }
  auto place = [&](int64_t r) {
    float* row = b.scores + r * kPanelColumns;
    return RowPlace<float>{row, panel_scores, row, panel_scores};
  };
  float shrinks[kQueryStrip];
  weigh<float>(call, head, strip.begin, strip.rows, keys, kPanelColumns, place, strip.states, shrinks);
  split_weights(b, strip, panels);
  const int64_t value_panel = padded_block(call, b, block) * kPanelColumns * b.parts;
  const uint16_t* v = b.v + (block * b.value_panels + keys.begin - block) * kPanelColumns * b.parts;
  for (int64_t panel = 0; panel < b.value_panels; ++panel) {
    float* sums = strip.sums + panel * panel_scores;
    multiply_split(b, weights, v + panel * value_panel, strip_rows, strip.first ? sums : b.product);
    for (int64_t i = 0; i < strip.rows * kPanelColumns && !strip.first; i += kWidth) {
      store(sums + i, load(sums + i) * shrinks[i / kPanelColumns] + load(b.product + i));
    }
  }
  strip.first = false;
}

inline size_t attention_split_scratch(const AttentionCall& call) {
  SplitAttention b;
  return lay_out_split(call, b, nullptr);
}

inline void attention_split(const AttentionCall& call, const AttentionPart& part, void* scratch) {
  SplitAttention b;
  lay_out_split(call, b, scratch);
  pack_keys_and_values(call, b);
  for_each_strip(
      call, part, b,
      [&](const LinearCall& queries, const QueryStrip& strip) {
        gather_parts(queries, strip.begin, strip.rows, b.block_of(strip.q, b.depth_tiles), strip.q);
      },
      [&](int64_t head, int64_t block, QueryStrip& strip) { attend_block_split(call, b, head, block, strip); });
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
