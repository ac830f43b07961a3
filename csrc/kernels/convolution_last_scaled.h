// SPDX-License-Identifier: Apache-2.0
// What a direct convolution with channels last adds for scaled operands (kernels/half_operands.h, kernels/int16_operands.h): images are
// scaled on their way into scratch memory, each by its own power of two, and sums are put back. Scaled weights are widened for images
// that do not fit. For other types nothing of this is done. Needs kernels/multiply_step.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Whether images are scaled on their way into this type: not into float and bfloat16.
template <typename To>
constexpr bool kIsScaled = true;
template <>
constexpr bool kIsScaled<float> = false;
template <>
constexpr bool kIsScaled<uint16_t> = false;

// What pixels of an image are multiplied by.
template <typename To>
float scale_into(const ConvolutionLastCall& call, int64_t image) {
  return kIsScaled<To> ? call.scales[image].scale : 1.f;
}
template <typename To>
SLIPSTREAM_INLINE Vec scaled_into(Vec v, float scale) {
  return kIsScaled<To> ? v * scale : v;
}

// What products of an image are put back by, and behind a panel those of its columns.
template <Step step>
float back_of_image([[maybe_unused]] const OperandScale* images, [[maybe_unused]] int64_t image) {
  if constexpr (kScalesX<step>) return images[image].back;
#ifdef SLIPSTREAM_HALF
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
