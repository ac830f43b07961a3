// SPDX-License-Identifier: Apache-2.0
// The softmax between attention's two products, a row of scores at a time, and what every attention kernel shares: how keys and
// values are packed, how sums become results. Needs kernels/transpose.h and kernels/linear_vector.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Keys as a linear weight [keys, depth]: [panel of 32 keys][step of depth][32], where a step is one float or a bfloat16 pair.
// Both are 32-bit words, so one transposition of words serves both. `steps` may be more than the depth needs: zeros.
template <Step step>
inline void pack_keys(const AttentionCall& call, int64_t steps, uint8_t* to) {
  constexpr int64_t depth = StepOf<step>::depth;
  auto part = [&](int64_t from, int64_t left) {
    if (left >= kWidth) return load_element(call.k.data, call.k.type, from);
    return left > 0 ? load_element_partly(call.k.data, call.k.type, from, left) : Vec{};
  };
  for (int64_t key = 0; key < round_up(call.keys, kPanelColumns); key += kWidth) {
    uint8_t* panel = to + key / kPanelColumns * steps * kStepBytes + key % kPanelColumns * kColumnBytes;
    for (int64_t s = 0; s < steps; s += kWidth) {
      Vec block[kWidth];
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; ++r) {
        block[r] = Vec{};
        if (key + r >= call.keys) continue;
        const int64_t from = (key + r) * call.k.stride + s * depth, left = call.depth - s * depth;
        if constexpr (step == Step::float32) {
          block[r] = part(from, left);
        } else if (call.k.type == ElementType::bfloat16 && left >= 2 * kWidth) {
          block[r] = reinterpret_cast<Vec>(load_words(static_cast<const uint16_t*>(call.k.data) + from));
        } else {
          uint16_t halves[2 * kWidth];
          store(halves, part(from, left));
          store(halves + kWidth, part(from + kWidth, left - kWidth));
          block[r] = reinterpret_cast<Vec>(load_words(halves));
        }
      }
      transpose_block(block);
      const int64_t present = steps - s < kWidth ? steps - s : kWidth;
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; ++r) {
        if (r < present) store(reinterpret_cast<float*>(panel + (s + r) * kStepBytes), block[r]);
      }
    }
  }
}

// Values [keys, value_depth] as the weight of P V: [block of keys][panel of 32 value columns][step of keys][32]; the keys of the
// last block are zero-padded to a multiple of `padding`.
template <Step step>
inline void pack_values(const AttentionCall& call, int64_t block, int64_t padding, uint8_t* to) {
  constexpr int64_t depth = StepOf<step>::depth;
  const int64_t panels = round_up(call.value_depth, kPanelColumns) / kPanelColumns;
  auto value = [&](int64_t key, int64_t column) {
    if (key >= call.keys || column >= call.value_depth) return Vec{};
    const int64_t left = call.value_depth - column, from = key * call.v.stride + column;
    return left >= kWidth ? load_element(call.v.data, call.v.type, from)
                          : load_element_partly(call.v.data, call.v.type, from, left);
  };
  for (int64_t first = 0; first < call.keys; first += block) {
    const int64_t keys = call.keys - first < block ? call.keys - first : block;
    const int64_t steps = round_up(keys, padding) / depth;
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t s = 0; s < steps; ++s, to += kStepBytes) {
        for (int64_t c = 0; c < kPanelColumns; c += kWidth) {
          const int64_t key = first + s * depth, column = panel * kPanelColumns + c;
          if constexpr (step == Step::float32) {
            store(reinterpret_cast<float*>(to) + c, value(key, column));
          } else {
            VecU low, high;
            if (call.v.type == ElementType::bfloat16 && key + 1 < call.keys && column + kWidth <= call.value_depth) {
              const uint16_t* first_row = static_cast<const uint16_t*>(call.v.data) + key * call.v.stride + column;
              low = widened(*reinterpret_cast<const VecHInMemory*>(first_row));
              high = widened(*reinterpret_cast<const VecHInMemory*>(first_row + call.v.stride));
            } else {
              uint16_t halves[2 * kWidth];
              store(halves, value(key, column));
              store(halves + kWidth, value(key + 1, column));
              low = widened(*reinterpret_cast<const VecHInMemory*>(halves));
              high = widened(*reinterpret_cast<const VecHInMemory*>(halves + kWidth));
            }
            store(reinterpret_cast<float*>(to) + c, reinterpret_cast<Vec>(low | (high << 16)));
          }
        }
      }
    }
  }
}

constexpr float kInfinity = __builtin_inff();

