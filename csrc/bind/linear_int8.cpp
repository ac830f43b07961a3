// SPDX-License-Identifier: Apache-2.0
// slipstream::pack_linear_int8 and slipstream::linear_int8: check tensors, split the outputs over torch's threads, call the
// table.
#include <cmath>
#include <cstring>
#include <mutex>

#include "../isa/level.h"
#include "linear_operands.h"
#include "partition.h"
#include "scratch.h"

namespace slipstream {
namespace {

// Sums of 32768 products of at most 255 * 255 are below 2^31.
constexpr int64_t kDeepest = 32768;
// As for linear, at twice the multiplications a nanosecond.
constexpr int64_t kWorthAThread = 500'000;
// Elements of x whose range one thread takes in about 5 us.
constexpr int64_t kRangeWorthAThread = 65536;

// The codes of the operator's `activation`; slipstream/kernels/linear_int8.py has their names.
enum class Activation : int64_t { per_token, per_tensor, per_token_asymmetric, per_tensor_asymmetric, fixed };
constexpr int64_t kActivationCount = 5;

struct Int8Weight {
  const int8_t* data;
  int64_t row_stride, column_stride;
  const float* scales;
  const int32_t* zero_points;  // or null
};

void pack_panel(const Int8Weight& weight, int64_t n, int64_t k, int64_t panel, uint8_t* packed) {
  const int64_t bytes = panel_bytes_int8(k), begin = panel * kPanelColumns;
  const int64_t columns = n - begin < kPanelColumns ? n - begin : kPanelColumns;
  uint8_t* to = packed + panel * bytes;
  std::memset(to, 0, static_cast<size_t>(bytes));
  uint8_t* behind = to + panel_depth_bytes_int8(k);
  for (int64_t c = 0; c < columns; ++c) {
    const int8_t* from = weight.data + (begin + c) * weight.row_stride;
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      const int8_t value = from[i * weight.column_stride];
      to[(i / 4 * kPanelColumns + c) * 4 + i % 4] = static_cast<uint8_t>(value);
      sum += value;
    }
    std::memcpy(behind + c * 4, weight.scales + begin + c, 4);
    std::memcpy(behind + (kPanelColumns + c) * 4, &sum, 4);
    if (weight.zero_points) std::memcpy(behind + (2 * kPanelColumns + c) * 4, weight.zero_points + begin + c, 4);
  }
}

// weight int8 [n, k], scales float32 [n], zero points int32 [n] -> packed, 1-D int8 (layout: kernels/linear.h).
Tensor pack_linear_int8(const Tensor& weight, const Tensor& scales, std::optional<Tensor> zero_points) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.scalar_type() == ScalarType::Char && weight.is_cpu(),
                  "weight: not an int8 matrix [out_features, in_features] on the CPU");
  const int64_t n = weight.size(0), k = weight.size(1);
  STD_TORCH_CHECK(k <= kDeepest, "weight: more than 32768 in_features, whose sums could leave int32");
  STD_TORCH_CHECK(scales.dim() == 1 && scales.size(0) == n && scales.scalar_type() == ScalarType::Float && scales.is_cpu(),
                  "scales: not a float32 vector of out_features on the CPU");
  const Tensor dense_scales = torch::stable::contiguous(scales);
  Int8Weight source{static_cast<const int8_t*>(weight.data_ptr()), weight.stride(0), weight.stride(1),
                    static_cast<const float*>(dense_scales.data_ptr()), nullptr};
  Tensor dense_zero_points;
  if (zero_points) {
    STD_TORCH_CHECK(zero_points->dim() == 1 && zero_points->size(0) == n && zero_points->scalar_type() == ScalarType::Int &&
                        zero_points->is_cpu(),
                    "zero_points: not an int32 vector of out_features on the CPU");
    dense_zero_points = torch::stable::contiguous(*zero_points);
    source.zero_points = static_cast<const int32_t*>(dense_zero_points.data_ptr());
  }
  const int64_t panels = round_up(n, kPanelColumns) / kPanelColumns;
  Tensor packed = empty({panels * panel_bytes_int8(k)}, ScalarType::Char);
  uint8_t* to = static_cast<uint8_t*>(packed.data_ptr());
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) pack_panel(source, n, k, panel, to);
  });
  return packed;
}

