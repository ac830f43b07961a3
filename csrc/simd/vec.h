// SPDX-License-Identifier: Apache-2.0
// The vector vocabulary: floats in registers of the width that a level has. A level's source file sets
// SLIPSTREAM_LEVEL (its namespace) and SLIPSTREAM_WIDTH (floats a register), opens its target region and includes this.
// Compiler vectors, not intrinsics: one text serves every level, and multiply-adds are contracted to FMA where there is one.

#include "../kernels/linear.h"

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

constexpr int kWidth = SLIPSTREAM_WIDTH;

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t VecI __attribute__((vector_size(kWidth * 4)));
typedef uint32_t VecU __attribute__((vector_size(kWidth * 4)));
typedef uint16_t VecH __attribute__((vector_size(kWidth * 2)));

// The same, as they lie in memory: aligned to their elements only, and free to alias.
typedef float VecInMemory __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint32_t VecUInMemory __attribute__((vector_size(kWidth * 4), aligned(2), may_alias));  // also pairs of bfloat16
typedef uint16_t VecHInMemory __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));
typedef uint8_t VecBInMemory __attribute__((vector_size(kWidth), aligned(1), may_alias));

// The numbers of a register's lanes, for shuffles with constant patterns.
template <int... lane>
struct LaneList {};
template <int count, int... lane>
struct MakeLanes : MakeLanes<count - 1, count - 1, lane...> {};
template <int... lane>
struct MakeLanes<0, lane...> {
  using List = LaneList<lane...>;
};
using Lanes = MakeLanes<kWidth>::List;

#define SLIPSTREAM_INLINE inline __attribute__((always_inline))

SLIPSTREAM_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecInMemory*>(p); }
SLIPSTREAM_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecInMemory*>(p) = v; }
SLIPSTREAM_INLINE VecU load_words(const void* p) { return *reinterpret_cast<const VecUInMemory*>(p); }
SLIPSTREAM_INLINE void store_words(void* p, VecU v) { *reinterpret_cast<VecUInMemory*>(p) = v; }
SLIPSTREAM_INLINE Vec broadcast(float value) { return value - Vec{}; }

// Lanes of 16 bits to 32 bits, and back (cut). The compiler's own conversions go by half registers; the masks are there because
// the plain intrinsics make GCC warn of the undefined register that they start from.
SLIPSTREAM_INLINE VecU widened(VecH half) {
#if SLIPSTREAM_WIDTH == 16
  return reinterpret_cast<VecU>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(half)));
#else
  return __builtin_convertvector(half, VecU);
#endif
}

SLIPSTREAM_INLINE VecH narrowed(VecU words) {
#if SLIPSTREAM_WIDTH == 16
  return reinterpret_cast<VecH>(_mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(words)));
#else
  return __builtin_convertvector(words, VecH);
#endif
}

// kWidth bytes, each as a lane.
SLIPSTREAM_INLINE VecI load_bytes(const void* p) {
#if SLIPSTREAM_WIDTH == 16
  return reinterpret_cast<VecI>(_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(static_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(*static_cast<const VecBInMemory*>(p), VecI);
#endif
}

// The first `count` of them only; the other lanes are zero, and their memory is not touched.
SLIPSTREAM_INLINE VecI load_bytes_first(const uint8_t* p, int64_t count) {
#if SLIPSTREAM_WIDTH == 16
  return reinterpret_cast<VecI>(
      _mm512_maskz_cvtepu8_epi32(0xffff, _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << count) - 1), p)));
#else
  VecI v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
#endif
}

// bfloat16 is the upper half of a float.
SLIPSTREAM_INLINE Vec load(const uint16_t* p) {
  return reinterpret_cast<Vec>(widened(*reinterpret_cast<const VecHInMemory*>(p)) << 16);
}

// Rounds to nearest even; a NaN stays a NaN (its quiet bit is set, so that the cut cannot make it an infinity).
SLIPSTREAM_INLINE VecH rounded_to_bf16(Vec v) {
#ifdef SLIPSTREAM_CONVERT_BF16  // one instruction; it takes denormals as zero, as dot products do
  return reinterpret_cast<VecH>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v)));
#else
  const VecU bits = reinterpret_cast<VecU>(v);
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecU nan = (bits >> 16) | 0x40u;
  return narrowed(reinterpret_cast<VecU>(v != v) ? nan : rounded);
#endif
}

SLIPSTREAM_INLINE void store(uint16_t* p, Vec v) { *reinterpret_cast<VecHInMemory*>(p) = rounded_to_bf16(v); }

// The first `count` elements only; the other lanes are zero, and their memory is not touched.
SLIPSTREAM_INLINE Vec load_first(const float* p, int64_t count) {
#if SLIPSTREAM_WIDTH == 16
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
#else
  Vec v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
#endif
}

