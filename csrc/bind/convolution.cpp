// SPDX-License-Identifier: Apache-2.0
// slipstream::pack_convolution and slipstream::convolution: two-dimensional, channels first on both sides.
#include <cstring>
#include <optional>

#include "../isa/level.h"
#include "element.h"
#include "scratch.h"
#include "tensor_rows.h"
#include "window.h"

namespace slipstream {
namespace {

// Elements that a thread copies in the time that waking it takes.
constexpr int64_t kWorthAThread = 16384;

constexpr int64_t kMostTaps = 121;

// Rows an odd number of cache lines long: see x_stride_of in kernels/linear_vector.h.
int64_t row_elements(int64_t elements, int64_t line) { return ((elements + line - 1) / line | 1) * line; }

// weight [out, in of a group, kh, kw] -> [out, row]: see ConvolutionCall. With one input channel a group, float32 [out, taps].
Tensor pack_convolution(const Tensor& weight_in, bool bfloat16) {
  STD_TORCH_CHECK(weight_in.dim() == 4, "weight: not of shape [out, in, height, width]");
  const Tensor weight = torch::stable::contiguous(weight_in);
  const ElementType from = element_type(weight, "weight");
  const int64_t out = weight.size(0), in = weight.size(1), taps = weight.size(2) * weight.size(3);
  STD_TORCH_CHECK(taps <= kMostTaps, "weight: kernels of more than 121 taps are not supported");
  const bool depthwise = in == 1;
  const ElementType type = bfloat16 && !depthwise ? ElementType::bfloat16 : ElementType::float32;
  const int64_t depth = type == ElementType::bfloat16 ? 2 : 1, steps = (in + depth - 1) / depth;
  const int64_t row = row_elements(steps * taps * depth, 64 / element_size(type));
  Tensor packed = empty({out, row}, scalar_type(type));
  void* to = packed.data_ptr();
  const void* data = weight.data_ptr();
  std::memset(to, 0, static_cast<size_t>(out * row * element_size(type)));
  torch::stable::parallel_for(0, out, 1 + kWorthAThread / (row + 1), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t c = 0; c < in; ++c) {
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t at = o * row + (c / depth * taps + t) * depth + c % depth;
          const float value = to_float(data, from, (o * in + c) * taps + t);
          if (type == ElementType::float32) {
            static_cast<float*>(to)[at] = value;
          } else {
            static_cast<uint16_t*>(to)[at] = to_bfloat16(value);
          }
        }
      }
    }
  });
  return packed;
}

void run_depthwise(const ConvolutionCall& image, int64_t batch, int64_t channels, int64_t outputs, int64_t x_bytes,
                   int64_t y_bytes, int64_t residual_bytes) {
  const KernelTable& kernels = table();
  const int64_t grain = 1 + kWorthAThread / (image.plane_words() + 1);
  torch::stable::parallel_for(0, batch * channels, grain, [&](int64_t begin, int64_t end) {
    float* plane = static_cast<float*>(thread_scratch().take(static_cast<size_t>(image.image_words() + 64) * sizeof(float)));
    while (begin < end) {
      const int64_t b = begin / channels, first = begin % channels;
      const int64_t last = end - begin < channels - first ? first + end - begin : channels;
      ConvolutionCall call = image;
      call.x = static_cast<const char*>(image.x) + b * x_bytes;
      call.y = static_cast<char*>(image.y) + b * y_bytes;
      if (image.residual) call.residual = static_cast<const char*>(image.residual) + b * residual_bytes;
      kernels.depthwise(call, first, last, outputs, plane);
      begin += last - first;
    }
  });
}

// One image of one group: its copy first, by all threads that take part, then its outputs.
class GroupImage {
 public:
  GroupImage(const ConvolutionCall& call, void* memory) : call_(call), memory_(static_cast<float*>(memory)) {}

  static size_t bytes(const ConvolutionCall& call) { return static_cast<size_t>(call.image_words()) * 4 + 256; }

  // Channel steps [begin, end) of the copy.
  void gather(int64_t begin, int64_t end) {
    table().gather_image(call_, begin, end, memory_);
    if (end == call_.steps() && !call_.by_panels()) {
      const int64_t words = call_.steps() * call_.plane_words();
      std::memset(memory_ + words, 0, static_cast<size_t>(call_.image_words() - words) * 4);
    }
  }

  void compute(const ConvolutionPart& part) const { table().convolution(call_, part, memory_); }

 private:
  ConvolutionCall call_;
  float* memory_;
};

// Threads share one image: each copies some channels, then each computes some output channels (or, where there are few, positions).
void run_shared(const ConvolutionCall& call, int64_t threads) {
  GroupImage image(call, thread_scratch().take(GroupImage::bytes(call)));
  const int64_t steps = call.steps();
  const int64_t grain = 1 + kWorthAThread / (call.plane_words() * call.depth() + 1);
  torch::stable::parallel_for(0, steps, grain, [&](int64_t begin, int64_t end) { image.gather(begin, end); });
  const int64_t panels = call.panels();
  const bool by_channels = call.out_channels >= 12 * threads && panels < 4 * threads;
  const int64_t shares = by_channels ? threads : (panels < threads ? panels : threads);
  torch::stable::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ConvolutionPart part =
          by_channels ? ConvolutionPart{call.out_channels * i / shares, call.out_channels * (i + 1) / shares, 0, panels}
                      : ConvolutionPart{0, call.out_channels, panels * i / shares, panels * (i + 1) / shares};
      image.compute(part);
    }
  });
}

void run_alone(const ConvolutionCall& call) {
  GroupImage image(call, thread_scratch().take(GroupImage::bytes(call)));
  image.gather(0, call.steps());
  image.compute({0, call.out_channels, 0, call.panels()});
}

