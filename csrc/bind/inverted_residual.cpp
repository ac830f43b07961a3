// SPDX-License-Identifier: Apache-2.0
// slipstream::inverted_residual: 1 x 1, depthwise and 1 x 1 convolution (Sandler et al., MobileNetV2, 2018), channels last, by
// the kernels of the three. Some rows of an image go through all of them before the next ones begin, so that what lies between them
// stays in the second-level cache. Either 1 x 1 may be absent.
#include <cstring>
#include <optional>

#include "../isa/level.h"
#include "image_rows.h"
#include "pointwise.h"
#include "scratch.h"
#include "shared_for.h"
#include "window.h"

namespace slipstream {
namespace {

// Of the second-level cache for what lies between; x, y and the weights take the rest.
int64_t most_between() { return second_level_cache() / 2; }

// Rows `row` and following of images of `width` pixels. The address may lie outside of any memory where only later rows do not.
template <typename Data>
Data at_row(Data data, ElementType type, int64_t row, int64_t width, int64_t channels) {
  return reinterpret_cast<Data>(reinterpret_cast<uintptr_t>(data) +
                                static_cast<uintptr_t>(row * width * channels * element_size(type)));
}

// The three convolutions, of whole images.
struct Chain {
  LinearCall expand, project;
  DepthwiseCall depthwise;
  int64_t images = 0;

  ElementType between() const { return depthwise.x.type; }
  int64_t reach() const { return (depthwise.kernel_height - 1) * depthwise.dilation_height; }
  int64_t row_bytes() const { return depthwise.width * depthwise.channels * element_size(between()); }
  int64_t result_row_bytes() const { return depthwise.out_width * depthwise.channels * element_size(depthwise.y_type); }

  // Rows of x that `rows` rows of y see at most.
  int64_t rows_seen(int64_t rows) const {
    const int64_t seen = (rows - 1) * depthwise.stride_height + reach() + 1;
    return seen < depthwise.height ? seen : depthwise.height;
  }
  int64_t between_bytes(int64_t rows) const {
    return (expand.k ? rows_seen(rows) * row_bytes() : 0) + (project.k ? rows * result_row_bytes() : 0);
  }
  // Blocks of rows that an image is cut into: as the cache asks for, and more where threads would not get nearly equal shares.
  int64_t blocks() const {
    int64_t rows = 1;
    const int64_t most = most_between();
    while (rows < depthwise.out_height && between_bytes(rows + 1) <= most) ++rows;
    const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t blocks = (depthwise.out_height + rows - 1) / rows;
    if (images * blocks % threads == 0 || images * blocks >= 4 * threads) return blocks;
    const int64_t more = (4 * threads + images - 1) / images;
    return more < depthwise.out_height ? more : depthwise.out_height;
  }
  int64_t work() const {
    const int64_t taps = depthwise.taps(), out = depthwise.out_height * depthwise.out_width;
    return depthwise.channels * (depthwise.height * depthwise.width * expand.k + out * (taps + project.n));
  }
};

void run_part(LinearCall& call, int64_t pixels) {
  if (pixels == 0) return;
  call.m = pixels;
  const LinearPart part{0, pixels, 0, round_up(call.n, kPanelColumns) / kPanelColumns};
  table().linear(call, part, thread_scratch().take(table().linear_scratch(call, part)));
}

// One thread's way through blocks, in order: rows that two blocks of an image see are expanded once.
class Walk {
 public:
  Walk(const Chain& chain, int64_t blocks) : chain_(chain), blocks_(blocks) {
    const int64_t most = (chain.depthwise.out_height + blocks - 1) / blocks;
    static thread_local Scratch scratch;
    hidden_ = static_cast<char*>(scratch.take(static_cast<size_t>(chain.between_bytes(most) + 128)));
    const int64_t hidden = chain.expand.k ? chain.rows_seen(most) * chain.row_bytes() : 0;
    result_ = hidden_ + round_up(hidden, 64);
  }

  void step(int64_t index) {
    DepthwiseCall call = chain_.depthwise;
    const int64_t image = index / blocks_, block = index % blocks_;
    const int64_t begin = call.out_height * block / blocks_, end = call.out_height * (block + 1) / blocks_;
    call.x.data = chain_.expand.k ? expanded(image, begin, end)
                                  : at_row(call.x.data, call.x.type, image * call.height, call.width, call.channels);
    call.y = chain_.project.k ? at_row(static_cast<void*>(result_), call.y_type, -begin, call.out_width, call.channels)
                              : at_row(call.y, call.y_type, image * call.out_height, call.out_width, call.channels);
    table().depthwise_last(call, RowsPart{begin, end, 0, packed_channels(call.channels) / kBlockChannels});
    if (chain_.project.k) project(image * call.out_height + begin, end - begin);
  }

 private:
  // The hidden image, of which just those rows are there that rows [begin, end) of y see.
  const void* expanded(int64_t image, int64_t begin, int64_t end) {
    const DepthwiseCall& call = chain_.depthwise;
    int64_t top = begin * call.stride_height - call.padding_height;
    int64_t bottom = (end - 1) * call.stride_height - call.padding_height + chain_.reach() + 1;
    top = top < 0 ? 0 : top < call.height ? top : call.height;
    bottom = bottom < top ? top : bottom < call.height ? bottom : call.height;
    int64_t kept = 0;
    if (image == image_ && top >= top_ && top < bottom_) {
      kept = bottom_ - top;
      std::memmove(hidden_, hidden_ + (top - top_) * chain_.row_bytes(), static_cast<size_t>(kept * chain_.row_bytes()));
    }
    LinearCall expand = chain_.expand;
    expand.x.data = at_row(expand.x.data, expand.x.type, image * call.height + top + kept, call.width, expand.k);
    expand.y = hidden_ + kept * chain_.row_bytes();
    run_part(expand, (bottom - top - kept) * call.width);
    image_ = image;
    top_ = top;
    bottom_ = bottom;
    return at_row(static_cast<const void*>(hidden_), chain_.between(), -top, call.width, call.channels);
  }

