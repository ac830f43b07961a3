// SPDX-License-Identifier: Apache-2.0
// 2^t, tanh, sigmoid, the normal distribution: over vectors, in single precision. Needs simd/vec.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

constexpr float kLog2OfE = 1.44269504f;

// 2^n 2^f of t = n + f with |f| <= 1/2, for t <= 127: 2^f by the polynomial through 1 whose largest relative error is least, of degree
// 5 (9e-8, and 1.6e-7 with rounding), or of degree 4 (3e-6) for results that are rounded to bfloat16. Exactly 1 at 0, 0 below
// -126.5, NaN for NaN.
template <bool for_bf16>
SLIPSTREAM_INLINE Vec exp2(Vec t) {
  const Vec x = at_least(t, broadcast(-127.f));  // n is -127 there, whose power comes out as 0
  const Vec magic = broadcast(12583039.f);       // 1.5 * 2^23 + 127: adding it rounds to n + 127, kept in the low bits
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  Vec p;
  if constexpr (for_bf16) {
    p = f * 9.582853236e-3f + 5.590642594e-2f;
    p = p * f + 2.402409862e-1f;
    p = p * f + 6.931241933e-1f;
  } else {
    p = f * 1.326472725e-3f + 9.671512786e-3f;
    p = p * f + 5.550733744e-2f;
    p = p * f + 2.402224208e-1f;
    p = p * f + 6.931469776e-1f;
  }
  p = p * f + 1.f;
  return p * reinterpret_cast<Vec>(reinterpret_cast<VecI>(shifted) << 23);
}

SLIPSTREAM_INLINE Vec relu6(Vec v) { return at_most(at_least(v, broadcast(0.f)), broadcast(6.f)); }

// 1 / v for finite v of at least 1, relative error 1e-7 at most, or 6.2e-5 for results that are rounded to bfloat16: an estimate of 14
// bits, and a step of Newton's. A division of 16 lanes takes 16 cycles.
template <bool for_bf16>
SLIPSTREAM_INLINE Vec reciprocal(Vec v) {
#if SLIPSTREAM_WIDTH == 16
  const Vec r = reinterpret_cast<Vec>(_mm512_maskz_rcp14_ps(0xffff, reinterpret_cast<__m512>(v)));
  if constexpr (for_bf16) return r;
  return r + r * (1.f - v * r);
#else
  return 1.f / v;
#endif
}

// 1 / (1 + 2^t), and 0 where 2^t is beyond floats, so that an infinite v times it is NaN as in torch.
template <bool for_bf16>
SLIPSTREAM_INLINE Vec logistic(Vec t) {
  const Vec highest = broadcast(126.f);
  return select(t > highest, Vec{}, reciprocal<for_bf16>(1.f + exp2<for_bf16>(at_most(t, highest))));
}

SLIPSTREAM_INLINE Vec sigmoid(Vec v) { return logistic<false>(v * -kLog2OfE); }

// Below 0.625 v + v^3 P(v^2), P being that of least relative error of its degree (4e-9, and 1e-7 with rounding); above it
// 1 - 2 / (exp(2|v|) + 1), where no digits cancel.
SLIPSTREAM_INLINE Vec tanh(Vec v) {
  const Vec a = absolute(v);
  const Vec s = v * v;
  Vec p = s * -5.704227363e-03f + 2.063843421e-02f;
  p = p * s - 5.373952375e-02f;
  p = p * s + 1.333144002e-01f;
  p = p * s - 3.333328187e-01f;
  const Vec large = 1.f - 2.f * logistic<false>(a * (2 * kLog2OfE));
  const Vec sign_and_large = select(v < 0.f, -large, large);
  return select(a < 0.625f, v + (v * s) * p, sign_and_large);
}

// The upper tail of the standard normal distribution, Q(a) for a >= 0, with absolute error below 1e-7:
// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26 (erfc as a polynomial in t times exp).
SLIPSTREAM_INLINE Vec normal_tail(Vec a) {
  const Vec z = at_most(a, broadcast(20.f)) * 0.70710678f;  // Q(20) is 0 in floats
  const Vec t = reciprocal<false>(1.f + z * 0.3275911f);
  Vec p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  return 0.5f * (p * t) * exp2<false>(z * z * -kLog2OfE);
}

// v * P(X <= v): for negative v the tail itself is used, so that small results keep their digits.
SLIPSTREAM_INLINE Vec gelu_erf(Vec v) {
  const Vec tail = normal_tail(absolute(v));
  return v * select(v < 0.f, tail, 1.f - tail);
}

// The same for results that are rounded to bfloat16: 0.5 + v P(v^2) for |v| <= 4, P by least squares to the largest error, 4e-6;
// a third of the work. Absolute error 2.2e-5 there; below -4, where it is at most 1.3e-4, zero.
SLIPSTREAM_INLINE Vec gelu_erf_for_bf16(Vec v) {
  const Vec u = select(v > 4.f, Vec{} + 4.f, v), s = u * u;
  Vec p = s * 8.063412869e-11f + -7.003464317e-09f;
  p = p * s + 2.716155882e-07f;
  p = p * s + -6.294999474e-06f;
  p = p * s + 9.890808226e-05f;
  p = p * s + -1.133922158e-03f;
  p = p * s + 9.877477100e-03f;
  p = p * s + -6.641059552e-02f;
  p = p * s + 3.989227098e-01f;
  return v * select(v < -4.f, Vec{}, p * u + 0.5f);
}

SLIPSTREAM_INLINE Vec gelu_tanh(Vec v) {
  // 0.5 v (1 + tanh(u)) = v sigmoid(2u), u = sqrt(2/pi) (v + 0.044715 v^3)
  const Vec u2 = v * (1.5957691216f + 0.07135481283f * (v * v));
  return v * logistic<false>(u2 * -kLog2OfE);
}

// v sigmoid(scale v)
template <bool for_bf16>
SLIPSTREAM_INLINE Vec swish(Vec v, float scale) { return v * logistic<for_bf16>(v * (scale * -kLog2OfE)); }

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