// The mask of one query row over `count` keys from an element on, as something to add to scores: key by key.
__attribute__((noinline)) inline Vec mask_by_key(const AttentionCall& call, int64_t from, int64_t count) {
  const ElementType type = call.mask_type == MaskType::float32 ? ElementType::float32 : ElementType::bfloat16;
  Vec v{};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = from + i * call.mask_key;
    if (call.mask_type == MaskType::boolean) {
      v[i] = static_cast<const uint8_t*>(call.mask)[at] ? 0.f : -kInfinity;
    } else {
      v[i] = load_element_partly(call.mask, type, at, 1)[0];
    }
  }
  return v;
}

// The same of up to a register of keys that are neighbours.
template <MaskType type>
SLIPSTREAM_INLINE Vec mask_at(const AttentionCall& call, int64_t from, int64_t count) {
  if constexpr (type == MaskType::boolean) {
    const uint8_t* bytes = static_cast<const uint8_t*>(call.mask) + from;
    return select((count < kWidth ? load_bytes_first(bytes, count) : load_bytes(bytes)) == 0, broadcast(-kInfinity), Vec{});
  }
  constexpr ElementType element = type == MaskType::float32 ? ElementType::float32 : ElementType::bfloat16;
  return count < kWidth ? load_element_partly(call.mask, element, from, count) : load_element(call.mask, element, from);
}

// What a row has seen so far: the largest score (minus infinity: none), in every lane, and the weights' sum, lane by lane.
struct RowState {
  Vec most, sum;
};

inline void begin_rows(RowState* states, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    states[r].most = broadcast(-kInfinity);
    states[r].sum = Vec{};
  }
}

// Where a row's scores of a run of keys lie, and where its weights go: 32 of each side by side, the next 32 a step further.
// Weights may lie over scores that are done with.
template <typename X>
struct RowPlace {
  float* scores;
  int64_t scores_step;
  X* weights;
  int64_t weights_step;
};

// act(panel, column) for `count` keys, kWidth at a time.
template <typename Act>
SLIPSTREAM_INLINE void for_keys(int64_t count, const Act& act) {
  int64_t panel = 0;
  for (; (panel + 1) * kPanelColumns <= count; ++panel) {
#pragma GCC unroll 8
    for (int64_t column = 0; column < kPanelColumns; column += kWidth) act(panel, column);
  }
  for (int64_t column = 0; panel * kPanelColumns + column < count; column += kWidth) act(panel, column);
}

__attribute__((noinline)) inline Vec capped(Vec v, float softcap) { return tanh(v) * softcap; }

// What is done to scores before their largest is looked for: nothing to plain ones, whose scale becomes part of the exponential's; a
// mask of neighbouring keys is added; or anything. Told apart here and not at every register.
enum class Scores { plain, plus_boolean, plus_float32, plus_bfloat16, any };

inline Scores form_of_scores(const AttentionCall& call) {
  if (call.softcap == 0 && !call.mask && call.scale > 0) return Scores::plain;
  if (call.softcap > 0 || !call.mask || call.mask_key != 1) return Scores::any;
  if (call.mask_type == MaskType::boolean) return Scores::plus_boolean;
  return call.mask_type == MaskType::float32 ? Scores::plus_float32 : Scores::plus_bfloat16;
}

// Up to a register of a row's scores in their form.
template <Scores form>
SLIPSTREAM_INLINE Vec formed(const AttentionCall& call, int64_t head, int64_t row, int64_t key, Vec v) {
  if constexpr (form == Scores::plain) return v;
  const int64_t from = head * call.mask_head + row * call.mask_row + key * call.mask_key;
  const int64_t left = call.keys - key, count = left < kWidth ? left : kWidth;
  if constexpr (form == Scores::plus_boolean) return v * call.scale + mask_at<MaskType::boolean>(call, from, count);
  if constexpr (form == Scores::plus_float32) return v * call.scale + mask_at<MaskType::float32>(call, from, count);
  if constexpr (form == Scores::plus_bfloat16) return v * call.scale + mask_at<MaskType::bfloat16>(call, from, count);
  v *= call.softcap > 0 ? call.scale / call.softcap : call.scale;
  if (call.softcap > 0) v = capped(v, call.softcap);
  return call.mask ? v + mask_by_key(call, from, count) : v;
}

// One row's scores of the keys [keys.begin, keys.end), which begin at a panel, in their form, and minus infinity where the row may
// not see. Takes the largest into `state`.
template <Scores form, typename X>
SLIPSTREAM_INLINE void find_largest(const AttentionCall& call, int64_t head, int64_t row, KeyRange keys, const RowPlace<X> place,
                                    RowState& state) {
  const KeyRange seen = keys_of_rows(call, row, row);
  const int64_t from = seen.begin - keys.begin, to = seen.end - keys.begin;
  Vec most = state.most;
  for_keys(keys.end - keys.begin, [&](int64_t panel, int64_t column) {
    float* at = place.scores + panel * place.scores_step + column;
    const int64_t key = panel * kPanelColumns + column;
    const bool whole = key >= from && key + kWidth <= to;
    Vec v = formed<form>(call, head, row, keys.begin + key, load(at));
    if (!whole) v = lanes_within(v, from - key, to - key, -kInfinity);
    if (form != Scores::plain || !whole) store(at, v);
    most = at_least(most, v);
  });
  state.most = largest_of_lanes(most);
}

