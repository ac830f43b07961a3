// SPDX-License-Identifier: Apache-2.0
// slipstream::pack_linear and slipstream::linear: check tensors, split the outputs over torch's threads, call the table.
#include <cstring>

#include "../isa/level.h"
#include "element.h"
#include "linear_operands.h"
#include "partition.h"
#include "run_linear.h"
#include "scratch.h"

namespace slipstream {
namespace {

// Multiplications below which a second thread costs more than it brings (waking a team takes about 5 us; a core does about
// 100 multiplications a nanosecond).
constexpr int64_t kWorthAThread = 250'000;

const void* row_of(const Rows& matrix, int64_t row) {
  const int64_t bytes = matrix.type == ElementType::float32 ? 4 : 2;
  return static_cast<const uint8_t*>(matrix.data) + row * matrix.stride * bytes;
}

// A panel is its columns of W transposed, by words: a float, or two neighbouring bfloat16, which only need to be moved.
void pack_panel(const Rows& weight, int64_t n, int64_t k, int64_t panel, ElementType type, void* packed) {
  const int64_t size = panel_size(type, k), begin = panel * kPanelColumns;
  const int64_t columns = n - begin < kPanelColumns ? n - begin : kPanelColumns;
  TransposeCall call;
  call.y_stride = kPanelColumns;
  call.rows = columns;
  if (type == ElementType::float32) {
    float* to = static_cast<float*>(packed) + panel * size;
    if (columns < kPanelColumns) std::memset(to, 0, static_cast<size_t>(size) * sizeof(float));
    call.x = row_of(weight, begin);
    call.x_type = weight.type;
    call.x_stride = weight.stride;
    call.columns = k;
    call.y = to;
    return table().transpose(call, 0, k);
  }
  const int64_t depth = packed_depth(type, k);
  uint16_t* rows = static_cast<uint16_t*>(thread_scratch().take(static_cast<size_t>(columns * depth) * sizeof(uint16_t)));
  for (int64_t c = 0; c < columns; ++c) {
    uint16_t* row = rows + c * depth;
    table().activation(row_of(weight, begin + c), weight.type, row, ElementType::bfloat16, 0, k, PostOp::none);
    std::memset(row + k, 0, static_cast<size_t>(depth - k) * sizeof(uint16_t));
  }
  uint16_t* to = static_cast<uint16_t*>(packed) + panel * size;
  if (columns < kPanelColumns) std::memset(to, 0, static_cast<size_t>(size) * sizeof(uint16_t));
  call.x = rows;
  call.x_stride = call.columns = depth / 2;
  call.y = to;
  table().transpose(call, 0, depth / 2);
}

// weight [n, k] float32 or bfloat16 -> packed, 1-D, of the type asked for (layout: kernels/linear.h).
Tensor pack_linear(const Tensor& weight, bool bfloat16) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight: not a matrix [out_features, in_features]");
  Tensor holder;
  int64_t n = 0;
  const Rows rows = as_rows(weight, "weight", holder, n);
  const int64_t k = weight.size(1);
  n = weight.size(0);
  const ElementType type = bfloat16 ? ElementType::bfloat16 : ElementType::float32;
  Tensor packed = empty({packed_size(type, n, k)}, scalar_type(type));
  void* to = packed.data_ptr();
  torch::stable::parallel_for(0, round_up(n, kPanelColumns) / kPanelColumns, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) pack_panel(rows, n, k, panel, type, to);
  });
  return packed;
}

// y [..., n] = residual + multiplier * post_op(x [..., k] . W^T + bias [n]), or the residual within the post-op; y is bfloat16
// or float32 as asked.
Tensor linear(const Tensor& x, const Tensor& packed, int64_t n, int64_t k, std::optional<Tensor> bias, int64_t post_op,
              std::optional<Tensor> multiplier, std::optional<Tensor> residual, bool bfloat16_out, bool residual_first) {
  LinearCall call;
  call.n = n;
  call.k = k;
  call.weight_type = element_type(packed, "packed");
  STD_TORCH_CHECK(packed.numel() == packed_size(call.weight_type, n, k), "packed: not packed for these sizes");
  call.weight = packed.data_ptr();
  LinearOperands operands;
  operands.take(call, x, bias, post_op, multiplier, residual, residual_first);
  Tensor y = operands.result(call, x, bfloat16_out);
  run_linear(call);
  return y;
}

}  // namespace

void run_linear(const LinearCall& call) {
  if (call.m == 0 || call.n == 0) return;
  const KernelTable& kernels = table();
  const int64_t panels = round_up(call.n, kPanelColumns) / kPanelColumns;
  const int64_t work = call.m * call.n * call.k;
  const int64_t wanted = work / kWorthAThread + 1;
  const int64_t available = wanted > 1 ? static_cast<int64_t>(torch::stable::get_num_threads()) : 1;
  const Grid grid = choose_grid(call.m, panels, wanted < available ? wanted : available);
  auto compute = [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const LinearPart part = part_of(grid, index, call.m, panels);
      kernels.linear(call, part, thread_scratch().take(kernels.linear_scratch(call, part)));
    }
  };
  if (grid.size() == 1) return compute(0, 1);
  torch::stable::parallel_for(0, grid.size(), 1, compute);
}

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def("pack_linear(Tensor weight, bool bfloat16) -> Tensor");
  library.def(
      "linear(Tensor x, Tensor packed, int n, int k, Tensor? bias, int post_op, Tensor? multiplier, Tensor? residual, "
      "bool bfloat16_out, bool residual_first=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) {
  library.impl("pack_linear", TORCH_BOX(&pack_linear));
  library.impl("linear", TORCH_BOX(&linear));
}

}  // namespace slipstream
