// SPDX-License-Identifier: Apache-2.0
// The tile vocabulary in plain C++, for testing tile kernels on processors without AMX; see simd/tile_amx.h.
// Arithmetic follows the instructions: products of bfloat16 pairs, sums in float32, denormals of the inputs as zero; products
// of four u8 and s8, sums in int32.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

struct EmulatedTiles {
  int x_rows = 0;
  alignas(64) uint8_t bytes[8][16][64] = {};
  int rows(int tile) const { return tile >= 6 ? 16 : x_rows; }
};

inline EmulatedTiles& emulated_tiles() {
  static thread_local EmulatedTiles tiles;
  return tiles;
}

inline void open_tiles(int x_rows) {
  emulated_tiles() = EmulatedTiles{};
  emulated_tiles().x_rows = x_rows;
}
inline void close_tiles() { emulated_tiles().x_rows = 0; }

inline void tile_zero(int tile) { __builtin_memset(emulated_tiles().bytes[tile], 0, 16 * 64); }

inline void tile_load(int tile, const void* address, int64_t stride) {
  EmulatedTiles& t = emulated_tiles();
  for (int r = 0; r < t.rows(tile); ++r) __builtin_memcpy(t.bytes[tile][r], static_cast<const char*>(address) + r * stride, 64);
}

inline void tile_store(int tile, void* address, int64_t stride) {
  const EmulatedTiles& t = emulated_tiles();
  for (int r = 0; r < t.rows(tile); ++r) __builtin_memcpy(static_cast<char*>(address) + r * stride, t.bytes[tile][r], 64);
}

inline float emulated_bf16(const uint8_t* p) {
  uint32_t bits = static_cast<uint32_t>(p[0]) << 16 | static_cast<uint32_t>(p[1]) << 24;
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline void tile_dot_bf16(int sums, int x, int w) {
  EmulatedTiles& t = emulated_tiles();
  for (int r = 0; r < t.rows(sums); ++r) {
    float line[16];
    __builtin_memcpy(line, t.bytes[sums][r], 64);
    for (int pair = 0; pair < 16; ++pair) {
      const float x0 = emulated_bf16(t.bytes[x][r] + pair * 4), x1 = emulated_bf16(t.bytes[x][r] + pair * 4 + 2);
      for (int c = 0; c < 16; ++c) {
        const uint8_t* two = t.bytes[w][pair] + c * 4;
        line[c] += x0 * emulated_bf16(two) + x1 * emulated_bf16(two + 2);
      }
    }
    __builtin_memcpy(t.bytes[sums][r], line, 64);
  }
}

inline void tile_dot_int8(int sums, int x, int w) {
  EmulatedTiles& t = emulated_tiles();
  for (int r = 0; r < t.rows(sums); ++r) {
    int32_t line[16];
    __builtin_memcpy(line, t.bytes[sums][r], 64);
    for (int four = 0; four < 16; ++four) {
      const uint8_t* x4 = t.bytes[x][r] + four * 4;
      for (int c = 0; c < 16; ++c) {
        const uint8_t* w4 = t.bytes[w][four] + c * 4;
        for (int i = 0; i < 4; ++i) line[c] += x4[i] * static_cast<int8_t>(w4[i]);
      }
    }
    __builtin_memcpy(t.bytes[sums][r], line, 64);
  }
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
