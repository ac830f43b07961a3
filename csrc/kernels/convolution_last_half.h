// SPDX-License-Identifier: Apache-2.0
// What a direct convolution with channels last adds for float16 (kernels/half_operands.h): images are scaled on their way into scratch
// memory, each by its own power of two, and sums are put back. Weights of float16 are widened for images that do not fit. For other
// types nothing of this is done. Needs kernels/multiply_step.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// What pixels of an image are multiplied by on their way into the type To.
template <typename To>
float scale_into(const ConvolutionLastCall&, int64_t) {
  return 1;
}
template <typename To>
SLIPSTREAM_INLINE Vec scaled_into(Vec v, float) {
  return v;
}
#ifdef SLIPSTREAM_HALF
template <>
inline float scale_into<Half>(const ConvolutionLastCall& call, int64_t image) {
  return call.half[image].scale;
}
template <>
SLIPSTREAM_INLINE Vec scaled_into<Half>(Vec v, float scale) {
  return v * scale;
}
#endif

// What products of an image are put back by, and behind a panel those of its columns.
template <Step step>
float back_of_image([[maybe_unused]] const HalfScale* images, [[maybe_unused]] int64_t image) {
#ifdef SLIPSTREAM_HALF
  if constexpr (step == Step::half) return images[image].back;
  if constexpr (step == Step::widen_half) return kWidenedBack;
#endif
  return 1;
}
inline const float* back_of_columns(const ConvolutionLastCall& call, int64_t panel) {
  const char* weight = static_cast<const char*>(call.linear.weight);
  return reinterpret_cast<const float*>(weight + (panel + 1) * call.panel_bytes()) - kPanelColumns;
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