// The range of all finite rows of x; minima and maxima do not depend on the order in which threads bring theirs.
Range range_of_tensor(const LinearCall& call) {
  Range whole;
  std::mutex guard;
  shared_for(call.m, call.k, kRangeWorthAThread, [&](int64_t begin, int64_t end) {
    const Range part = table().range_of_rows(call.x, call.k, begin, end);
    const std::lock_guard<std::mutex> lock(guard);
    if (part.low < whole.low) whole.low = part.low;
    if (part.high > whole.high) whole.high = part.high;
  });
  return whole;
}

// One scale for the whole of x, by the rule that csrc/kernels/linear_int8.h has for a row.
void take_scale_of_tensor(LinearInt8Call& call, bool asymmetric) {
  const Range range = range_of_tensor(call.linear);
  call.quantization = Quantization::given;
  call.infinity_is_nan = true;
  if (asymmetric) {
    call.scale = range.high / 255 - range.low / 255;
    const float zero = -range.low * (1 / call.scale);
    call.zero_point = !(zero < 255) ? 255 : static_cast<int32_t>(std::nearbyint(zero));
    call.low = 0;
  } else {
    call.scale = (-range.low > range.high ? -range.low : range.high) / 127;
    call.zero_point = 128;
    call.low = 1;
  }
}

void run(const LinearInt8Call& call) {
  const KernelTable& kernels = table();
  const int64_t panels = round_up(call.linear.n, kPanelColumns) / kPanelColumns;
  const int64_t work = call.linear.m * call.linear.n * call.linear.k;
  const LeastRun least = least_run(call.linear.n * call.linear.k);
  for_parts(call.linear.m, panels, work, kWorthAThread, least, [&](const LinearPart& part) {
    kernels.linear_int8(call, part, thread_scratch().take(kernels.linear_int8_scratch(call, part)));
  });
}

// linear with x rounded as `activation` says; `scale` and `zero_point` (of u8) are for Activation::fixed.
Tensor linear_int8(const Tensor& x, const Tensor& packed, int64_t n, int64_t k, int64_t activation, double scale,
                   int64_t zero_point, std::optional<Tensor> bias, int64_t post_op, std::optional<Tensor> multiplier,
                   std::optional<Tensor> residual, bool bfloat16_out, bool residual_first) {
  STD_TORCH_CHECK(activation >= 0 && activation < kActivationCount, "activation: unknown code");
  STD_TORCH_CHECK(zero_point >= 0 && zero_point <= 255, "zero_point: not one of 0 to 255");
  STD_TORCH_CHECK(k <= kDeepest, "k: more than 32768 in_features, whose sums could leave int32");
  const int64_t panels = round_up(n, kPanelColumns) / kPanelColumns;
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Char && packed.is_cpu() && packed.numel() == panels * panel_bytes_int8(k),
                  "packed: not packed as int8 for these sizes");
  LinearInt8Call call;
  call.linear.n = n;
  call.linear.k = k;
  call.linear.weight = packed.data_ptr();
  LinearOperands operands;
  operands.take(call.linear, x, bias, post_op, multiplier, residual, residual_first);
  Tensor y = operands.result(call.linear, x, bfloat16_out);
  if (call.linear.m == 0 || n == 0) return y;
  switch (static_cast<Activation>(activation)) {
    case Activation::per_token: call.quantization = Quantization::per_row; break;
    case Activation::per_token_asymmetric: call.quantization = Quantization::per_row_asymmetric; break;
    case Activation::per_tensor: take_scale_of_tensor(call, false); break;
    case Activation::per_tensor_asymmetric: take_scale_of_tensor(call, true); break;
    case Activation::fixed:
      call.quantization = Quantization::given;
      call.scale = static_cast<float>(scale);
      call.zero_point = static_cast<int32_t>(zero_point);
  }
  run(call);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def("pack_linear_int8(Tensor weight, Tensor scales, Tensor? zero_points) -> Tensor");
  library.def(
      "linear_int8(Tensor x, Tensor packed, int n, int k, int activation, float scale, int zero_point, Tensor? bias, "
      "int post_op, Tensor? multiplier, Tensor? residual, bool bfloat16_out, bool residual_first=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) {
  library.impl("pack_linear_int8", TORCH_BOX(&pack_linear_int8));
  library.impl("linear_int8", TORCH_BOX(&linear_int8));
}

}  // namespace slipstream
