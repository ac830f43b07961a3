// SPDX-License-Identifier: Apache-2.0
// The tile vocabulary on AMX: eight tiles of 16 rows of 64 bytes. simd/tile_emulated.h has the same words in plain C++.
// Needs simd/vec.h and <immintrin.h>.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// g++ 12's tile loads and configuration carry no memory clobber: without a barrier, stores that fill the buffers may be moved
// behind them.
#define SLIPSTREAM_BARRIER() __asm__ volatile("" ::: "memory")

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0-3 are sums, 4-5 rows of x, 6-7 columns of the weight. `x_rows` is 16, or less when x has fewer rows: a product takes
// one cycle a row.
inline void open_tiles(int x_rows) {
  TileShapes shapes;
  for (int t = 0; t < 8; ++t) {
    shapes.row_bytes[t] = 64;
    shapes.rows[t] = static_cast<uint8_t>(t >= 6 ? 16 : x_rows);
  }
  SLIPSTREAM_BARRIER();
  _tile_loadconfig(&shapes);
  SLIPSTREAM_BARRIER();
}

inline void close_tiles() { _tile_release(); }

// The intrinsics take tile numbers as literals.
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, address, stride) \
  do {                                   \
    SLIPSTREAM_BARRIER();                \
    _tile_loadd(tile, address, stride);  \
  } while (0)
#define tile_store(tile, address, stride) \
  do {                                    \
    _tile_stored(tile, address, stride);  \
    SLIPSTREAM_BARRIER();                 \
  } while (0)
#define tile_dot_bf16(sums, x, w) _tile_dpbf16ps(sums, x, w)
#define tile_dot_int8(sums, x, w) _tile_dpbusd(sums, x, w)  // u8 of x, s8 of the weight

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
