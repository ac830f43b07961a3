// SPDX-License-Identifier: Apache-2.0
// slipstream::concatenate: rows put together of parts that are copied, looked up in tables, or picked.
#include <atomic>

#include "../isa/level.h"
#include "shared_for.h"
#include "tensor_rows.h"

namespace slipstream {
namespace {

// Bytes written and read that repay waking another thread: about 5 us at 10 a nanosecond.
constexpr int64_t kWorthAThread = 50'000;

// Rows of the result that one thread writes of one part.
constexpr int64_t kRowsOfABlock = 64;

// So much of tables the second level of a core's page tables' cache knows, beside the result: 3072 pages of 4 KiB, or 2048.
constexpr int64_t kPagesKnown = 6 << 20;

Numbers numbers_of(const Tensor& tensor, const char* argument) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Long || type == ScalarType::Int, argument, ": not int64 or int32");
  STD_TORCH_CHECK(tensor.dim() == 1, argument, ": one is not of shape [count]");
  return {tensor.data_ptr(), tensor.numel(), tensor.stride(0), type == ScalarType::Long};
}

// The sources of a call, and what has to live as long as it does.
struct Parts {
  std::vector<ConcatenatedPart> all;
  std::vector<Tensor> holders;
  int64_t rows = -1, columns = 0, bytes_of_a_row = 0, bytes_of_tables = 0;
};

void check_rows(Parts& parts, int64_t rows) {
  STD_TORCH_CHECK(parts.rows < 0 || parts.rows == rows, "parts: of ", parts.rows, " and of ", rows, " rows");
  parts.rows = rows;
}

void check_picked(const ConcatenatedPart& part, int64_t width) {
  STD_TORCH_CHECK(!part.index.is_long, "numbers: picked columns are not int32");
  STD_TORCH_CHECK(part.index.stride == 1 || part.index.count < 2, "numbers: picked columns are not dense");
  for (int64_t i = 0; i < part.index.count; ++i) {
    STD_TORCH_CHECK(part.index[i] >= 0 && part.index[i] < width, "numbers: column ", part.index[i], " of ", width);
  }
}

void add_part(Parts& parts, const Tensor& source, PartKind kind, const std::vector<Tensor>& numbers, size_t& used) {
  ConcatenatedPart part;
  part.kind = kind;
  STD_TORCH_CHECK(source.dim() == 2, "sources: one is not of shape [rows, columns]");
  parts.holders.emplace_back();
  part.x = as_rows(source, "sources", parts.holders.back(), part.x_rows);
  part.columns = source.size(1);
  part.column = parts.columns;
  int64_t rows = source.size(0), read = 1;
  auto next = [&] {
    STD_TORCH_CHECK(used < numbers.size(), "numbers: fewer than the kinds ask for");
    return numbers_of(numbers[used++], "numbers");
  };
  if (kind != PartKind::rows) part.index = next();
  if (kind == PartKind::picked) {
    check_picked(part, source.size(1));
    part.columns = part.index.count;
  } else if (kind == PartKind::embedding) {
    rows = part.index.count;
  } else if (kind != PartKind::rows) {
    part.offsets = next();
    rows = part.offsets.count;
    STD_TORCH_CHECK(rows == 0 || part.offsets[0] == 0, "numbers: the first bag does not begin at 0");
    read = rows == 0 ? 1 : (part.index.count + rows - 1) / rows;
  }
  check_rows(parts, rows);
  parts.bytes_of_a_row += part.columns * (read + 1) * element_size(part.x.type);
  parts.columns += part.columns;
  if (kind != PartKind::rows && kind != PartKind::picked) {
    parts.bytes_of_tables += part.x_rows * part.columns * element_size(part.x.type);
  }
  parts.all.push_back(part);
}

// kinds: a PartKind for each source. numbers: for each part the index that its kind asks for and the offsets of its bags.
Tensor concatenate(const std::vector<Tensor>& sources, const std::vector<int64_t>& kinds, const std::vector<Tensor>& numbers,
                   bool bfloat16_out) {
  STD_TORCH_CHECK(!sources.empty() && sources.size() == kinds.size(), "kinds: not one for each of the sources");
  Parts parts;
  size_t used = 0;
  for (size_t p = 0; p < sources.size(); ++p) {
    STD_TORCH_CHECK(kinds[p] >= 0 && kinds[p] <= static_cast<int64_t>(PartKind::picked), "kinds: ", kinds[p], " is none");
    add_part(parts, sources[p], static_cast<PartKind>(kinds[p]), numbers, used);
  }
  STD_TORCH_CHECK(used == numbers.size(), "numbers: more than the kinds ask for");
  ConcatenateCall call;
  call.parts = parts.all.data();
  call.count = static_cast<int64_t>(parts.all.size());
  call.rows = parts.rows;
  call.stride = parts.columns;
  call.y_type = bfloat16_out ? ElementType::bfloat16 : ElementType::float32;
  Tensor y = empty({parts.rows, parts.columns}, scalar_type(call.y_type));
  call.y = y.data_ptr();
  const auto kernel = table().concatenate;
  std::atomic<bool> good{true};
  // Of small tables all parts of one block of rows, which are written whole; of large ones all blocks of one part, so that a
  // thread reads few tables.
  const bool by_rows = parts.bytes_of_tables <= kPagesKnown;
  const int64_t blocks = (call.rows + kRowsOfABlock - 1) / kRowsOfABlock, unit = parts.bytes_of_a_row * kRowsOfABlock / call.count;
  shared_for(call.count * blocks, unit, kWorthAThread, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = by_rows ? task % call.count : task / blocks, block = by_rows ? task / call.count : task % blocks;
      const int64_t first = block * kRowsOfABlock, next = first + kRowsOfABlock;
      if (!kernel(call, part, first, next < call.rows ? next : call.rows)) good.store(false, std::memory_order_relaxed);
    }
  });
  STD_TORCH_CHECK(good.load(), "numbers: an index or an offset is out of range");
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def("concatenate(Tensor[] sources, int[] kinds, Tensor[] numbers, bool bfloat16_out) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("concatenate", TORCH_BOX(&concatenate)); }

}  // namespace slipstream
