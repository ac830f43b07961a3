// SPDX-License-Identifier: Apache-2.0
// slipstream::pack_linear and slipstream::linear: check tensors, share the outputs out to torch's threads, call the table.
#include <atomic>
#include <cstring>
#include <optional>

#include "../isa/level.h"
#include "element.h"
#include "scaled_operands.h"
#include "linear_operands.h"
#include "partition.h"
#include "run_linear.h"
#include "scratch.h"

namespace slipstream {
namespace {

// A panel is its columns of W transposed, by words: a float, or two neighbouring bfloat16, which only need to be moved.
void pack_panel(const Rows& weight, int64_t n, int64_t k, int64_t panel, ElementType type, void* packed_panel) {
  const int64_t size = panel_size(type, k), begin = panel * kPanelColumns;
  const int64_t columns = n - begin < kPanelColumns ? n - begin : kPanelColumns;
  if (size == 0) return;  // there may be no memory either
  TransposeCall call;
  call.y_stride = kPanelColumns;
  call.rows = columns;
  if (type == ElementType::float32) {
    float* to = static_cast<float*>(packed_panel);
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
  uint16_t* to = static_cast<uint16_t*>(packed_panel);
  if (columns < kPanelColumns) std::memset(to, 0, static_cast<size_t>(size) * sizeof(uint16_t));
  call.x = rows;
  call.x_stride = call.columns = depth / 2;
  call.y = to;
  table().transpose(call, 0, depth / 2);
}

// The same in parts of bfloat16.
void pack_panel_parts(const Rows& weight, int64_t n, int64_t k, int64_t panel, int64_t parts, uint16_t* packed) {
  const int64_t size = panel_size(ElementType::bfloat16, k) * parts, begin = panel * kPanelColumns;
  const int64_t columns = n - begin < kPanelColumns ? n - begin : kPanelColumns;
  if (size == 0) return;
  uint16_t* to = packed + panel * size;
  std::memset(to, 0, static_cast<size_t>(size) * sizeof(uint16_t));
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t i = 0; i < k; ++i) {
      const float value = to_float(weight.data, weight.type, (begin + c) * weight.stride + i);
      split_bfloat16(value, parts, to + place_in_parts(i, c, parts), kPackedDepth * kPanelColumns);
    }
  }
}

// A weight in parts as plain float32, packed.
Tensor join_parts(const LinearCall& call) {
  const int64_t panels = round_up(call.n, kPanelColumns) / kPanelColumns;
  const int64_t size = panel_size(ElementType::float32, call.k);
  Tensor joined = empty({panels * size}, ScalarType::Float);
  float* to = static_cast<float*>(joined.data_ptr());
  const uint16_t* weight = static_cast<const uint16_t*>(call.weight);
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * size; at < end * size; ++at) {
      const int64_t panel = at / size, i = at % size / kPanelColumns, c = at % kPanelColumns;
      const uint16_t* from = weight + panel * panel_size(ElementType::bfloat16, call.k) * call.weight_parts;
      to[at] = join_bfloat16(from + place_in_parts(i, c, call.weight_parts), call.weight_parts, kPackedDepth * kPanelColumns);
    }
  });
  return joined;
}

// weight [n, k] -> packed, 1-D.
Tensor pack_as(const Rows& rows, int64_t n, int64_t k, ElementType type, int64_t parts) {
  Tensor packed = empty({packed_size(type, n, k) * parts}, scalar_type(type));
  void* to = packed.data_ptr();
  torch::stable::parallel_for(0, round_up(n, kPanelColumns) / kPanelColumns, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      if (parts > 1) {
        pack_panel_parts(rows, n, k, panel, parts, static_cast<uint16_t*>(to));
      } else {
        const int64_t bytes = panel_size(type, k) * element_size(type);
        pack_panel(rows, n, k, panel, type, static_cast<char*>(to) + panel * bytes);
      }
    }
  });
  return packed;
}

// weight [n, k] -> packed and scaled, 1-D; nothing where a panel does not fit.
std::optional<Tensor> pack_scaled(const Rows& rows, int64_t n, int64_t k, const Scaling& scaling) {
  const ElementType type = scaling.type;
  const int64_t from_bytes = panel_size(rows.type, k) * element_size(rows.type), to_bytes = panel_size(type, k) * 2;
  Tensor packed = empty({packed_size(type, n, k)}, scalar_type(type));
  uint8_t* to = static_cast<uint8_t*>(packed.data_ptr());
  std::atomic<bool> fits{true};
  torch::stable::parallel_for(0, round_up(n, kPanelColumns) / kPanelColumns, 1, [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    void* plain = scratch.take(static_cast<size_t>(from_bytes) + 64);  // what a thread packs in has scratch memory of its own
    for (int64_t panel = begin; panel < end; ++panel) {
      pack_panel(rows, n, k, panel, rows.type, plain);
      if (!fit_packed_panel(scaling, plain, rows.type, k, to + panel * to_bytes)) fits = false;
    }
  });
  if (!fits) return std::nullopt;
  return packed;
}

