// SPDX-License-Identifier: Apache-2.0
// slipstream::group_norm: over groups of channels of [N, C, ...], channels first or last in memory as they come.
#include <optional>

#include "../isa/level.h"
#include "element.h"
#include "scratch.h"
#include "shared_for.h"
#include "tensor_rows.h"

namespace slipstream {
namespace {

// Elements that repay waking another thread: about 5 us at a sixth of a nanosecond an element.
constexpr int64_t kWorthAThread = 32768;

// Whether the axes from the third on lie at one stride, which is set then.
bool fold_pixels(const Tensor& x, int64_t& stride) {
  int64_t pixels = 1;
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    if (x.size(d) == 1) continue;
    if (pixels == 1) {
      stride = x.stride(d);
    } else if (x.stride(d) != stride * pixels) {
      return false;
    }
    pixels *= x.size(d);
  }
  return true;
}

// Sets how x is read. False where it has to be copied.
bool set_layout(GroupNormCall& call, const Tensor& x) {
  const int64_t channel = call.channels > 1 ? x.stride(1) : call.pixels;
  int64_t pixel = call.channels;
  if (!fold_pixels(x, pixel)) return false;
  call.x_sample = x.size(0) > 1 ? x.stride(0) : 0;
  call.x.stride = pixel;
  call.channels_last = call.pixels == 1 || channel != call.pixels || pixel != 1;
  return call.channels_last ? call.channels == 1 || channel == 1 : true;
}

// A parameter as floats; `holder` keeps what is not so already.
const float* as_floats(const std::optional<Tensor>& given, const char* argument, int64_t channels, std::vector<float>& holder) {
  if (!given) return nullptr;
  STD_TORCH_CHECK(given->dim() == 1 && given->size(0) == channels, argument, ": not one value for each of x's channels");
  const ElementType type = element_type(*given, argument);
  const int64_t stride = channels > 1 ? given->stride(0) : 1;
  if (type == ElementType::float32 && stride == 1) return static_cast<const float*>(given->data_ptr());
  holder.resize(static_cast<size_t>(channels));
  for (int64_t c = 0; c < channels; ++c) holder[static_cast<size_t>(c)] = to_float(given->data_ptr(), type, c * stride);
  return holder.data();
}

// Whole items by one thread each, which finds them in its caches again; or all threads at one item after the other, where items
// are too few to go round.
void run(const GroupNormCall& call, int64_t samples) {
  const KernelTable& kernels = table();
  const int64_t items = call.items(samples), blocks = call.blocks(), elements = call.length() * call.width();
  const int64_t threads = items * elements < 2 * kWorthAThread ? 1 : static_cast<int64_t>(torch::stable::get_num_threads());
  const size_t bytes = static_cast<size_t>(moments_size(call) + group_table_size(call)) * sizeof(float);
  if (threads == 1 || items % threads == 0 || items >= 4 * threads) {
    shared_for(items, elements, kWorthAThread, [&](int64_t begin, int64_t end) {
      float* moments = static_cast<float*>(thread_scratch().take(bytes));
      float* factors = moments + moments_size(call);
      for (int64_t item = begin; item < end; ++item) {
        kernels.group_moments(call, item, 0, blocks, moments);
        kernels.settle_group(call, moments, factors);
        kernels.finish_group(call, item, 0, blocks, factors);
      }
    });
    return;
  }
  float* moments = static_cast<float*>(thread_scratch().take(bytes));
  float* factors = moments + moments_size(call);
  for (int64_t item = 0; item < items; ++item) {
    shared_for(blocks, elements / blocks, kWorthAThread, [&](int64_t begin, int64_t end) {
      kernels.group_moments(call, item, begin, end, moments);
    });
    kernels.settle_group(call, moments, factors);
    shared_for(blocks, elements / blocks, kWorthAThread, [&](int64_t begin, int64_t end) {
      kernels.finish_group(call, item, begin, end, factors);
    });
  }
}

// As x, without gaps: contiguous, or with channels innermost where x has them so.
Tensor empty_as(const Tensor& x, bool channels_last, ScalarType type) {
  const size_t dims = static_cast<size_t>(x.dim());
  std::vector<int64_t> sizes(dims), strides(dims);
  for (size_t d = 0; d < dims; ++d) sizes[d] = x.size(static_cast<int64_t>(d));
  if (!channels_last) return empty(sizes, type);
  int64_t stride = sizes[1];
  strides[1] = 1;
  for (size_t d = dims - 1; d >= 2; --d) {
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  strides[0] = stride;
  return empty_strided(sizes, strides, type);
}

// x [N, C, ...], weight and bias [C] -> y, in x's layout.
Tensor group_norm(const Tensor& x, int64_t groups, std::optional<Tensor> weight, std::optional<Tensor> bias, double eps,
                  int64_t post_op, bool bfloat16_out) {
  STD_TORCH_CHECK(x.dim() >= 2, "x: not of shape [batch, channels, ...]");
  STD_TORCH_CHECK(groups > 0 && x.size(1) % groups == 0, "groups: do not divide x's channels");
  STD_TORCH_CHECK(post_op >= 0 && post_op < kPostOpCount, "post_op: unknown code");
  GroupNormCall call;
  call.groups = groups;
  call.channels = x.size(1);
  call.pixels = 1;
  for (int64_t d = 2; d < x.dim(); ++d) call.pixels *= x.size(d);
  call.x.type = element_type(x, "x");
  Tensor holder = x;
  if (!set_layout(call, holder)) {
    holder = torch::stable::contiguous(x);
    set_layout(call, holder);
  }
  std::vector<float> weights, biases;
  call.x.data = holder.data_ptr();
  call.weight = as_floats(weight, "weight", call.channels, weights);
  call.bias = as_floats(bias, "bias", call.channels, biases);
  call.eps = static_cast<float>(eps);
  call.post_op = static_cast<PostOp>(post_op);
  call.y_type = bfloat16_out ? ElementType::bfloat16 : ElementType::float32;
  Tensor y = empty_as(x, call.channels_last && call.pixels > 1 && call.channels > 1, scalar_type(call.y_type));
  call.y = y.data_ptr();
  if (y.numel() > 0) run(call, x.size(0));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def(
      "group_norm(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, int post_op, bool bfloat16_out) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("group_norm", TORCH_BOX(&group_norm)); }

}  // namespace slipstream
