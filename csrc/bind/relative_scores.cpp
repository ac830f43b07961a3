// SPDX-License-Identifier: Apache-2.0
// slipstream::relative_scores: checks tensors, finds what each row is asked for, gives each head, or a share of its batch, to a
// thread.
#include <algorithm>
#include <optional>

#include "../isa/level.h"
#include "scratch.h"
#include "shared_for.h"
#include "tensor_rows.h"

namespace slipstream {
namespace {

// Multiplications that repay waking another thread.
constexpr int64_t kWorthAThread = 150'000;

// One of the two terms: x [b, h, queries or keys, d], its table [h, p, d], index [queries, keys].
struct Term {
  Tensor x, table, index;
  std::vector<int32_t> spans;
  RelativeScoresCall call;
};

Tensor with_dense_rows(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.size(last) <= 1 || x.stride(last) == 1 ? x : torch::stable::contiguous(x);
}

// The least and the greatest position for each row of x, and for all of them that they are in the table: kernels do not ask again.
std::vector<int32_t> spans_of(const RelativeScoresCall& call, int64_t positions) {
  const int64_t length = call.of_keys ? call.keys : call.queries;
  std::vector<int32_t> least(length, INT32_MAX), greatest(length, INT32_MIN), spans(2 * length);
  for (int64_t i = 0; i < call.queries; ++i) {
    const int32_t* line = call.index + i * call.keys;
    if (call.of_keys) {
      for (int64_t j = 0; j < call.keys; ++j) {
        least[j] = std::min(least[j], line[j]);
        greatest[j] = std::max(greatest[j], line[j]);
      }
    } else {
      int32_t low = INT32_MAX, high = INT32_MIN;
      for (int64_t j = 0; j < call.keys; ++j) {
        low = std::min(low, line[j]);
        high = std::max(high, line[j]);
      }
      least[i] = low;
      greatest[i] = high;
    }
  }
  for (int64_t row = 0; row < length; ++row) {
    STD_TORCH_CHECK(least[row] >= 0 && greatest[row] < positions, "index: a position is beyond the table");
    spans[2 * row] = least[row];
    spans[2 * row + 1] = greatest[row];
  }
  return spans;
}

void check(const Tensor& x, const Tensor& table, const Tensor& index, int64_t queries, int64_t keys) {
  STD_TORCH_CHECK(table.dim() == 3 && table.size(0) == x.size(1) && table.size(2) == x.size(3),
                  "table: not of shape [heads, positions, depth]");
  STD_TORCH_CHECK(index.dim() == 2 && index.size(0) == queries && index.size(1) == keys && index.is_contiguous() &&
                      index.scalar_type() == ScalarType::Int,
                  "index: not dense int32 of shape [queries, keys]");
}

Term make_term(const Tensor& x, const Tensor& table, const Tensor& index, double scale, bool of_keys,
               const RelativeScoresCall& like) {
  check(x, table, index, like.queries, like.keys);
  Term term = {with_dense_rows(x), with_dense_rows(table), index, {}, like};
  RelativeScoresCall& call = term.call;
  call.of_keys = of_keys;
  call.x = {term.x.data_ptr(), term.x.stride(2), element_type(x, "query, key")};
  call.x_batch = term.x.stride(0);
  call.table = {term.table.data_ptr(), term.table.stride(1), element_type(table, "table")};
  call.index = static_cast<const int32_t*>(index.data_ptr());
  call.scale = static_cast<float>(scale);
  if (call.queries && call.keys) term.spans = spans_of(call, table.size(1));
  call.spans = term.spans.data();
  return term;
}

// y [b, h, queries, keys] = query_scale * query[b, h, i] . query_table[h, query_index[i, j]] + the same of key[b, h, j].
Tensor relative_scores(const Tensor& query, const Tensor& key, std::optional<Tensor> query_table,
                       std::optional<Tensor> query_index, double query_scale, std::optional<Tensor> key_table,
                       std::optional<Tensor> key_index, double key_scale, bool bfloat16) {
  STD_TORCH_CHECK(query.dim() == 4 && key.dim() == 4, "query, key: not of shape [batch, heads, length, depth]");
  const int64_t batch = query.size(0), heads = query.size(1);
  STD_TORCH_CHECK(key.size(0) == batch && key.size(1) == heads, "key: another batch size or number of heads than query");
  RelativeScoresCall like;
  like.queries = query.size(2);
  like.keys = key.size(2);
  like.depth = query.size(3);
  like.bfloat16 = bfloat16;
  const int64_t scores = like.queries * like.keys;
  like.y_batch = heads * scores;
  STD_TORCH_CHECK(key.size(3) == like.depth, "key: another depth than query");
  STD_TORCH_CHECK(query_table || key_table, "query_table, key_table: neither is given");
  STD_TORCH_CHECK(query_table.has_value() == query_index.has_value() && key_table.has_value() == key_index.has_value(),
                  "query_table, key_table: without its index, or an index without its table");
  std::vector<Term> terms;
  if (query_table) terms.push_back(make_term(query, *query_table, *query_index, query_scale, false, like));
  if (key_table) terms.push_back(make_term(key, *key_table, *key_index, key_scale, true, like));
  Tensor y = empty({batch, heads, like.queries, like.keys}, ScalarType::Float);
  if (batch == 0 || heads == 0 || scores == 0) return y;
  for (Term& term : terms) term.call.spans = term.spans.data();

  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t shares = (threads + heads - 1) / heads;  // of the batch: who shares a head packs its table once
  if (shares > batch) shares = batch;
  const KernelTable& kernels = table();
  const int64_t work = batch * like.queries * like.keys * like.depth / shares;
  shared_for(heads * shares, work, kWorthAThread, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / shares, first = batch * (task % shares) / shares;
      for (const Term& term : terms) {
        RelativeScoresCall call = term.call;
        call.add = &term != terms.data();
        call.batch = batch * (task % shares + 1) / shares - first;
        call.x.data = static_cast<const char*>(call.x.data) +
                      (first * call.x_batch + head * term.x.stride(1)) * element_size(call.x.type);
        call.table.data = static_cast<const char*>(call.table.data) + head * term.table.stride(0) * element_size(call.table.type);
        call.y = static_cast<float*>(y.data_ptr()) + first * call.y_batch + head * scores;
        kernels.relative_scores(call, thread_scratch().take(kernels.relative_scores_scratch(call)));
      }
    }
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def(
      "relative_scores(Tensor query, Tensor key, Tensor? query_table, Tensor? query_index, float query_scale, Tensor? key_table, "
      "Tensor? key_index, float key_scale, bool bfloat16) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("relative_scores", TORCH_BOX(&relative_scores)); }

}  // namespace slipstream