ConvolutionCall call_for(const Tensor& x, const Tensor& packed, int64_t groups, const std::vector<int64_t>& numbers) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_contiguous(), "x: not a contiguous [batch, channels, height, width]");
  ConvolutionCall call;
  call.x_type = element_type(x, "x");
  call.weight_type = element_type(packed, "packed");
  call.height = x.size(2);
  call.width = x.size(3);
  set_window(call, numbers, /*may_be_uneven=*/false);
  STD_TORCH_CHECK(call.taps() <= kMostTaps, "kernel: more than 121 taps");
  STD_TORCH_CHECK(groups >= 1 && x.size(1) % groups == 0 && packed.size(0) % groups == 0, "groups: channels are no multiple");
  call.in_channels = x.size(1) / groups;
  call.out_channels = packed.size(0) / groups;
  set_out_size(call, numbers);
  call.weight_stride = packed.size(1);
  STD_TORCH_CHECK(packed.dim() == 2 && packed.is_contiguous() && call.weight_stride >= call.steps() * call.taps() * call.depth(),
                  "packed: not packed for these sizes");
  return call;
}

// A 1 x 1 kernel sees rows of pixels as one long row.
void flatten(ConvolutionCall& call) {
  call.out_width = call.width = call.height * call.width;
  call.out_height = call.height = 1;
}

// y [batch, out, oh, ow] = post_op(conv(x) + bias + residual), contiguous. numbers: kernel, stride, padding, dilation, two each.
Tensor convolution(const Tensor& x_in, const Tensor& packed, std::optional<Tensor> bias, int64_t groups,
                   std::vector<int64_t> numbers, int64_t post_op, std::optional<Tensor> residual, bool bfloat16_out) {
  const Tensor x = torch::stable::contiguous(x_in);
  ConvolutionCall call = call_for(x, packed, groups, numbers);
  STD_TORCH_CHECK(post_op >= 0 && post_op < kPostOpCount, "post_op: unknown code");
  call.post_op = static_cast<PostOp>(post_op);
  const int64_t batch = x.size(0), outs = packed.size(0);
  call.y_type = bfloat16_out ? ElementType::bfloat16 : ElementType::float32;
  Tensor y = empty({batch, outs, call.out_height, call.out_width}, scalar_type(call.y_type));
  call.y = y.data_ptr();
  Tensor bias_holder, residual_holder;
  if (bias) {
    STD_TORCH_CHECK(bias->scalar_type() == ScalarType::Float && bias->dim() == 1 && bias->size(0) == outs,
                    "bias: not a float32 vector of output channels");
    bias_holder = torch::stable::contiguous(*bias);
    call.bias = static_cast<const float*>(bias_holder.data_ptr());
  }
  if (residual) {
    STD_TORCH_CHECK(residual->dim() == 4 && residual->size(0) == batch && residual->size(1) == outs &&
                        residual->size(2) == call.out_height && residual->size(3) == call.out_width,
                    "residual: not of the output's shape");
    residual_holder = torch::stable::contiguous(*residual);
    call.residual_type = element_type(residual_holder, "residual");
    call.residual = residual_holder.data_ptr();
  }
  call.x = x.data_ptr();
  call.weight = packed.data_ptr();
  if (y.numel() == 0) return y;
  if (call.taps() == 1 && call.phases() == 1 && !call.padding_height && !call.padding_width) flatten(call);

  const int64_t pixels = call.height * call.width, out_pixels = call.out_height * call.out_width;
  const int64_t x_bytes = x.size(1) * pixels * element_size(call.x_type);
  const int64_t y_bytes = outs * out_pixels * element_size(call.y_type);
  const int64_t residual_bytes = outs * out_pixels * element_size(call.residual_type);
  if (call.in_channels == 1 && call.weight_type == ElementType::float32) {
    run_depthwise(call, batch, outs, outs / groups, x_bytes, y_bytes, residual_bytes);
    return y;
  }
  auto group_call = [&](int64_t index) {
    const int64_t b = index / groups, g = index % groups;
    ConvolutionCall one = call;
    one.x = static_cast<const char*>(call.x) + b * x_bytes + g * call.in_channels * pixels * element_size(call.x_type);
    one.y = static_cast<char*>(call.y) + b * y_bytes + g * call.out_channels * out_pixels * element_size(call.y_type);
    if (call.residual) {
      one.residual = static_cast<const char*>(call.residual) + b * residual_bytes +
                     g * call.out_channels * out_pixels * element_size(call.residual_type);
    }
    one.weight = static_cast<const char*>(call.weight) +
                 g * call.out_channels * call.weight_stride * element_size(call.weight_type);
    if (call.bias) one.bias = call.bias + g * call.out_channels;
    return one;
  };
  const int64_t images = batch * groups, threads = static_cast<int64_t>(torch::stable::get_num_threads());
  // An image a thread, where that leaves no thread idle for long; the rest of the images, or all, are shared.
  const int64_t alone = images >= 4 * threads ? images : images / threads * threads;
  torch::stable::parallel_for(0, alone, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) run_alone(group_call(index));
  });
  for (int64_t index = alone; index < images; ++index) run_shared(group_call(index), threads);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def("pack_convolution(Tensor weight, bool bfloat16) -> Tensor");
  library.def(
      "convolution(Tensor x, Tensor packed, Tensor? bias, int groups, int[] numbers, int post_op, Tensor? residual, "
      "bool bfloat16_out) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) {
  library.impl("pack_convolution", TORCH_BOX(&pack_convolution));
  library.impl("convolution", TORCH_BOX(&convolution));
}

}  // namespace slipstream