SLIPSTREAM_INLINE Vec load_first(const uint16_t* p, int64_t count) {
#if SLIPSTREAM_WIDTH == 16
  const VecH half = reinterpret_cast<VecH>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p));
#else
  VecH half{};
  for (int64_t i = 0; i < count; ++i) half[i] = p[i];
#endif
  return reinterpret_cast<Vec>(widened(half) << 16);
}

SLIPSTREAM_INLINE void store_first(float* p, int64_t count, Vec v) {
#if SLIPSTREAM_WIDTH == 16
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512>(v));
#else
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
#endif
}

SLIPSTREAM_INLINE void store_first(uint16_t* p, int64_t count, Vec v) {
#if SLIPSTREAM_WIDTH == 16
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m256i>(rounded_to_bf16(v)));
#else
  const VecH halves = rounded_to_bf16(v);
  for (int64_t i = 0; i < count; ++i) p[i] = halves[i];
#endif
}

template <int... lane>
SLIPSTREAM_INLINE VecI numbered(LaneList<lane...>) {
  return VecI{lane...};
}

// v with zeros from lane `count` on.
SLIPSTREAM_INLINE Vec first_lanes(Vec v, int64_t count) { return numbered(Lanes{}) < static_cast<int32_t>(count) ? v : Vec{}; }

// v with `outside` in the lanes before `begin` and from `end` on; either may lie beyond the register.
SLIPSTREAM_INLINE Vec lanes_within(Vec v, int64_t begin, int64_t end, float outside) {
  const VecI lane = numbered(Lanes{});
  const int32_t first = static_cast<int32_t>(begin < 0 ? 0 : begin < kWidth ? begin : kWidth);
  const int32_t last = static_cast<int32_t>(end < 0 ? 0 : end < kWidth ? end : kWidth);
  return (lane >= first) & (lane < last) ? v : broadcast(outside);
}

template <int distance, int... lane>
SLIPSTREAM_INLINE Vec partners(Vec v, LaneList<lane...>) {
  return __builtin_shufflevector(v, v, (lane ^ distance)...);
}

// The sum of all lanes, in every lane; pairs of halves, so four additions deep at most.
SLIPSTREAM_INLINE Vec sum_of_lanes(Vec v) {
  if constexpr (kWidth > 8) v += partners<8>(v, Lanes{});
  if constexpr (kWidth > 4) v += partners<4>(v, Lanes{});
  v += partners<2>(v, Lanes{});
  return v + partners<1>(v, Lanes{});
}

SLIPSTREAM_INLINE Vec select(VecI condition, Vec a, Vec b) { return condition ? a : b; }
// NaN in v comes through: a comparison with NaN is false, and then v is taken.
SLIPSTREAM_INLINE Vec at_least(Vec v, Vec low) { return select(v < low, low, v); }
SLIPSTREAM_INLINE Vec at_most(Vec v, Vec high) { return select(v > high, high, v); }
// The largest of all lanes, none of them NaN, in every lane.
SLIPSTREAM_INLINE Vec largest_of_lanes(Vec v) {
  if constexpr (kWidth > 8) v = at_least(v, partners<8>(v, Lanes{}));
  if constexpr (kWidth > 4) v = at_least(v, partners<4>(v, Lanes{}));
  v = at_least(v, partners<2>(v, Lanes{}));
  return at_least(v, partners<1>(v, Lanes{}));
}
SLIPSTREAM_INLINE int32_t largest_lane(VecI v) {
  auto with_partners = [&](Vec partner) {
    const VecI other = reinterpret_cast<VecI>(partner);
    v = other > v ? other : v;
  };
  if constexpr (kWidth > 8) with_partners(partners<8>(reinterpret_cast<Vec>(v), Lanes{}));
  if constexpr (kWidth > 4) with_partners(partners<4>(reinterpret_cast<Vec>(v), Lanes{}));
  with_partners(partners<2>(reinterpret_cast<Vec>(v), Lanes{}));
  with_partners(partners<1>(reinterpret_cast<Vec>(v), Lanes{}));
  return v[0];
}
SLIPSTREAM_INLINE int32_t sum_of_lanes(VecI v) {
  auto add_partners = [&](Vec partner) { v += reinterpret_cast<VecI>(partner); };
  if constexpr (kWidth > 8) add_partners(partners<8>(reinterpret_cast<Vec>(v), Lanes{}));
  if constexpr (kWidth > 4) add_partners(partners<4>(reinterpret_cast<Vec>(v), Lanes{}));
  add_partners(partners<2>(reinterpret_cast<Vec>(v), Lanes{}));
  add_partners(partners<1>(reinterpret_cast<Vec>(v), Lanes{}));
  return v[0];
}
SLIPSTREAM_INLINE Vec absolute(Vec v) { return reinterpret_cast<Vec>(reinterpret_cast<VecU>(v) & 0x7fffffffu); }

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