  void project(int64_t row, int64_t rows) {
    const int64_t width = chain_.depthwise.out_width;
    LinearCall call = chain_.project;
    call.x.data = result_;
    call.y = at_row(call.y, call.y_type, row, width, call.n);
    if (call.residual.data) call.residual.data = at_row(call.residual.data, call.residual.type, row, width, call.n);
    run_part(call, rows * width);
  }

  const Chain& chain_;
  int64_t blocks_;
  char *hidden_, *result_;
  int64_t image_ = -1, top_ = 0, bottom_ = 0;  // what lies in hidden_
};

void set_depthwise(DepthwiseCall& call, const Tensor& packed, const std::optional<Tensor>& bias,
                   const std::vector<int64_t>& numbers, int64_t post_op) {
  set_window(call, numbers, /*may_be_uneven=*/true);
  set_out_size(call, numbers);
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Float && packed.is_contiguous() &&
                      packed.numel() == packed_depthwise_size(call.channels, call.kernel_height, call.kernel_width),
                  "depthwise: not packed for these sizes");
  call.weight = static_cast<const float*>(packed.data_ptr());
  STD_TORCH_CHECK(post_op >= 0 && post_op < kPostOpCount, "post_op: unknown code");
  call.post_op = static_cast<PostOp>(post_op);
  if (bias) {
    STD_TORCH_CHECK(bias->scalar_type() == ScalarType::Float && bias->dim() == 1 && bias->size(0) == call.channels &&
                        bias->is_contiguous(),
                    "depthwise_bias: not a dense float32 vector of channels");
    call.bias = static_cast<const float*>(bias->data_ptr());
  }
  call.x.pixel = call.channels;
  call.x.row = call.width * call.channels;
  call.x.image = call.height * call.x.row;
}

// y [batch, out, oh, ow] = project(depthwise(expand(x [batch, in, h, w]))), channels last; the residual belongs to project.
// Where that is absent, y is what the depthwise convolution gives.
Tensor inverted_residual(const Tensor& x, std::optional<Tensor> expand, std::optional<Tensor> expand_bias,
                         int64_t expand_post_op, bool expand_bfloat16, const Tensor& depthwise, std::optional<Tensor> depthwise_bias, int64_t channels,
                         std::vector<int64_t> numbers, int64_t depthwise_post_op, bool depthwise_bfloat16,
                         std::optional<Tensor> project, std::optional<Tensor> project_bias, int64_t out_channels,
                         int64_t project_post_op, bool project_bfloat16, std::optional<Tensor> residual) {
  Chain chain;
  const ElementType x_type = channels_last(x, "x");
  chain.images = x.size(0);
  Tensor expand_holder, project_holder;
  chain.expand = pointwise(expand, expand_bias, expand_post_op, expand_bfloat16, channels, x.size(1), expand_holder);
  chain.expand.x.data = x.data_ptr();
  chain.expand.x.type = x_type;
  STD_TORCH_CHECK(expand ? x.size(1) > 0 : x.size(1) == channels, "x: not of the first convolution's channels");
  DepthwiseCall& middle = chain.depthwise;
  middle.channels = channels;
  middle.height = x.size(2);
  middle.width = x.size(3);
  middle.x.type = expand ? chain.expand.y_type : x_type;
  middle.x.data = x.data_ptr();
  middle.y_type = depthwise_bfloat16 ? ElementType::bfloat16 : ElementType::float32;
  set_depthwise(middle, depthwise, depthwise_bias, numbers, depthwise_post_op);
  chain.project = pointwise(project, project_bias, project_post_op, project_bfloat16, out_channels, channels, project_holder);
  chain.project.x.type = middle.y_type;
  const int64_t out = project ? out_channels : channels;
  const ElementType y_type = project ? chain.project.y_type : middle.y_type;
  Tensor y = empty_images(chain.images, out, middle.out_height, middle.out_width, y_type);
  chain.project.y = middle.y = y.data_ptr();
  if (residual) {
    STD_TORCH_CHECK(project, "residual: given without project, to which it belongs");
    chain.project.residual = residual_rows(*residual, chain.images, out, middle.out_height, middle.out_width);
    chain.project.residual_first = true;
  }
  if (y.numel() == 0) return y;
  const int64_t blocks = chain.blocks();
  shared_for(chain.images * blocks, chain.work() / blocks, kProductsWorthAThread, [&](int64_t begin, int64_t end) {
    Walk walk(chain, blocks);
    for (int64_t index = begin; index < end; ++index) walk.step(index);
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def(
      "inverted_residual(Tensor x, Tensor? expand, Tensor? expand_bias, int expand_post_op, bool expand_bfloat16, "
      "Tensor depthwise, Tensor? depthwise_bias, int channels, int[] numbers, int depthwise_post_op, bool depthwise_bfloat16, "
      "Tensor? project, Tensor? project_bias, int out_channels, int project_post_op, bool project_bfloat16, Tensor? residual) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("inverted_residual", TORCH_BOX(&inverted_residual)); }

}  // namespace slipstream