// weight [n, k] float32 or bfloat16 -> packed, 1-D, of the type asked for, or with more parts than one in that many of bfloat16
// (layout: kernels/linear.h). With scaled, instead of bfloat16 it becomes what the level multiplies scaled, if anything, where the
// weight fits.
Tensor pack_linear(const Tensor& weight, bool bfloat16, int64_t parts, bool scaled) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight: not a matrix [out_features, in_features]");
  STD_TORCH_CHECK(parts >= 1 && parts <= 3 && (bfloat16 || parts == 1), "parts: not 1, 2 or 3 of bfloat16, or 1 of float32");
  Tensor holder;
  int64_t n = 0;
  const Rows rows = as_rows(weight, "weight", holder, n);
  const int64_t k = weight.size(1);
  n = weight.size(0);
  if (scaled && bfloat16 && parts == 1 && table().scaling.fit_panel) {
    if (std::optional<Tensor> fitted = pack_scaled(rows, n, k, table().scaling)) return *fitted;
  }
  return pack_as(rows, n, k, bfloat16 ? ElementType::bfloat16 : ElementType::float32, parts);
}

// Rows of x [batch, rows, k] from which each batch is multiplied by itself where only its own rows lie at one stride, as
// overlapping windows of sequences do; fewer are copied, so that the weight is read once for all.
constexpr int64_t kRowsOfABatch = 128;

bool is_by_batches(const Tensor& x) {
  int64_t rows = 0, stride = 0;
  return x.dim() == 3 && x.size(1) >= kRowsOfABatch && x.stride(2) == 1 && !fold_rows(x, rows, stride);
}

std::optional<Tensor> batch_of(const std::optional<Tensor>& operand, int64_t index) {
  if (!operand) return std::nullopt;
  return torch::stable::select(*operand, 0, index);
}

// y [..., n] = residual + multiplier * post_op(x [..., k] . W^T + bias [n]), or the residual within the post-op; y is bfloat16
// or float32 as asked.
Tensor linear(const Tensor& x, const Tensor& packed, int64_t n, int64_t k, std::optional<Tensor> bias, int64_t post_op,
              std::optional<Tensor> multiplier, std::optional<Tensor> residual, bool bfloat16_out, bool residual_first) {
  LinearCall call;
  call.n = n;
  call.k = k;
  Tensor holder;
  take_packed(call, packed, holder);
  STD_TORCH_CHECK(x.dim() >= 1, "x: a scalar has no row to multiply");
  Tensor y = LinearOperands::result(call, x, bfloat16_out);
  const bool by_batches = is_by_batches(x);
  uint8_t* to = static_cast<uint8_t*>(call.y);
  const int64_t batches = by_batches ? x.size(0) : 1;
  for (int64_t b = 0; b < batches; ++b) {
    LinearOperands operands;
    if (by_batches) {
      const Tensor rows = torch::stable::select(x, 0, b);
      operands.take(call, rows, bias, post_op, batch_of(multiplier, b), batch_of(residual, b), residual_first);
    } else {
      operands.take(call, x, bias, post_op, multiplier, residual, residual_first);
    }
    call.y = to + b * call.m * n * element_size(call.y_type);
    run_linear(call);
  }
  return y;
}

// The kernel for a call, and how it is shared out.
class Multiply {
 public:
  explicit Multiply(const LinearCall& call)
      : call_(call),
        compute_(call.weight_parts > 1 ? table().linear_split : table().linear),
        scratch_(call.weight_parts > 1 ? table().linear_split_scratch : table().linear_scratch) {}

  Partition partition() const {
    const int64_t panels = round_up(call_.n, kPanelColumns) / kPanelColumns;
    const int64_t weight_bytes = call_.n * call_.k * call_.weight_parts * element_size(call_.weight_type);
    return {call_.m, panels, call_.m * call_.n * call_.k, kProductsWorthAThread, least_run(weight_bytes)};
  }

  void operator()(const LinearPart& part) const { compute_(call_, part, thread_scratch().take(scratch_(call_, part))); }

 private:
  const LinearCall& call_;
  decltype(KernelTable::linear) compute_;
  decltype(KernelTable::linear_scratch) scratch_;
};

}  // namespace

void take_packed(LinearCall& call, const Tensor& packed, Tensor& holder) {
  call.weight_type = packed_type(packed);
  const bool is_whole = packed.numel() == packed_size(call.weight_type, call.n, call.k);
  const bool may_be_parts = !is_whole && call.weight_type == ElementType::bfloat16;
  call.weight_parts = is_whole ? 1 : may_be_parts ? parts_of_packed(packed.numel(), call.n, call.k) : 0;
  STD_TORCH_CHECK(call.weight_parts > 0, "packed: not packed for these sizes");
  take_weight(call, packed, holder);
  if (call.weight_parts > 1 && !table().linear_split) {
    holder = join_parts(call);
    call.weight = holder.data_ptr();
    call.weight_type = ElementType::float32;
    call.weight_parts = 1;
  }
}

void run_linear(const LinearCall& call) {
  if (call.m == 0 || call.n == 0) return;
  const Multiply multiply(call);
  multiply.partition().run(multiply);
}

void run_linear(const LinearCall& call, const std::function<void(int64_t, int64_t)>& make, int64_t worth_making) {
  if (call.m == 0 || call.n == 0) return;
  const Multiply multiply(call);
  const Partition partition = multiply.partition();
  if (partition.keeps_rows_whole()) {
    return partition.run([&](const LinearPart& part) {
      make(part.m_begin, part.m_end);
      multiply(part);
    });
  }
  shared_for(call.m, call.k, worth_making, make);
  partition.run(multiply);
}

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def("pack_linear(Tensor weight, bool bfloat16, int parts=1, bool scaled=False) -> Tensor");
  library.def(
      "linear(Tensor x, Tensor packed, int n, int k, Tensor? bias, int post_op, Tensor? multiplier, Tensor? residual, "
      "bool bfloat16_out, bool residual_first=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) {
  library.impl("pack_linear", TORCH_BOX(&pack_linear));
  library.impl("linear", TORCH_BOX(&linear));
}

}  // namespace slipstream
