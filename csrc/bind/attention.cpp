// SPDX-License-Identifier: Apache-2.0
// slipstream::attention: checks tensors, gives each head of keys (or a share of its query rows) to a thread.
#include <optional>

#include "../isa/level.h"
#include "scratch.h"
#include "shared_for.h"
#include "tensor_rows.h"

namespace slipstream {
namespace {

void check(const Tensor& x, const char* argument) {
  STD_TORCH_CHECK(x.dim() == 4, argument, ": not of shape [batch, heads, length, depth]");
}

// Multiplications that repay waking another thread.
constexpr int64_t kWorthAThread = 150'000;

// The tensor, or a copy of it whose last dimension is dense.
Tensor with_dense_rows(const Tensor& x) { return x.size(3) <= 1 || x.stride(3) == 1 ? x : torch::stable::contiguous(x); }

const void* at(const Tensor& x, ElementType type, int64_t batch, int64_t head) {
  return static_cast<const char*>(x.data_ptr()) + (batch * x.stride(0) + head * x.stride(1)) * element_size(type);
}

struct Mask {
  std::optional<Tensor> tensor;
  MaskType type = MaskType::none;
};

Mask as_mask(const std::optional<Tensor>& mask, const Tensor& q, const Tensor& k) {
  Mask result;
  if (!mask) return result;
  STD_TORCH_CHECK(mask->dim() == 4 && mask->size(0) == q.size(0) && mask->size(1) == q.size(1) && mask->size(2) == q.size(2) &&
                      mask->size(3) == k.size(2),
                  "mask: not of shape [batch, heads, queries, keys]; expand it");
  result.tensor = *mask;
  const ScalarType type = mask->scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Bool || type == ScalarType::Float || type == ScalarType::BFloat16,
                  "mask: not bool, float32 or bfloat16");
  result.type = type == ScalarType::Bool    ? MaskType::boolean
                : type == ScalarType::Float ? MaskType::float32
                                            : MaskType::bfloat16;
  return result;
}

// q [b, h, l, d], k [b, g, s, d], v [b, g, s, e], h a multiple of g -> y [b, h, l, e], whose memory is [b, l, h, e].
Tensor attention(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, std::optional<Tensor> mask_in, bool causal,
                 double scale, bool bfloat16, bool bfloat16_out, double softcap, int64_t window, double unseen,
                 int64_t parts) {
  check(q_in, "query");
  check(k_in, "key");
  check(v_in, "value");
  const Tensor q = with_dense_rows(q_in), k = with_dense_rows(k_in), v = with_dense_rows(v_in);
  const int64_t batch = q.size(0), heads = q.size(1), groups = k.size(1);
  STD_TORCH_CHECK(k.size(0) == batch && v.size(0) == batch, "key, value: another batch size than query");
  STD_TORCH_CHECK(v.size(1) == groups && v.size(2) == k.size(2), "value: another number of heads or keys than key");
  STD_TORCH_CHECK(k.size(3) == q.size(3), "key: another depth than query");
  STD_TORCH_CHECK(groups > 0 && heads % groups == 0, "query: heads are no multiple of the heads of key");
  STD_TORCH_CHECK(softcap >= 0 && window >= 0, "softcap, window: negative; 0 is without");
  check_parts(parts, bfloat16);
  const Mask mask = as_mask(mask_in, q, k);

  AttentionCall whole;
  whole.queries = q.size(2);
  whole.keys = k.size(2);
  whole.depth = q.size(3);
  whole.value_depth = v.size(3);
  whole.heads = heads / groups;
  whole.q.type = element_type(q, "query");
  whole.k.type = element_type(k, "key");
  whole.v.type = element_type(v, "value");
  whole.q.stride = q.stride(2);
  whole.q.head = q.stride(1);
  whole.k.stride = k.stride(2);
  whole.v.stride = v.stride(2);
  whole.scale = static_cast<float>(scale);
  whole.softcap = static_cast<float>(softcap);
  whole.causal = causal;
  whole.unseen = static_cast<float>(unseen);
  whole.window = window < whole.queries + whole.keys ? window : 0;
  whole.bfloat16 = bfloat16;
  whole.parts = parts;
  whole.y_type = bfloat16_out ? ElementType::bfloat16 : ElementType::float32;
  const int64_t e = whole.value_depth;
  whole.y_stride = heads * e;
  whole.y_head = e;
  whole.mask_type = mask.type;
  if (mask.tensor) {
    whole.mask_head = mask.tensor->stride(1);
    whole.mask_row = mask.tensor->stride(2);
    whole.mask_key = mask.tensor->stride(3);
  }
  Tensor y = empty_strided({batch, heads, whole.queries, e}, {whole.queries * heads * e, e, heads * e, 1},
                           scalar_type(whole.y_type));
  if (batch == 0 || heads == 0 || whole.queries == 0 || e == 0) return y;

  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t shares = (threads + batch * groups - 1) / (batch * groups);  // of a head's query rows
  if (shares > whole.queries) shares = whole.queries;
  const KernelTable& kernels = table();
  const int64_t work = whole.heads * whole.queries * whole.keys * (whole.depth + e) / shares;
  shared_for(batch * groups * shares, work, kWorthAThread, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / (groups * shares), g = task / shares % groups, share = task % shares;
      AttentionCall call = whole;
      const int64_t head = g * call.heads;
      call.q.data = at(q, call.q.type, b, head);
      call.k.data = at(k, call.k.type, b, g);
      call.v.data = at(v, call.v.type, b, g);
      if (shares == 1 && task + 1 < end) {
        const int64_t next = (task + 1) / groups, group = (task + 1) % groups;
        call.q_ahead = at(q, call.q.type, next, group * call.heads);
        call.k_ahead = at(k, call.k.type, next, group);
        call.v_ahead = at(v, call.v.type, next, group);
      }
      call.y = static_cast<char*>(y.data_ptr()) +
               (b * call.queries * heads * e + head * e) * element_size(call.y_type);
      if (mask.tensor) {
        const int64_t element = mask.type == MaskType::boolean ? 1 : mask.type == MaskType::float32 ? 4 : 2;
        call.mask = static_cast<const char*>(mask.tensor->data_ptr()) +
                    (b * mask.tensor->stride(0) + head * call.mask_head) * element;
      }
      const AttentionPart part = {call.queries * share / shares, call.queries * (share + 1) / shares};
      kernels.attention(call, part, thread_scratch().take(kernels.attention_scratch(call)));
    }
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? mask, bool causal, float scale, bool bfloat16, "
      "bool bfloat16_out, float softcap=0., int window=0, float unseen=0., int parts=1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("attention", TORCH_BOX(&attention)); }

}  // namespace slipstream
