// SPDX-License-Identifier: Apache-2.0
// What multiplying bfloat16 scaled, as float16 or as integers, brings to a level: its table over the table without it. Needs
// kernels/linear_scaled.h, kernels/convolution_last.h, kernels/winograd.h and the operands of `step`.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

// Images that do not fit are convolved by themselves, with widened weights.
inline bool is_fitted(const WinogradCall& call) { return call.scales || call.misfits; }

template <Step step>
size_t winograd_scratch_scaled(const WinogradCall& call, const LinearPart& part) {
  return is_fitted(call) ? winograd_scratch_of<step>(call, part) : winograd_scratch_of<Widened<step>::step>(call, part);
}

template <int tile, Step step>
void winograd_scaled(const WinogradCall& call, const LinearPart& part, void* scratch) {
  is_fitted(call) ? winograd_of<tile, step>(call, part, scratch) : winograd_of<tile, Widened<step>::step>(call, part, scratch);
}

template <Step step>
size_t convolution_last_scratch_scaled(const ConvolutionLastCall& call, const LinearPart& part) {
  return call.scales ? scratch_of<step>(call, part) : scratch_of<Widened<step>::step>(call, part);
}

template <Step step>
void convolution_last_scaled(const ConvolutionLastCall& call, const LinearPart& part, void* scratch) {
  call.scales ? lines_or_images<step>(call, part, scratch) : lines_or_images<Widened<step>::step>(call, part, scratch);
}

// Of minimal filtering alone, where other operators multiply bfloat16 as fast without.
template <Step step, const KernelTable& below>
constexpr KernelTable with_scaled_winograd(KernelTable table) {
  constexpr ElementType type = Widened<step>::type;
  table.winograd_scaling = {type, fit_panel, largest_magnitude, operand_scale, faintness};
  table.winograd_scratch = [](const WinogradCall& call, const LinearPart& part) {
    return call.weight_type == type ? winograd_scratch_scaled<step>(call, part) : below.winograd_scratch(call, part);
  };
  table.winograd = [](const WinogradCall& call, const LinearPart& part, void* scratch) {
    if (call.weight_type != type) return below.winograd(call, part, scratch);
    call.tile == 4 ? winograd_scaled<4, step>(call, part, scratch) : winograd_scaled<2, step>(call, part, scratch);
  };
  return table;
}

template <Step step, const KernelTable& below>
constexpr KernelTable with_scaled(KernelTable without) {
  constexpr ElementType type = Widened<step>::type;
  KernelTable table = with_scaled_winograd<step, below>(without);
  table.scaling = table.winograd_scaling;
  table.linear_scratch = [](const LinearCall& call, const LinearPart& part) {
    return call.weight_type == type ? scaled_scratch<step>(call, part) : below.linear_scratch(call, part);
  };
  table.linear = [](const LinearCall& call, const LinearPart& part, void* scratch) {
    call.weight_type == type ? ScaledLinear<step>(call, part, scratch).run() : below.linear(call, part, scratch);
  };
  table.convolution_last_scratch = [](const ConvolutionLastCall& call, const LinearPart& part) {
    return call.linear.weight_type == type ? convolution_last_scratch_scaled<step>(call, part)
                                           : below.convolution_last_scratch(call, part);
  };
  table.convolution_last = [](const ConvolutionLastCall& call, const LinearPart& part, void* scratch) {
    call.linear.weight_type == type ? convolution_last_scaled<step>(call, part, scratch) : below.convolution_last(call, part, scratch);
  };
  return table;
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
