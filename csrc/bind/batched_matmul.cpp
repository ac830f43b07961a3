// SPDX-License-Identifier: Apache-2.0
// slipstream::batched_matmul: checks tensors, gives matrices of the batch, or rectangles of them, to threads; each packs what it
// needs of B into its scratch memory, perhaps in parts of bfloat16, and runs the level's linear on it.
#include <optional>

#include "../isa/level.h"
#include "scaled_operands.h"
#include "partition.h"
#include "scratch.h"
#include "tensor_rows.h"

namespace slipstream {
namespace {

// Packed panels in work at a time stay in half of the second-level cache; at least 256 columns, so that A's rows are not copied for
// fewer.
constexpr int64_t kLeastPanels = 8;
int64_t packed_bytes() { return second_level_cache() / 2; }

int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// A tensor [..., rows, columns]: where each matrix of the batch lies.
struct Matrices {
  Tensor holder;
  ElementType type = ElementType::float32;
  int64_t row = 0, column = 0;  // strides
  std::vector<int64_t> sizes, strides;

  const char* at(int64_t entry) const {
    int64_t offset = 0;
    for (size_t d = sizes.size(); d-- > 0;) {
      offset += entry % sizes[d] * strides[d];
      entry /= sizes[d];
    }
    return static_cast<const char*>(holder.data_ptr()) + offset * element_size(type);
  }

  // Whether all entries are one matrix.
  bool is_one() const {
    for (size_t d = 0; d < sizes.size(); ++d) {
      if (sizes[d] > 1 && strides[d] != 0) return false;
    }
    return true;
  }
};

// The tensor, or a dense copy where no stride of its matrices is 1 (or, with `rows`, that of columns is not).
Matrices matrices(const Tensor& x, const char* argument, bool rows) {
  const int64_t dims = x.dim();
  Matrices m;
  m.type = element_type(x, argument);
  const bool has_rows = x.size(dims - 1) <= 1 || x.stride(dims - 1) == 1;
  const bool has_columns = x.size(dims - 2) <= 1 || x.stride(dims - 2) == 1;
  m.holder = has_rows || (has_columns && !rows) ? x : torch::stable::contiguous(x);
  m.row = m.holder.stride(dims - 2);
  m.column = m.holder.stride(dims - 1);
  if (has_rows) {
    m.column = 1;
  } else if (has_columns && !rows) {
    m.row = 1;
  }
  for (int64_t d = 0; d + 2 < dims; ++d) {
    m.sizes.push_back(m.holder.size(d));
    m.strides.push_back(m.holder.stride(d));
  }
  return m;
}

// Rows of A of which there are so many repay converting B to float16.
constexpr int64_t kLeastRowsOfHalf = 64;

struct Product {
  int64_t batch = 1, m = 0, n = 0, k = 0;
  Matrices a, b;
  std::optional<Matrices> addend;
  float alpha = 1;
  ElementType type = ElementType::float32;  // what is multiplied
  int64_t parts = 1;                        // 2 or 3: a float32 B in parts of bfloat16
  bool half = false;                        // bfloat16 is multiplied as float16
  void* y = nullptr;                        // [batch, m, n], dense
  ElementType y_type = ElementType::float32;

