// SPDX-License-Identifier: Apache-2.0
// One step of depth of a strip: a few rows of x times two registers of columns of a packed weight, for every type of operands.
//
// A level says how bfloat16 is multiplied, by defining before it includes this:
//   SLIPSTREAM_DOT_BF16   vdpbf16ps: x is rounded to bfloat16, two k a step
// Without it bfloat16 weights are widened in registers and x stays float32. How int8 is multiplied: simd/dot_int8.h, which this
// needs too.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Registers: rows x kStripVectors sums, the weight's vectors of one step and one broadcast.
//   512 bits, 32 registers: 12 x 2 + 2 + 1 (widened bfloat16: + 2)
//   256 bits, 16 registers:  6 x 2 + 2 + 1; 128 bits likewise
constexpr int kStripVectors = 2;
constexpr int kStripRows = kWidth == 16 ? 12 : 6;
constexpr int kStripColumns = kStripVectors * kWidth;
static_assert(kPanelColumns % kStripColumns == 0, "a panel is a whole number of strips");

// widen_both: x is kept in bfloat16 too; half: both sides in float16; widen_half: weights in float16, widened; int16 and widen_int16:
// the same as integers of 16 bits
enum class Step { dot_bf16, widen_bf16, widen_both, float32, int8, half, widen_half, int16, widen_int16 };

// Elements of x that one step of depth takes, the type in which x is kept in scratch memory, and that of the sums.
template <Step step>
struct StepOf {
  static constexpr int64_t depth = step == Step::float32 ? 1 : 2;
  using X = float;
  using Sum = Vec;
};
template <>
struct StepOf<Step::dot_bf16> {
  static constexpr int64_t depth = 2;
  using X = uint16_t;
  using Sum = Vec;
};
template <>
struct StepOf<Step::widen_both> : StepOf<Step::dot_bf16> {};
#ifdef SLIPSTREAM_HALF
template <>
struct StepOf<Step::half> {
  static constexpr int64_t depth = 2;
  using X = Half;
  using Sum = VecHalf;  // even k and odd k by themselves
};
#endif
template <>
struct StepOf<Step::int16> {
  static constexpr int64_t depth = 2;
  using X = int16_t;
  using Sum = VecI;
};
template <>
struct StepOf<Step::int8> {
  static constexpr int64_t depth = 4;
  using X = QuantizedX;
  using Sum = VecI;
};

// Whether sums are put back by what their rows and columns were scaled by.
template <Step step>
constexpr bool kPutsBack = step == Step::half || step == Step::widen_half || step == Step::int16 || step == Step::widen_int16;

// Whether x is scaled as well.
template <Step step>
constexpr bool kScalesX = step == Step::half || step == Step::int16;

// Rows of a strip. Where int8 is multiplied in two halves, the halves of the weights need registers: 4 x 2 + 4 + 2 of 16.
template <Step step>
constexpr int kRowsOf = step == Step::int8 && !kDotInt8 && kWidth < 16 ? 4 : kStripRows;

// Rows of x by one pointer and 11 distances, for a loop of known length ...
template <typename X>
struct RowsFromFirst {
  const X* first;
  int64_t stride;
  SLIPSTREAM_INLINE const X* at(int r) const { return first + r * stride; }
};

// ... and by a pointer for each four rows and three distances, which leaves registers for more. The pointers are made strange to
// each other, or the compiler would fall back on the first of them.
template <typename X, int rows>
struct RowsByFours {
  const X* of_four[(rows + 3) / 4];
  int64_t stride;
  SLIPSTREAM_INLINE RowsByFours(const X* first, int64_t stride) : stride(stride) {
#pragma GCC unroll 4
    for (int i = 0; i < (rows + 3) / 4; ++i) {
      of_four[i] = first + 4 * i * stride;
      __asm__("" : "+r"(of_four[i]));
    }
  }
  SLIPSTREAM_INLINE const X* at(int r) const { return of_four[r / 4] + r % 4 * stride; }
  SLIPSTREAM_INLINE void step(int64_t depth) {
#pragma GCC unroll 4
    for (int i = 0; i < (rows + 3) / 4; ++i) of_four[i] += depth;
  }
};

// Whether the two k of a step are widened one after the other, and the weights read twice for that: where those of both find no room
// beside the sums in 16 registers.
constexpr bool widens_in_turn(int rows, int vectors) { return kWidth < 16 && rows * vectors + 2 * vectors + 1 > 16; }

// The first or second element of a row of x in a step, in all lanes.
template <Step step, typename X>
SLIPSTREAM_INLINE Vec broadcast_of_pair(const X* x, int element) {
  if constexpr (step == Step::widen_both) {
    uint32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    const VecU pairs = pair - VecU{};
    return reinterpret_cast<Vec>(element ? pairs & 0xffff0000u : pairs << 16);
  } else {
    return broadcast(x[element]);
  }
}

