// SPDX-License-Identifier: Apache-2.0
// slipstream::convolution_last: direct convolution of any stride, dilation and groups, channels last on both sides.
#include <algorithm>
#include <optional>

#include "../isa/level.h"
#include "element.h"
#include "scaled_operands.h"
#include "image_rows.h"
#include "partition.h"
#include "scratch.h"
#include "window.h"

namespace slipstream {
namespace {

// Of rows of y; the first of a run bring in as many rows of x as the kernel is high.
constexpr LeastRun kLeastRun{4, INT64_MAX / 8};

// More are converted in a pass of their own, by blocks of channels.
constexpr int64_t kMostPlanes = 8;

// Images whose channels are innermost, or few planes whose rows are dense.
void set_images(ConvolutionLastCall& call, const Tensor& x) {
  if (x.dim() != 4 || x.size(1) > kMostPlanes || x.size(1) <= 1 || x.stride(1) == 1 || (x.stride(3) != 1 && x.size(3) > 1)) {
    call.x = as_images(x, "x");
    return;
  }
  call.x = {x.data_ptr(), element_type(x, "x"), x.stride(0), x.stride(2), 1};
  call.channel = x.stride(1);
}

int64_t panels_of(const ConvolutionLastCall& call) { return round_up(call.linear.n, kPanelColumns) / kPanelColumns; }

// Takes the weight as the level multiplies it; the holder keeps it alive.
void take_weights(ConvolutionLastCall& call, const Tensor& packed, int64_t groups, Tensor& holder) {
  LinearCall& linear = call.linear;
  linear.weight_type = packed_type(packed);
  const int64_t elements = groups * panels_of(call) * call.panel_elements(), parts = elements ? packed.numel() / elements : 1;
  const int64_t most_parts = linear.weight_type == ElementType::bfloat16 ? 3 : 1;
  STD_TORCH_CHECK(packed.is_contiguous() && packed.numel() == elements * parts && parts >= 1 && parts <= most_parts,
                  "packed: not packed for these sizes");
  linear.weight_parts = parts;
  holder = take_panels(packed, groups * panels_of(call) * kPanelColumns, call.depth(), linear.weight_type);
  linear.weight = holder.data_ptr();
}

ConvolutionLastCall call_for(const Tensor& x, const Tensor& packed, int64_t out_channels, int64_t groups,
                             const std::vector<int64_t>& numbers, Tensor& weight_holder) {
  ConvolutionLastCall call;
  set_images(call, x);
  STD_TORCH_CHECK(groups >= 1 && x.size(1) % groups == 0 && out_channels % groups == 0 && x.size(1) > 0,
                  "groups: channels are no multiple");
  call.in_channels = x.size(1) / groups;
  call.height = x.size(2);
  call.width = x.size(3);
  set_window(call, numbers, /*may_be_uneven=*/true);
  set_out_size(call, numbers);
  call.linear.n = out_channels / groups;
  take_weights(call, packed, groups, weight_holder);
  return call;
}

// A weight in parts as plain float32, packed.
Tensor join_parts(const ConvolutionLastCall& call, int64_t groups) {
  const LinearCall& linear = call.linear;
  ConvolutionLastCall plain = call;
  plain.linear.weight_type = ElementType::float32;
  plain.linear.weight_parts = 1;
  const int64_t panels = groups * panels_of(call), depth = plain.row_depth();
  Tensor joined = empty({panels * plain.panel_elements()}, ScalarType::Float);
  float* to = static_cast<float*>(joined.data_ptr());
  const uint16_t* weight = static_cast<const uint16_t*>(linear.weight);
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * plain.panel_elements(); at < end * plain.panel_elements(); ++at) {
      const int64_t panel = at / plain.panel_elements(), i = at % plain.panel_elements() / kPanelColumns;
      const int64_t k = i / depth * call.row_depth() + i % depth;
      const int64_t place = place_in_parts(k, at % kPanelColumns, linear.weight_parts);
      const uint16_t* from = weight + panel * call.panel_elements() + place;
      to[at] = join_bfloat16(from, linear.weight_parts, kPackedDepth * kPanelColumns);
    }
  });
  return joined;
}

// The call of one group, from that of the first.
ConvolutionLastCall group_of(ConvolutionLastCall call, int64_t group, int64_t panels) {
  LinearCall& linear = call.linear;
  const int64_t columns = group * linear.n;
  auto move = [](const void* data, int64_t elements, ElementType type) {
    return data ? static_cast<const char*>(data) + elements * element_size(type) : nullptr;
  };
  call.x.data = move(call.x.data, group * call.in_channels * call.channel, call.x.type);
  linear.weight = move(linear.weight, group * panels * call.panel_elements(), linear.weight_type);
  linear.bias = move(linear.bias, columns, linear.bias_type);
  linear.residual.data = move(linear.residual.data, columns, linear.residual.type);
  linear.y = static_cast<char*>(linear.y) + columns * element_size(linear.y_type);
  return call;
}