  int64_t panels() const { return round_up(n, kPanelColumns) / kPanelColumns; }
  ElementType packed_type() const { return parts > 1 ? ElementType::bfloat16 : type; }
  int64_t panel_bytes() const { return panel_size(packed_type(), k) * parts * element_size(packed_type()); }
  int64_t fitted_bytes() const { return half ? panel_size(ElementType::float16, k) * 2 : 0; }
  int64_t panels_together() const {
    const int64_t fit = panel_bytes() > 0 ? packed_bytes() / panel_bytes() : packed_bytes();
    return fit > kLeastPanels ? fit : kLeastPanels;
  }
  bool a_is_turned() const { return a.column != 1; }
};

// A B that the whole batch shares, under rows of A at one stride: one large matrix.
void fold(Product& p) {
  int64_t rows = 0, stride = 0, addend_rows = 0, addend_stride = 0;
  if (!p.b.is_one() || p.a_is_turned() || !fold_rows(p.a.holder, rows, stride)) return;
  if (p.addend && !fold_rows(p.addend->holder, addend_rows, addend_stride)) return;
  p.m *= p.batch;
  p.batch = 1;
  p.a.row = stride;
  p.a.sizes.clear();
  p.b.sizes.clear();
  if (!p.addend) return;
  p.addend->row = addend_stride;
  p.addend->sizes.clear();
}

// One thread's scratch memory, and which part of which B lies packed in it.
struct Workplace {
  char *packed = nullptr, *fitted = nullptr, *turned = nullptr, *rest = nullptr;
  bool fits = false;  // what is packed lies in float16 in `fitted`
  const void* b = nullptr;
  int64_t first = -1, last = -1;
};

LinearCall call_of(const Product& p, int64_t first_panel, int64_t last_panel) {
  LinearCall call;
  call.m = p.m;
  call.n = (last_panel * kPanelColumns < p.n ? last_panel * kPanelColumns : p.n) - first_panel * kPanelColumns;
  call.k = p.k;
  call.x.type = p.a_is_turned() ? p.type : p.a.type;
  call.x.stride = p.a_is_turned() ? p.k : p.a.row;
  call.weight_type = p.packed_type();
  call.weight_parts = p.parts;
  call.alpha = p.alpha;
  call.y_type = p.y_type;
  call.y_stride = p.n;
  return call;
}

void pack(const Product& p, int64_t entry, int64_t first, int64_t last, const LinearCall& call, Workplace& place) {
  const char* from = p.b.at(entry);
  if (place.b == from && place.first == first && place.last == last) return;
  MatrixToPack matrix;
  matrix.data = from + first * kPanelColumns * p.b.column * element_size(p.b.type);
  matrix.type = p.b.type;
  matrix.k = p.k;
  matrix.n = call.n;
  matrix.k_stride = p.b.row;
  matrix.n_stride = p.b.column;
  matrix.packed_type = p.packed_type();
  matrix.parts = p.parts;
  table().pack_matrix(matrix, place.packed);
  place.fits = p.half;
  for (int64_t i = 0; i < last - first && place.fits; ++i) {
    uint8_t* to = reinterpret_cast<uint8_t*>(place.fitted + i * p.fitted_bytes());
    place.fits = fit_packed_panel(table().scaling, place.packed + i * p.panel_bytes(), ElementType::bfloat16, p.k, to);
  }
  place.b = from;
  place.first = first;
  place.last = last;
}

// Rows [begin, end) of an A whose columns lie dense, turned into rows.
void turn(const Product& p, int64_t entry, int64_t begin, int64_t end, char* to) {
  TransposeCall call;
  call.x = p.a.at(entry);
  call.x_type = p.a.type;
  call.x_stride = p.a.column;
  call.rows = p.k;
  call.columns = p.m;
  call.y = to - begin * p.k * element_size(p.type);
  call.y_type = p.type;
  call.y_stride = p.k;
  table().transpose(call, begin, end);
}

void compute(const Product& p, int64_t entry, const LinearPart& part, Workplace& place) {
  if (p.a_is_turned()) turn(p, entry, part.m_begin, part.m_end, place.turned);
  const int64_t together = p.panels_together();
  for (int64_t panel = part.panel_begin; panel < part.panel_end; panel += together) {
    const int64_t last = panel + together < part.panel_end ? panel + together : part.panel_end;
    const int64_t column = panel * kPanelColumns;
    LinearCall call = call_of(p, panel, last);
    pack(p, entry, panel, last, call, place);
    call.weight = place.fits ? place.fitted : place.packed;
    if (place.fits) call.weight_type = ElementType::float16;
    call.x.data = p.a_is_turned() ? place.turned - part.m_begin * p.k * element_size(p.type) : p.a.at(entry);
    call.y = static_cast<char*>(p.y) + (entry * p.m * p.n + column) * element_size(p.y_type);
    if (p.addend) {
      call.residual = {p.addend->at(entry) + column * element_size(p.addend->type), p.addend->row, p.addend->type};
    }
    const auto multiply = p.parts > 1 ? table().linear_split : table().linear;
    multiply(call, {part.m_begin, part.m_end, 0, last - panel}, place.rest);
  }
}

// Scratch memory for any part of the grid.
Workplace take_workplace(const Product& p, const Grid& grid) {
  const auto scratch_of = p.parts > 1 ? table().linear_split_scratch : table().linear_scratch;
  int64_t packed = 0, fitted = 0, turned = 0, rest = 0;
  auto hold = [](int64_t& most, int64_t bytes) { most = bytes > most ? bytes : most; };
  for (int64_t i = 0; i < grid.size(); ++i) {
    const LinearPart part = part_of(grid, i, p.m, p.panels());
    const int64_t all = part.panel_end - part.panel_begin, panels = all < p.panels_together() ? all : p.panels_together();
    hold(packed, panels * p.panel_bytes());
    hold(fitted, panels * p.fitted_bytes());
    if (p.a_is_turned()) hold(turned, (part.m_end - part.m_begin) * p.k * element_size(p.type));
    LinearCall call = call_of(p, part.panel_begin, part.panel_begin + panels);
    hold(rest, static_cast<int64_t>(scratch_of(call, {part.m_begin, part.m_end, 0, panels})));
    if (!p.half) continue;
    call.weight_type = ElementType::float16;
    hold(rest, static_cast<int64_t>(scratch_of(call, {part.m_begin, part.m_end, 0, panels})));
  }
  Workplace place;
  const int64_t all = align64(packed) + align64(fitted) + align64(turned) + rest;
  place.packed = static_cast<char*>(thread_scratch().take(static_cast<size_t>(all)));
  place.fitted = place.packed + align64(packed);
  place.turned = place.fitted + align64(fitted);
  place.rest = place.turned + align64(turned);
  return place;
}

void run(const Product& p) {
  if (p.batch == 0 || p.m == 0 || p.n == 0) return;
  const int64_t threads = threads_for(p.batch * p.m * p.n * p.k, kProductsWorthAThread);
  const Grid grid = choose_grid(p.m, p.panels(), (threads + p.batch - 1) / p.batch);
  auto work = [&](int64_t begin, int64_t end) {
    Workplace place = take_workplace(p, grid);
    for (int64_t task = begin; task < end; ++task) {
      compute(p, task / grid.size(), part_of(grid, task % grid.size(), p.m, p.panels()), place);
    }
  };
  shared_for(p.batch * grid.size(), p.m * p.n * p.k / grid.size(), kProductsWorthAThread, work);
}

// a [..., m, k], b [..., k, n], batch dimensions alike (expanded) -> y [..., m, n] = alpha * a . b + addend [..., m, n];
// float32 products from `parts` of bfloat16 where there are tiles.
Tensor batched_matmul(const Tensor& a, const Tensor& b, std::optional<Tensor> addend, double alpha, bool bfloat16,
                      bool bfloat16_out, int64_t parts) {
  const int64_t dims = a.dim();
  check_parts(parts, bfloat16);
  STD_TORCH_CHECK(dims >= 2 && b.dim() == dims, "a, b: not matrices, or of different numbers of dimensions");
  Product p;
  p.m = a.size(dims - 2);
  p.k = a.size(dims - 1);
  p.n = b.size(dims - 1);
  STD_TORCH_CHECK(b.size(dims - 2) == p.k, "b: other rows than a has columns");
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + 2 < dims; ++d) {
    STD_TORCH_CHECK(a.size(d) == b.size(d), "b: another batch size than a; expand it");
    sizes.push_back(a.size(d));
    p.batch *= a.size(d);
  }
  sizes.push_back(p.m);
  sizes.push_back(p.n);
  p.a = matrices(a, "a", false);
  p.b = matrices(b, "b", false);
  if (addend) {
    STD_TORCH_CHECK(addend->dim() == dims, "addend: not of the result's shape; expand it");
    for (int64_t d = 0; d < dims; ++d) {
      STD_TORCH_CHECK(addend->size(d) == sizes[static_cast<size_t>(d)], "addend: not of the result's shape; expand it");
    }
    p.addend = matrices(*addend, "addend", true);
  }
  p.alpha = static_cast<float>(alpha);
  p.type = bfloat16 ? ElementType::bfloat16 : ElementType::float32;
  if (table().linear_split && p.k > 0) p.parts = parts;  // without depth there is no tile
  p.y_type = bfloat16_out ? ElementType::bfloat16 : ElementType::float32;
  Tensor y = empty(sizes, scalar_type(p.y_type));
  p.y = y.data_ptr();
  fold(p);
  p.half = table().scaling.multiplies(ElementType::float16) && bfloat16 && p.m >= kLeastRowsOfHalf && p.k > 0;
  run(p);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def(
      "batched_matmul(Tensor a, Tensor b, Tensor? addend, float alpha, bool bfloat16, bool bfloat16_out, int parts=1) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("batched_matmul", TORCH_BOX(&batched_matmul)); }

}  // namespace slipstream
