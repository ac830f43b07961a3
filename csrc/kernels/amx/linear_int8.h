// SPDX-License-Identifier: Apache-2.0
// Linear on integers, on tiles: kernels/amx/linear.h with 64 int8 where it has 32 bfloat16, and the rounding and scaling of
// kernels/linear_int8.h. Needs both.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

inline int64_t tile_block_rows_int8(int64_t k, int64_t rows) {
  return tile_block_rows(round_up(k, kPackedDepthInt8) / 2, rows);  // in bfloat16's units of two bytes
}

inline size_t amx_linear_int8_scratch(const LinearInt8Call& call, const LinearPart& part) {
  if (call.linear.k == 0) return linear_int8_scratch(call, part);
  const int64_t rows = tile_block_rows_int8(call.linear.k, part.m_end - part.m_begin);
  const int64_t sums_rows = rows < 2 * kTileRows ? 2 * kTileRows : rows;  // multiply_1x4 fills two panels' sums
  return static_cast<size_t>(rows * round_up(call.linear.k, kPackedDepthInt8) + sums_rows * kPanelColumns * 4) +
         row_scales_bytes(rows);
}

inline void amx_linear_int8(const LinearInt8Call& call, const LinearPart& part, void* scratch) {
  const LinearCall& linear = call.linear;
  if (linear.k == 0) return linear_int8(call, part, scratch);
  const int64_t depth_tiles = round_up(linear.k, kPackedDepthInt8) / kPackedDepthInt8, row_of_tiles = depth_tiles * 1024;
  const int64_t block = tile_block_rows_int8(linear.k, part.m_end - part.m_begin);
  const int64_t panel_bytes = panel_bytes_int8(linear.k);
  RowScale* scales = static_cast<RowScale*>(scratch);
  uint8_t* x = static_cast<uint8_t*>(scratch) + row_scales_bytes(block);
  float* sums = reinterpret_cast<float*>(x + block * depth_tiles * kPackedDepthInt8);
  const uint8_t* columns = static_cast<const uint8_t*>(linear.weight) + panel_depth_bytes_int8(linear.k);
  for_each_tile_block<TileDot::int8>(
      part, block, depth_tiles, linear.weight, panel_bytes, reinterpret_cast<const uint16_t*>(x), sums,
      [&](int64_t row, int64_t rows) {
        for (int64_t i = 0; i < rows; ++i) {
          uint8_t* line = x + i / kTileRows * row_of_tiles + i % kTileRows * 64;
          scales[i] = quantize_row(call, row + i, line, 1024);
        }
      },
      [&](float* from, int64_t block_begin, int64_t rows, int64_t panel) {
        scale_back(from, rows, scales, columns + panel * panel_bytes);
        finish_tile(linear, from, kPanelColumns, block_begin, rows, panel * kPanelColumns);
      });
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
