// SPDX-License-Identifier: Apache-2.0
// slipstream::pack_depthwise and slipstream::depthwise: depthwise convolution, channels last on both sides.
#include <cstring>
#include <optional>

#include "../isa/level.h"
#include "element.h"
#include "image_rows.h"
#include "window.h"

namespace slipstream {
namespace {

// Multiplications below which another thread costs more than it brings: 5 us at about 30 a nanosecond.
constexpr int64_t kWorthAThread = 150'000;

constexpr int64_t kMostTaps = 121;

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// The steps of one row of the kernel for one channel, in the paired form: see kernels/depthwise_call.h.
void pack_pairs(const float* row, int64_t kernel_width, uint32_t* to) {
  for (int64_t k = 0; k + 1 < kernel_width; k += 2) {
    to[k / 2 * kBlockChannels] = to_bfloat16(row[k]) | static_cast<uint32_t>(to_bfloat16(row[k + 1])) << 16;
  }
  to[kernel_width / 2 * kBlockChannels] = bits_of(row[kernel_width - 1]);
}

// weight [channels, 1, kh, kw] -> words, as a float32 vector.
Tensor pack_depthwise(const Tensor& weight_in) {
  STD_TORCH_CHECK(weight_in.dim() == 4 && weight_in.size(1) == 1, "weight: not of shape [channels, 1, height, width]");
  const Tensor weight = torch::stable::contiguous(weight_in);
  const ElementType from = element_type(weight, "weight");
  const int64_t channels = weight.size(0), rows = weight.size(2), columns = weight.size(3), taps = rows * columns;
  STD_TORCH_CHECK(taps >= 1 && taps <= kMostTaps, "weight: kernels of more than 121 taps are not supported");
  const int64_t words = packed_depthwise_size(channels, rows, columns), size = packed_channels(channels) * taps;
  const int64_t steps = pair_steps(columns);
  Tensor packed = empty({words}, ScalarType::Float);
  uint32_t* to = static_cast<uint32_t*>(packed.data_ptr());
  std::memset(to, 0, static_cast<size_t>(words) * sizeof(uint32_t));
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t lane = c % kBlockChannels, block = c - lane;
    float values[kMostTaps];
    for (int64_t t = 0; t < taps; ++t) {
      values[t] = to_float(weight.data_ptr(), from, c * taps + t);
      to[block * taps + t * kBlockChannels + lane] = bits_of(values[t]);
      to[size + block * taps + t * kBlockChannels + split_slot(lane)] = bits_of(values[t]);
    }
    for (int64_t row = 0; steps && row < rows; ++row) {
      pack_pairs(values + row * columns, columns, to + 2 * size + (block * rows + row * kBlockChannels) * steps + paired_slot(lane));
    }
  }
  return packed;
}

DepthwiseCall call_for(const Tensor& x, const Tensor& packed, const std::vector<int64_t>& numbers) {
  DepthwiseCall call;
  call.x = as_images(x, "x");
  call.channels = x.size(1);
  call.height = x.size(2);
  call.width = x.size(3);
  set_window(call, numbers, /*may_be_uneven=*/true);
  STD_TORCH_CHECK(call.taps() <= kMostTaps, "kernel: more than 121 taps");
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Float && packed.is_contiguous() &&
                      packed.numel() == packed_depthwise_size(call.channels, call.kernel_height, call.kernel_width),
                  "packed: not packed for these sizes");
  call.weight = static_cast<const float*>(packed.data_ptr());
  set_out_size(call, numbers);
  return call;
}

// y [batch, channels, oh, ow] = post_op(conv(x) + bias + residual), channels last.
Tensor depthwise(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias, std::vector<int64_t> numbers, int64_t post_op,
                 std::optional<Tensor> residual, bool bfloat16_out) {
  DepthwiseCall call = call_for(x, packed, numbers);
  STD_TORCH_CHECK(post_op >= 0 && post_op < kPostOpCount, "post_op: unknown code");
  call.post_op = static_cast<PostOp>(post_op);
  call.y_type = bfloat16_out ? ElementType::bfloat16 : ElementType::float32;
  const int64_t images = x.size(0), channels = call.channels;
  Tensor y = empty_images(images, channels, call.out_height, call.out_width, call.y_type);
  call.y = y.data_ptr();
  Tensor bias_holder;
  if (bias) {
    STD_TORCH_CHECK(bias->scalar_type() == ScalarType::Float && bias->dim() == 1 && bias->size(0) == channels,
                    "bias: not a float32 vector of channels");
    bias_holder = torch::stable::contiguous(*bias);
    call.bias = static_cast<const float*>(bias_holder.data_ptr());
  }
  if (residual) {
    call.residual = as_images(*residual, "residual");
    STD_TORCH_CHECK(residual->size(0) == images && residual->size(1) == channels && residual->size(2) == call.out_height &&
                        residual->size(3) == call.out_width,
                    "residual: not of the output's shape");
  }
  if (y.numel() == 0) return y;
  const auto kernel = table().depthwise_last;
  const int64_t work = call.out_width * channels * call.taps();
  for_rows(images * call.out_height, channels, work, kWorthAThread, [&](const RowsPart& part) { kernel(call, part); });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def("pack_depthwise(Tensor weight) -> Tensor");
  library.def(
      "depthwise(Tensor x, Tensor packed, Tensor? bias, int[] numbers, int post_op, Tensor? residual, bool bfloat16_out) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) {
  library.impl("pack_depthwise", TORCH_BOX(&pack_depthwise));
  library.impl("depthwise", TORCH_BOX(&depthwise));
}

}  // namespace slipstream
