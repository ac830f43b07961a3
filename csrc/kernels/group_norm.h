// SPDX-License-Identifier: Apache-2.0
// Group norm, channels first or last, in three steps: each block's mean and squares of distances from that mean, two passes over
// memory that the first has brought into a cache; the blocks' figures joined in float64 (Chan, Golub, LeVeque, 1979), which loses
// no digits to a large mean; y. Memory is read once where an item stays in a cache until it is written, else twice. Channels last
// the figures are a channel's own until they are joined, since neighbours in a register are. Needs kernels/norm.h and
// kernels/linear_finish.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// The sums over a block's pixels of term(pixel, channel, count), for each channel; four pixels at a time.
template <typename Term>
SLIPSTREAM_INLINE void add_pixels(int64_t pixels, int64_t channels, float* sums, const Term& term) {
  int64_t p = 0;
  for (; p + 4 <= pixels; p += 4) {
    for_each_vector(channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      const Vec four = (term(p, c, count) + term(p + 1, c, count)) + (term(p + 2, c, count) + term(p + 3, c, count));
      put(sums + c, count, p ? take(sums + c, count) + four : four);
    });
  }
  for (; p < pixels; ++p) {
    for_each_vector(channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      put(sums + c, count, p ? take(sums + c, count) + term(p, c, count) : term(p, c, count));
    });
  }
}

template <typename X>
void moments_of_pixels(const X* x, int64_t stride, int64_t pixels, int64_t channels, float* mean, float* squares) {
  add_pixels(pixels, channels, mean, [&](int64_t p, int64_t c, int64_t count) __attribute__((always_inline)) {
    return take(x + p * stride + c, count);
  });
  const float length = static_cast<float>(pixels);
  for_each_vector(channels, [&](int64_t c, int64_t count) { put(mean + c, count, take(mean + c, count) / length); });
  add_pixels(pixels, channels, squares, [&](int64_t p, int64_t c, int64_t count) __attribute__((always_inline)) {
    const Vec distance = take(x + p * stride + c, count) - take(mean + c, count);
    return distance * distance;
  });
}

template <typename X>
void moments_of_run(const X* x, int64_t length, float* mean, float* squares) {
  const auto element = [&](int64_t i, int64_t count) __attribute__((always_inline)) { return take(x + i, count); };
  const Vec total = sum_of_terms(length, element);
  const Vec middle = total / static_cast<float>(length);
  const Vec sum = sum_of_terms(length, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    Vec distance = take(x + i, count) - middle;
    if (count < kWidth) distance = first_lanes(distance, count);
    return distance * distance;
  });
  *mean = middle[0];
  *squares = sum[0];
}

// Where an item's elements begin, in elements of x; those of y lie as x's would without gaps.
SLIPSTREAM_INLINE int64_t item_in_x(const GroupNormCall& call, int64_t item) {
  if (call.channels_last) return item * call.x_sample;
  return item / call.groups * call.x_sample + item % call.groups * call.length();
}

// Blocks [begin, end) of an item, to the item's `moments`.
inline void group_moments(const GroupNormCall& call, int64_t item, int64_t begin, int64_t end, float* moments) {
  const int64_t block = call.block(), width = call.width(), length = call.length();
  with_elements(call.x.data, call.x.type, [&](auto* all) {
    const auto* x = all + item_in_x(call, item);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * block, count = length - first < block ? length - first : block;
      float *mean = moments + b * 2 * width, *squares = mean + width;
      if (call.channels_last) {
        moments_of_pixels(x + first * call.x.stride, call.x.stride, count, width, mean, squares);
      } else {
        moments_of_run(x + first, count, mean, squares);
      }
    }
  });
}

