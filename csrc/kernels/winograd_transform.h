// SPDX-License-Identifier: Apache-2.0
// The transforms of F(m x m, 3 x 3) in one dimension, a register of channels at a time: B^T on what a tile sees, A^T on sums.
// Needs kernels/winograd_call.h and simd/vec.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

template <int tile>
struct WinogradTransform;

template <>
struct WinogradTransform<2> {
  SLIPSTREAM_INLINE static void input(const Vec (&d)[4], Vec (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }

  SLIPSTREAM_INLINE static void output(const Vec (&s)[4], Vec (&y)[2]) {
    y[0] = s[0] + (s[1] + s[2]);
    y[1] = (s[1] - s[2]) - s[3];
  }
};

// Rows of B^T are the coefficients of the polynomials that vanish at all points but one; those of a pair +-p differ in the sign
// of their odd half.
template <>
struct WinogradTransform<4> {
  static constexpr float a = kPointA, b = kPointB, a2 = kPointA2, b2 = kPointB2;

  SLIPSTREAM_INLINE static void input(const Vec (&d)[6], Vec (&v)[6]) {
    constexpr float sum = a2 + b2, product = a2 * b2;
    const Vec even_a = d[4] - b2 * d[2], odd_a = d[3] - b2 * d[1];
    const Vec even_b = d[4] - a2 * d[2], odd_b = d[3] - a2 * d[1];
    v[0] = product * d[0] + (d[4] - sum * d[2]);
    v[1] = even_a + a * odd_a;
    v[2] = even_a - a * odd_a;
    v[3] = even_b + b * odd_b;
    v[4] = even_b - b * odd_b;
    v[5] = product * d[1] + (d[5] - sum * d[3]);
  }

  SLIPSTREAM_INLINE static void output(const Vec (&s)[6], Vec (&y)[4]) {
    const Vec even_a = s[1] + s[2], odd_a = s[1] - s[2];
    const Vec even_b = s[3] + s[4], odd_b = s[3] - s[4];
    y[0] = s[0] + (even_a + even_b);
    y[1] = a * odd_a + b * odd_b;
    y[2] = a2 * even_a + b2 * even_b;
    y[3] = (a2 * a) * odd_a + ((b2 * b) * odd_b + s[5]);
  }
};

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