void run_images(const ConvolutionLastCall& call, int64_t batch, int64_t groups) {
  const KernelTable& kernels = table();
  const bool in_parts = call.linear.weight_parts > 1;
  const auto compute_part = in_parts ? kernels.convolution_last_split : kernels.convolution_last;
  const auto scratch_of = in_parts ? kernels.convolution_last_split_scratch : kernels.convolution_last_scratch;
  const int64_t rows = batch * call.out_height, panels = panels_of(call);
  const int64_t work = rows * call.out_width * call.linear.n * groups * call.taps() * call.in_channels;
  for_parts(rows, groups * panels, work, kProductsWorthAThread, kLeastRun, [&](const LinearPart& share) {
    for (int64_t panel = share.panel_begin; panel < share.panel_end;) {
      const int64_t group = panel / panels, first = group * panels;
      const int64_t last = share.panel_end < first + panels ? share.panel_end : first + panels;
      const LinearPart part = {share.m_begin, share.m_end, panel - first, last - first};
      const ConvolutionLastCall one = group_of(call, group, panels);
      compute_part(one, part, thread_scratch().take(scratch_of(one, part)));
      panel = last;
    }
  });
}

// What images of x are scaled by.
std::unique_ptr<OperandScale[]> scale_rows(const ConvolutionLastCall& call, int64_t batch, int64_t groups) {
  const Images& x = call.x;
  const int64_t channels = call.in_channels * groups;
  // What lies side by side in a row of an image: a channel's pixels, all of the row, or a pixel's channels.
  struct Runs {
    int64_t count, apart, size;
  };
  const Runs runs = call.channel != 1     ? Runs{channels, call.channel, call.width}
                    : x.pixel == channels ? Runs{1, 0, call.width * channels}
                                          : Runs{call.width, x.pixel, channels};
  const auto runs_of_row = [&](int64_t image, int64_t row, const auto& take) {
    for (int64_t i = 0; i < runs.count; ++i) {
      const int64_t begin = image * x.image + row * x.row + i * runs.apart;
      take(begin, begin + runs.size);
    }
  };
  return scale_pieces(table().scaling, x.data, x.type, batch, call.height, call.width * channels, 0, runs_of_row);
}

ConvolutionLastCall image_of(ConvolutionLastCall call, int64_t index) {
  const int64_t pixels = index * call.out_height * call.out_width;
  call.x.data = static_cast<const char*>(call.x.data) + index * call.x.image * element_size(call.x.type);
  call.linear.y = static_cast<char*>(call.linear.y) + pixels * call.linear.y_stride * element_size(call.linear.y_type);
  if (call.linear.residual.data) call.linear.residual.data = row_of(call.linear.residual, pixels);
  return call;
}

// Where weights are scaled all images are too, and those that do not fit are computed again, by themselves.
void run(ConvolutionLastCall call, int64_t batch, int64_t groups) {
  if (!is_scaled(call.linear.weight_type)) return run_images(call, batch, groups);
  const std::unique_ptr<OperandScale[]> scales = scale_rows(call, batch, groups);
  call.scales = scales.get();
  run_images(call, batch, groups);
  call.scales = nullptr;
  for (int64_t image = 0; image < batch; ++image) {
    if (scales[image].back == 0) run_images(image_of(call, image), 1, groups);
  }
}

// y [batch, out, oh, ow] = post_op(conv(x) + bias + residual), channels last. `packed` holds each group's kernel rows times
// channels as `pack_linear` packs them, in parts or not: kernels/convolution_last_call.h.
Tensor convolution_last(const Tensor& x, const Tensor& packed, int64_t out_channels, std::optional<Tensor> bias, int64_t groups,
                        std::vector<int64_t> numbers, int64_t post_op, std::optional<Tensor> residual, bool bfloat16_out) {
  Tensor weight_holder, joined;
  ConvolutionLastCall call = call_for(x, packed, out_channels, groups, numbers, weight_holder);
  LinearCall& linear = call.linear;
  if (linear.weight_parts > 1 && !table().convolution_last_split) {
    joined = join_parts(call, groups);
    linear.weight = joined.data_ptr();
    linear.weight_type = ElementType::float32;
    linear.weight_parts = 1;
  }
  STD_TORCH_CHECK(post_op >= 0 && post_op < kPostOpCount, "post_op: unknown code");
  linear.post_op = static_cast<PostOp>(post_op);
  Tensor bias_holder;
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == out_channels, "bias: not a vector of output channels");
    linear.bias_type = element_type(*bias, "bias");
    bias_holder = torch::stable::contiguous(*bias);
    linear.bias = bias_holder.data_ptr();
  }
  if (residual) {
    linear.residual = residual_rows(*residual, x.size(0), out_channels, call.out_height, call.out_width);
    linear.residual_first = true;
  }
  linear.y_type = bfloat16_out ? ElementType::bfloat16 : ElementType::float32;
  linear.y_stride = out_channels;
  Tensor y = empty_images(x.size(0), out_channels, call.out_height, call.out_width, linear.y_type);
  linear.y = y.data_ptr();
  if (y.numel() > 0) run(call, x.size(0), groups);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def(
      "convolution_last(Tensor x, Tensor packed, int out_channels, Tensor? bias, int groups, int[] numbers, int post_op, "
      "Tensor? residual, bool bfloat16_out) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("convolution_last", TORCH_BOX(&convolution_last)); }

}  // namespace slipstream