// The row's weights 2^(factor * (score - largest)), followed by zeros up to a multiple of `padding` keys; their sum, lane by lane.
template <typename X>
SLIPSTREAM_INLINE Vec weigh_row(int64_t count, int64_t padding, float factor, const RowPlace<X> place, const RowState& state) {
  const Vec most = state.most[0] == -kInfinity ? Vec{} : state.most;
  Vec sum{};
  for_keys(count, [&](int64_t panel, int64_t column) {
    const Vec v = load(place.scores + panel * place.scores_step + column);
    // The largest score is taken off first: masks hold the least finite number, which is to stay finite until then, and where scores
    // are huge the rounding of their products with the factor would be too.
    const Vec w = exp2<sizeof(X) == 2>((v - most) * factor);
    sum += w;
    store(place.weights + panel * place.weights_step + column, w);
  });
  for (int64_t key = round_up(count, kWidth); key < round_up(count, padding); key += kWidth) {
    store(place.weights + key / kPanelColumns * place.weights_step + key % kPanelColumns, Vec{});
  }
  return sum;
}

// A strip's scores of the keys [keys.begin, keys.end) become weights, row by row, rows lying at `place` of their number. shrink[r]
// is the factor by which what was summed before shrinks: 1 unless a larger score was found.
template <Scores form, typename X, typename Place>
inline void weigh_strip(const AttentionCall& call, int64_t head, int64_t begin, int64_t rows, KeyRange keys, int64_t padding,
                        const Place& place, RowState* states, float* shrink) {
  const float factor = form == Scores::plain ? call.scale * kLog2OfE : kLog2OfE;
  // All rows' largest first, so that the long way from lane to lane is that of several rows at once.
  for (int64_t r = 0; r < rows; ++r) {
    shrink[r] = states[r].most[0];
    find_largest<form, X>(call, head, begin + r, keys, place(r), states[r]);
  }
  for (int64_t r = 0; r < rows; ++r) {
    RowState& state = states[r];
    const Vec sum = weigh_row<X>(keys.end - keys.begin, padding, factor, place(r), state);
    const float before = shrink[r];
    shrink[r] = 1;
    if (state.most[0] > before) {
      shrink[r] = before == -kInfinity ? 0.f : exp2<sizeof(X) == 2>((before - state.most) * factor)[0];
    }
    state.sum = state.sum * shrink[r] + sum;
  }
}

template <typename X, typename Place>
inline void weigh(const AttentionCall& call, int64_t head, int64_t begin, int64_t rows, KeyRange keys, int64_t padding,
                  const Place& place, RowState* states, float* shrink) {
  auto as = [&](auto strip) { strip(call, head, begin, rows, keys, padding, place, states, shrink); };
  switch (form_of_scores(call)) {
    case Scores::plain: return as(weigh_strip<Scores::plain, X, Place>);
    case Scores::plus_boolean: return as(weigh_strip<Scores::plus_boolean, X, Place>);
    case Scores::plus_float32: return as(weigh_strip<Scores::plus_float32, X, Place>);
    case Scores::plus_bfloat16: return as(weigh_strip<Scores::plus_bfloat16, X, Place>);
    case Scores::any: return as(weigh_strip<Scores::any, X, Place>);
  }
}

// Sums [panel of value columns][panel_rows][32] of the rows from `begin` on, divided by the weights' sums, to y.
inline void finish_rows(const AttentionCall& call, int64_t head, int64_t begin, int64_t rows, const float* sums,
                        int64_t panel_rows, const RowState* states) {
  for (int64_t r = 0; r < rows; ++r) {
    const float sum = sum_of_lanes(states[r].sum)[0], factor = sum == 0 ? call.unseen : 1.f / sum;
    for (int64_t c = 0; c < call.value_depth; c += kWidth) {
      const int64_t count = call.value_depth - c < kWidth ? call.value_depth - c : kWidth;
      const float* from = sums + (c / kPanelColumns * panel_rows + r) * kPanelColumns + c % kPanelColumns;
      const Vec y = factor == 0 ? Vec{} : load(from) * factor;
      store_element(call.y, call.y_type, head * call.y_head + (begin + r) * call.y_stride + c, count, y);
    }
  }
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