// One step of bfloat16 weights that are widened in turn.
template <Step step, int rows, int vectors, typename RowsOfX>
SLIPSTREAM_INLINE void multiply_in_turn(Vec (&sums)[rows][vectors], const RowsOfX& x, const void* w) {
#pragma GCC unroll 2
  for (int element = 0; element < 2; ++element) {
    __asm__("" : "+r"(w));  // else the compiler would keep what it read for the first
    Vec weights[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      const VecU pairs = load_words(static_cast<const uint32_t*>(w) + v * kWidth);
      weights[v] = reinterpret_cast<Vec>(element ? pairs & 0xffff0000u : pairs << 16);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec of_x = broadcast_of_pair<step>(x.at(r), element);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sums[r][v] += of_x * weights[v];
    }
  }
}

// One step: sums[r][v] += x[r][k ...] * w[k ...][v]. w points at this step's kPanelColumns * depth elements.
template <Step step, int rows, int vectors, typename RowsOfX>
SLIPSTREAM_INLINE void multiply_step(typename StepOf<step>::Sum (&sums)[rows][vectors], const RowsOfX& x, const void* w) {
  if constexpr (step == Step::int8) {
    WeightsInt8 weights[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) weights[v] = load_int8(static_cast<const uint32_t*>(w) + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const FourOfX four = broadcast_four(x.at(r));
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] = dot_int8(sums[r][v], four, weights[v]);
    }
  } else if constexpr (step == Step::int16) {
    VecI weights[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) weights[v] = reinterpret_cast<VecI>(load_words(static_cast<const uint32_t*>(w) + v * kWidth));
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const VecI pairs = broadcast_word(x.at(r));
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] = dot_int16(sums[r][v], pairs, weights[v]);
    }
  } else if constexpr (step == Step::half) {
#ifdef SLIPSTREAM_HALF
    VecHalf weights[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) weights[v] = load_pairs(static_cast<const uint32_t*>(w) + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const VecHalf pairs = broadcast_pair(x.at(r));
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] += pairs * weights[v];
    }
#endif
  } else if constexpr (step == Step::dot_bf16) {
#ifdef SLIPSTREAM_DOT_BF16
    VecU weights[vectors];
    for (int v = 0; v < vectors; ++v) weights[v] = load_words(static_cast<const uint32_t*>(w) + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      uint32_t pair;
      __builtin_memcpy(&pair, x.at(r), sizeof pair);
      const VecU pairs = pair - VecU{};
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] = dot_bf16(sums[r][v], pairs, weights[v]);
    }
#endif
  } else if constexpr (widens_in_turn(rows, vectors) && (step == Step::widen_bf16 || step == Step::widen_both)) {
    multiply_in_turn<step>(sums, x, w);
  } else if constexpr (step == Step::widen_bf16 || step == Step::widen_both || step == Step::widen_half ||
                       step == Step::widen_int16) {
    Vec first[vectors], second[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const VecU pairs = load_words(static_cast<const uint32_t*>(w) + v * kWidth);
      if constexpr (step == Step::widen_half) {
#ifdef SLIPSTREAM_HALF
        first[v] = widened_half(pairs << 16);
        second[v] = widened_half(pairs);
#endif
      } else if constexpr (step == Step::widen_int16) {
        const VecI integers = reinterpret_cast<VecI>(pairs);
        first[v] = __builtin_convertvector((integers << 16) >> 16, Vec);
        second[v] = __builtin_convertvector(integers >> 16, Vec);
      } else {
        first[v] = reinterpret_cast<Vec>(pairs << 16);
        second[v] = reinterpret_cast<Vec>(pairs & 0xffff0000u);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec x0 = broadcast_of_pair<step>(x.at(r), 0), x1 = broadcast_of_pair<step>(x.at(r), 1);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] += x0 * first[v];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] += x1 * second[v];
    }
  } else {
    Vec weights[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) weights[v] = load(static_cast<const float*>(w) + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec x0 = broadcast(*x.at(r));
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] += x0 * weights[v];
    }
  }
}

template <Step step, int rows, int vectors = kStripVectors>
SLIPSTREAM_INLINE void multiply_step(typename StepOf<step>::Sum (&sums)[rows][vectors],
                                     const typename StepOf<step>::X* x, int64_t x_stride, const void* w) {
  multiply_step<step, rows>(sums, RowsFromFirst<typename StepOf<step>::X>{x, x_stride}, w);
}

// Sums as they are stored: those of int8 as integers in the floats' place, those of float16 times 2^kHalfExponent.
template <Step step>
SLIPSTREAM_INLINE Vec stored_sum(typename StepOf<step>::Sum sum) {
  if constexpr (step == Step::int8) return reinterpret_cast<Vec>(sum);
  else if constexpr (step == Step::int16) return __builtin_convertvector(sum, Vec);
#ifdef SLIPSTREAM_HALF
  else if constexpr (step == Step::half) return sums_of_pairs(sum);
#endif
  else return sum;
}

// Bytes of weight that one step takes for a column (a float, a pair of bfloat16, four int8), and for the whole panel.
constexpr int64_t kColumnBytes = 4;
constexpr int64_t kStepBytes = kPanelColumns * kColumnBytes;

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
