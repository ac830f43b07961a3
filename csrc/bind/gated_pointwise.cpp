// SPDX-License-Identifier: Apache-2.0
// slipstream::gated_pointwise: a 1 x 1 convolution of an image times a factor for each channel (Hu et al., Squeeze-and-Excitation
// Networks, 2018), channels last. Some pixels at a time are scaled into the second-level cache and multiplied from there: the scaled
// image is never a tensor.
#include <optional>

#include "../isa/level.h"
#include "image_rows.h"
#include "pointwise.h"
#include "scratch.h"
#include "shared_for.h"

namespace slipstream {
namespace {

// Of scaled pixels; weights and y take the rest of the second-level cache.
int64_t block_bytes() { return second_level_cache() / 4; }

struct Gated {
  LinearCall call;  // of all pixels; x dense
  Rows gate;        // a row an image
  int64_t pixels;   // of an image
  ElementType between;

  int64_t row_bytes() const { return call.k * element_size(between); }
  int64_t block_rows() const {
    const int64_t rows = block_bytes() / row_bytes();
    return rows < 12 ? 12 : rows;
  }

  // Pixels [begin, end), which may lie in several images.
  void scale(int64_t begin, int64_t end, char* to) const {
    while (begin < end) {
      const int64_t image = begin / pixels, last = (image + 1) * pixels < end ? (image + 1) * pixels : end;
      const Rows x = {row_of(call.x, begin), call.k, call.x.type};
      table().gate_rows(x, {row_of(gate, image), gate.stride, gate.type}, last - begin, call.k, to, between);
      to += (last - begin) * row_bytes();
      begin = last;
    }
  }

  void compute(int64_t begin, int64_t end) const {
    static thread_local Scratch scratch;
    char* scaled = static_cast<char*>(scratch.take(static_cast<size_t>((end - begin) * row_bytes())));
    scale(begin, end, scaled);
    LinearCall part = call;
    part.m = end - begin;
    part.x = {scaled, call.k, between};
    part.y = static_cast<char*>(call.y) + begin * call.n * element_size(call.y_type);
    if (call.residual.data) part.residual.data = row_of(call.residual, begin);
    const LinearPart all{0, part.m, 0, round_up(call.n, kPanelColumns) / kPanelColumns};
    table().linear(part, all, thread_scratch().take(table().linear_scratch(part, all)));
  }
};

// y [batch, out, h, w] = post_op(conv(x [batch, in, h, w] * gate [batch, in, 1, 1]) + bias + residual), channels last. The product
// with the gate is rounded to their dtype, or is float32 where they have two.
Tensor gated_pointwise(const Tensor& x, const Tensor& gate, const Tensor& packed, int64_t out_channels, std::optional<Tensor> bias,
                       int64_t post_op, std::optional<Tensor> residual, bool bfloat16_out) {
  const ElementType type = channels_last(x, "x");
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(gate.dim() == 4 && gate.size(0) == x.size(0) && gate.size(1) == channels && gate.size(2) == 1 &&
                      gate.size(3) == 1 && (channels <= 1 || gate.stride(1) == 1),
                  "gate: not one factor a channel of each image, channels innermost");
  Gated gated;
  Tensor holder;
  gated.call = pointwise(packed, bias, post_op, bfloat16_out, out_channels, channels, holder);
  gated.call.x = {x.data_ptr(), channels, type};
  gated.gate = {gate.data_ptr(), gate.stride(0), element_type(gate, "gate")};
  gated.pixels = x.size(2) * x.size(3);
  gated.between = gated.gate.type == type ? type : ElementType::float32;
  LinearCall& call = gated.call;
  Tensor y = empty_images(x.size(0), out_channels, x.size(2), x.size(3), call.y_type);
  call.y = y.data_ptr();
  if (residual) {
    call.residual = residual_rows(*residual, x.size(0), out_channels, x.size(2), x.size(3));
    call.residual_first = true;
  }
  if (y.numel() == 0) return y;
  STD_TORCH_CHECK(channels > 0, "x: no channels to multiply");
  const int64_t rows = x.size(0) * gated.pixels, block = gated.block_rows(), blocks = (rows + block - 1) / block;
  const int64_t threads = threads_for(rows * call.n * call.k, kProductsWorthAThread);
  const int64_t parts = blocks < 8 * threads ? (rows < 8 * threads ? rows : 8 * threads) : blocks;  // enough to share out
  shared_for(parts, rows * call.n * call.k / parts, kProductsWorthAThread, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) gated.compute(rows * i / parts, rows * (i + 1) / parts);
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def(
      "gated_pointwise(Tensor x, Tensor gate, Tensor packed, int out_channels, Tensor? bias, int post_op, Tensor? residual, "
      "bool bfloat16_out) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("gated_pointwise", TORCH_BOX(&gated_pointwise)); }

}  // namespace slipstream