// Joins all blocks' figures into those of the first, for each of `width`.
inline void join_blocks(const GroupNormCall& call, float* moments) {
  constexpr int64_t kStrip = 64;
  const int64_t block = call.block(), width = call.width(), length = call.length(), blocks = call.blocks();
  if (blocks == 1) return;
  for (int64_t first = 0; first < width; first += kStrip) {
    const int64_t count = width - first < kStrip ? width - first : kStrip;
    double mean[kStrip] = {}, squares[kStrip] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t before = b * block, size = length - before < block ? length - before : block;
      const double share = static_cast<double>(size) / static_cast<double>(before + size);
      const double weight = static_cast<double>(before) * share;
      const float *block_mean = moments + b * 2 * width + first, *block_squares = block_mean + width;
      for (int64_t i = 0; i < count; ++i) {
        const double distance = block_mean[i] - mean[i];
        mean[i] += distance * share;
        squares[i] += block_squares[i] + distance * distance * weight;
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      moments[first + i] = static_cast<float>(mean[i]);
      moments[width + first + i] = static_cast<float>(squares[i]);
    }
  }
}

// The item's `table` from the figures of all its blocks. Channels first the factor has no weight in it yet.
inline void settle_group(const GroupNormCall& call, float* moments, float* table) {
  join_blocks(call, moments);
  const int64_t width = call.width(), groups = call.channels_last ? call.groups : 1, members = width / groups;
  const double length = static_cast<double>(call.length());
  for (int64_t g = 0; g < groups; ++g) {
    const float *means = moments + g * members, *squares = means + width;
    double mean = 0, sum = 0;
    for (int64_t i = 0; i < members; ++i) mean += means[i];
    mean /= static_cast<double>(members);
    for (int64_t i = 0; i < members; ++i) sum += squares[i] + (means[i] - mean) * (means[i] - mean) * length;
    const double variance = sum / (length * static_cast<double>(members));
    const float factor = static_cast<float>(1.0 / __builtin_sqrt(variance + static_cast<double>(call.eps)));
    for (int64_t c = g * members; c < (g + 1) * members; ++c) {
      table[c] = static_cast<float>(mean);
      table[width + c] = call.channels_last && call.weight ? factor * call.weight[c] : factor;
      table[2 * width + c] = call.channels_last && call.bias ? call.bias[c] : 0.f;
    }
  }
}

template <PostOp op, typename X, typename Y>
void finish_pixels(const GroupNormCall& call, const X* x, Y* y, int64_t pixels, const float* table) {
  const int64_t channels = call.channels;
  const float *factor = table + channels, *bias = factor + channels;
  for (int64_t p = 0; p < pixels; ++p, x += call.x.stride, y += channels) {
    for_each_vector(channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      const Vec v = (take(x + c, count) - take(table + c, count)) * take(factor + c, count) + take(bias + c, count);
      put(y + c, count, post_op_into<op>(kTypeOf<Y>, v));
    });
  }
}

// Elements [begin, end) of a group, channel by channel.
template <PostOp op, typename X, typename Y>
void finish_run(const GroupNormCall& call, int64_t group, const X* x, Y* y, int64_t begin, int64_t end, const float* table) {
  const int64_t first_channel = group * call.group_channels();
  const Vec mean = broadcast(table[0]);
  for (int64_t at = begin; at < end;) {
    const int64_t within = at / call.pixels, c = first_channel + within;
    const int64_t stop = (within + 1) * call.pixels < end ? (within + 1) * call.pixels : end;
    const Vec factor = broadcast(call.weight ? table[1] * call.weight[c] : table[1]);
    const Vec bias = broadcast(call.bias ? call.bias[c] : 0.f);
    for_each_vector(stop - at, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      put(y + at + i, count, post_op_into<op>(kTypeOf<Y>, (take(x + at + i, count) - mean) * factor + bias));
    });
    at = stop;
  }
}

// y of blocks [begin, end) of an item.
inline void finish_group(const GroupNormCall& call, int64_t item, int64_t begin, int64_t end, const float* table) {
  const int64_t block = call.block(), length = call.length();
  const int64_t first = begin * block, last = end * block < length ? end * block : length;
  with_post_op(call.post_op, [&](auto op) {
    constexpr PostOp value = decltype(op)::value;
    with_elements(call.x.data, call.x.type, [&](auto* all_x) {
      const auto* x = all_x + item_in_x(call, item);
      with_elements(call.y, call.y_type, [&](auto* all_y) {
        auto* y = all_y + item * length * call.width();
        if (call.channels_last) {
          return finish_pixels<value>(call, x + first * call.x.stride, y + first * call.channels, last - first, table);
        }
        finish_run<value>(call, item % call.groups, x, y, first, last, table);
      });
    });
  });
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
