// SPDX-License-Identifier: Apache-2.0
// slipstream::recurrent: LSTM, GRU and RNN layers over whole sequences. Per layer and direction the inputs of many steps go
// through one linear; each step then is a linear of the hidden state and the update of the cell. Threads share the directions and
// the units of a direction; see turns.h.
#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>

#include "../isa/level.h"
#include "scaled_operands.h"
#include "run_linear.h"
#include "scratch.h"
#include "tensor_rows.h"
#include "turns.h"

namespace slipstream {
namespace {

// Multiplications of a step below which another thread costs more than it brings: two meetings a step, half a microsecond each.
constexpr int64_t kWorthAThread = 100'000;

// Floats of projected input that are made at a time for a direction: 4 MiB, which stay in a last-level cache.
constexpr int64_t kProjectedFloats = 1 << 20;

struct Shape {
  CellKind kind;
  int64_t input, units, projection, layers, directions;
  int64_t outputs() const { return projection ? projection : units; }
  int64_t inputs_of(int64_t layer) const { return layer ? directions * outputs() : input; }
  int64_t columns() const { return gate_columns(kind, units); }
  int64_t stride() const { return unit_blocks(units) * kBlockUnits; }  // of the states, in floats
};

// Which rows of x are a step's: [first, first + rows), never more than the step before has.
struct Schedule {
  std::vector<int64_t> rows, first;
  int64_t batch = 0, total = 0;
  int64_t steps() const { return static_cast<int64_t>(rows.size()); }
  void add(int64_t count) {
    rows.push_back(count);
    first.push_back(total);
    total += count;
  }
};

// The weights of one direction of one layer, in the order in which they are packed one behind the other.
struct Weights {
  const void *input = nullptr, *hidden = nullptr, *projection = nullptr;
  const float *bias = nullptr, *new_bias = nullptr;
};

// One direction of one layer on its way through the steps.
struct Direction {
  const Shape* shape;
  const Schedule* schedule;
  Weights weights;
  ElementType weight_type;
  bool backward;
  int64_t parts;                       // into which the threads split its units
  float *h[2], *c, *from_hidden, *unprojected, *from_input;
  void* y;                             // [total, y_stride], from this direction's column on
  int64_t y_stride;
  ElementType y_type;
  int64_t x_columns;
  int64_t projected_first = 0;         // the row of x that from_input begins with

  int64_t step_at(int64_t turn) const { return backward ? schedule->steps() - 1 - turn : turn; }

  LinearCall linear_call(const void* weight, int64_t n, int64_t k, int64_t m, Rows x, float* to, int64_t to_stride) const {
    LinearCall call;
    call.m = m, call.n = n, call.k = k;
    call.x = x;
    call.weight = weight;
    call.weight_type = weight_type;
    call.y = to;
    call.y_stride = to_stride;
    return call;
  }

  LinearCall hidden_call(int64_t turn) const {
    return linear_call(weights.hidden, shape->columns(), shape->outputs(), schedule->rows[step_at(turn)],
                       {h[turn % 2], shape->stride(), ElementType::float32}, from_hidden, shape->columns());
  }

  LinearCall projection_call(int64_t turn) const {
    return linear_call(weights.projection, shape->projection, shape->units, schedule->rows[step_at(turn)],
                       {unprojected, shape->stride(), ElementType::float32}, h[(turn + 1) % 2], shape->stride());
  }

  // The inputs of turns [begin, end): from_input = x W^T + bias, its first row that of the earliest step.
  void project_input(const Rows& x, int64_t begin, int64_t end) {
    const int64_t early = std::min(step_at(begin), step_at(end - 1)), late = std::max(step_at(begin), step_at(end - 1));
    const int64_t first = schedule->first[early], rows = schedule->first[late] + schedule->rows[late] - first;
    Rows from = x;
    from.data = static_cast<const char*>(x.data) + first * x.stride * element_size(x.type);
    LinearCall call = linear_call(weights.input, shape->columns(), x_columns, rows, from, from_input, shape->columns());
    call.bias = weights.bias;
    run_linear(call);
    projected_first = first;
  }

  void update(const KernelTable& kernels, int64_t turn, int64_t part, void* scratch) const {
    const int64_t step = step_at(turn), blocks = unit_blocks(shape->units), gates = gates_of(shape->kind);
    const int64_t begin = blocks * part / parts, end = blocks * (part + 1) / parts;
    const LinearCall product = hidden_call(turn);
    kernels.linear(product, {0, product.m, begin * gates, end * gates}, scratch);
    CellCall cell;
    cell.kind = shape->kind;
    cell.rows = product.m;
    cell.units = shape->units;
    cell.from_input = from_input + (schedule->first[step] - projected_first) * shape->columns();
    cell.from_hidden = from_hidden;
    cell.new_bias = weights.new_bias;
    cell.h = h[turn % 2];
    cell.h_next = shape->projection ? unprojected : h[(turn + 1) % 2];
    cell.c = c;
    cell.state_stride = shape->stride();
    if (!shape->projection) cell.y = output(step);
    cell.y_stride = y_stride;
    cell.y_type = y_type;
    kernels.recurrent_cell(cell, begin, end);
  }

  void project_output(const KernelTable& kernels, int64_t turn, int64_t part, void* scratch) const {
    const int64_t step = step_at(turn), panels = unit_blocks(shape->projection);
    const int64_t begin = panels * part / parts, end = panels * (part + 1) / parts;
    const LinearCall product = projection_call(turn);
    kernels.linear(product, {0, product.m, begin, end}, scratch);
    const int64_t from = begin * kPanelColumns, to = std::min(end * kPanelColumns, shape->projection);
    for (int64_t row = 0; row < product.m && from < to; ++row) {
      kernels.activation(h[(turn + 1) % 2] + row * shape->stride(), ElementType::float32,
                         static_cast<char*>(output(step)) + row * y_stride * element_size(y_type), y_type, from, to, PostOp::none);
    }
  }

  void* output(int64_t step) const {
    return static_cast<char*>(y) + schedule->first[step] * y_stride * element_size(y_type);
  }

  size_t scratch_bytes(const KernelTable& kernels) const {
    size_t bytes = 0;
    for (int64_t turn = 0; turn < schedule->steps(); ++turn) {
      const int64_t rows = schedule->rows[step_at(turn)];
      bytes = std::max(bytes, kernels.linear_scratch(hidden_call(turn), {0, rows, 0, 1}));
      if (shape->projection) bytes = std::max(bytes, kernels.linear_scratch(projection_call(turn), {0, rows, 0, 1}));
    }
    return bytes;
  }

  // Where the hidden state of a sequence is after its last step.
  const float* final_h(int64_t sequence) const {
    int64_t turns = schedule->steps();
    if (!backward) turns = std::count_if(schedule->rows.begin(), schedule->rows.end(), [&](int64_t n) { return n > sequence; });
    return h[turns % 2] + sequence * shape->stride();
  }
};

// How many turns from `begin` on have their inputs projected at once.
int64_t turns_together(const Shape& shape, const Schedule& schedule, int64_t begin) {
  const int64_t rows = std::max<int64_t>(1, schedule.batch);
  return std::min(schedule.steps() - begin, std::max<int64_t>(1, kProjectedFloats / (rows * shape.columns())));
}

void run_layer(std::vector<Direction>& directions, const Shape& shape, const Schedule& schedule, const Rows& x) {
  const KernelTable& kernels = table();
  const size_t bytes = directions[0].scratch_bytes(kernels);
  const int64_t parts = directions[0].parts, phases = shape.projection ? 2 : 1;
  for (int64_t begin = 0; begin < schedule.steps();) {
    const int64_t turns = turns_together(shape, schedule, begin);
    for (Direction& direction : directions) direction.project_input(x, begin, begin + turns);
    std::vector<std::unique_ptr<Turns>> meetings;
    for (size_t d = 0; d < directions.size(); ++d) meetings.push_back(std::make_unique<Turns>(parts));
    auto take_parts = [&](int64_t first, int64_t last) {
      void* scratch = thread_scratch().take(bytes);
      for (int64_t task = first; task < last; ++task) {
        const Direction& direction = directions[static_cast<size_t>(task / parts)];
        meetings[static_cast<size_t>(task / parts)]->take_part(turns * phases, task % parts, [&](int64_t round, int64_t part) {
          const int64_t turn = begin + round / phases;
          round % phases ? direction.project_output(kernels, turn, part, scratch) : direction.update(kernels, turn, part, scratch);
        });
      }
    };
    const int64_t tasks = static_cast<int64_t>(directions.size()) * parts;
    tasks == 1 ? take_parts(0, 1) : torch::stable::parallel_for(0, tasks, 1, take_parts);
    begin += turns;
  }
}

int64_t parts_for(const Shape& shape, const Schedule& schedule) {
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads()) / shape.directions;
  const int64_t work = schedule.batch * shape.columns() * shape.outputs() / kWorthAThread + 1;
  return std::max<int64_t>(1, std::min({threads, work, unit_blocks(shape.units)}));
}

void convert(const void* from, ElementType from_type, void* to, ElementType to_type, int64_t count) {
  table().activation(from, from_type, to, to_type, 0, count, PostOp::none);
}

// Rows [batch, columns] of a state between its tensor and the rows of a buffer.
struct State {
  Tensor holder;
  Rows rows;
  State(const std::optional<Tensor>& given, const char* argument, const Shape& shape, int64_t batch, int64_t columns) {
    if (!given) return;
    STD_TORCH_CHECK(given->dim() == 3 && given->size(0) == shape.layers * shape.directions && given->size(1) == batch &&
                        given->size(2) == columns,
                    argument, ": not of shape [layers * directions, batch, ", columns, "]");
    holder = torch::stable::contiguous(*given);
    rows = {holder.data_ptr(), columns, element_type(holder, argument)};
  }
  void copy_to(float* to, int64_t stride, int64_t index, int64_t batch) const {
    if (!rows.data) return;
    for (int64_t b = 0; b < batch; ++b) {
      const void* from =
          static_cast<const char*>(rows.data) + (index * batch + b) * rows.stride * element_size(rows.type);
      convert(from, rows.type, to + b * stride, ElementType::float32, rows.stride);
    }
  }
};

// What all layers use one after the other.
struct Buffers {
  Tensor floats;
  Buffers(const Shape& shape, const Schedule& schedule) {
    const int64_t rows = schedule.batch;
    state = rows * shape.stride();
    hidden = rows * shape.columns();
    input = shape.columns() * std::min(schedule.total, turns_together(shape, schedule, 0) * rows);
    floats = empty({shape.directions * (4 * state + hidden + input)}, ScalarType::Float);
  }
  int64_t state, hidden, input;
  void give_to(Direction& direction, int64_t index) {
    float* at = static_cast<float*>(floats.data_ptr()) + index * (4 * state + hidden + input);
    std::fill(at, at + 4 * state, 0.f);
    direction.h[0] = at;
    direction.h[1] = at + state;
    direction.c = at + 2 * state;
    direction.unprojected = at + 3 * state;
    direction.from_hidden = at + 4 * state;
    direction.from_input = direction.from_hidden + hidden;
  }
};

// Walks over the packed weights and biases, direction by direction.
struct WeightReader {
  const char* weights;
  const float* biases;
  ElementType type;
  Weights next(const Shape& shape, int64_t inputs) {
    Weights result;
    auto take = [&](int64_t n, int64_t k) {
      const void* at = weights;
      weights += packed_size(type, n, k) * element_size(type);
      return at;
    };
    result.input = take(shape.columns(), inputs);
    result.hidden = take(shape.columns(), shape.outputs());
    if (shape.projection) result.projection = take(shape.projection, shape.units);
    result.bias = biases;
    biases += shape.columns();
    if (shape.kind == CellKind::gru) {
      result.new_bias = biases;
      biases += shape.stride();
    }
    return result;
  }
};

Shape as_shape(int64_t kind, const std::vector<int64_t>& sizes) {
  STD_TORCH_CHECK(kind >= 0 && kind < kCellKindCount, "kind: unknown code");
  STD_TORCH_CHECK(sizes.size() == 5 && sizes[0] >= 0 && sizes[1] >= 1 && sizes[2] >= 0 && sizes[3] >= 1 &&
                      (sizes[4] == 1 || sizes[4] == 2),
                  "sizes: not input, hidden, projection, layers, directions");
  return {static_cast<CellKind>(kind), sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
}

Schedule as_schedule(const Tensor& x, const std::vector<int64_t>& batch_sizes, const Shape& shape) {
  const int64_t dims = x.dim();
  STD_TORCH_CHECK(dims == (batch_sizes.empty() ? 3 : 2) && x.size(dims - 1) == shape.input,
                  "x: not of shape [time, batch, input], or [rows, input] with batch_sizes");
  Schedule schedule;
  if (batch_sizes.empty()) {
    schedule.batch = x.size(1);
    for (int64_t t = 0; t < x.size(0); ++t) schedule.add(schedule.batch);
  }
  for (size_t t = 0; t < batch_sizes.size(); ++t) {
    STD_TORCH_CHECK(batch_sizes[t] >= 1 && (t == 0 || batch_sizes[t] <= batch_sizes[t - 1]), "batch_sizes: not falling");
    schedule.add(batch_sizes[t]);
    schedule.batch = batch_sizes[0];
  }
  STD_TORCH_CHECK(batch_sizes.empty() || schedule.total == x.size(0), "batch_sizes: their sum is not the number of rows of x");
  return schedule;
}

// Calls visit(n, k) for each of the packed weights [n, k], as they lie one behind the other.
template <typename Visit>
void for_each_weight(const Shape& shape, const Visit& visit) {
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    for (int64_t direction = 0; direction < shape.directions; ++direction) {
      visit(shape.columns(), shape.inputs_of(layer));
      visit(shape.columns(), shape.outputs());
      if (shape.projection) visit(shape.projection, shape.units);
    }
  }
}

// Scaled weights as bfloat16, for a level that does not multiply them.
Tensor widen_weights(const Tensor& weights, ElementType type, const Shape& shape) {
  int64_t elements = 0;
  for_each_weight(shape, [&](int64_t n, int64_t k) { elements += packed_size(ElementType::bfloat16, n, k); });
  Tensor widened = empty({elements}, ScalarType::BFloat16);
  const uint16_t* from = static_cast<const uint16_t*>(weights.data_ptr());
  uint16_t* to = static_cast<uint16_t*>(widened.data_ptr());
  for_each_weight(shape, [&](int64_t n, int64_t k) {
    widen_packed(from, type, n, k, to);
    from += packed_size(type, n, k);
    to += packed_size(ElementType::bfloat16, n, k);
  });
  return widened;
}

void check_sizes(const Tensor& weights, const Tensor& biases, const Shape& shape, ElementType type) {
  int64_t expected = 0;
  for_each_weight(shape, [&](int64_t n, int64_t k) { expected += packed_size(type, n, k); });
  STD_TORCH_CHECK(weights.dim() == 1 && weights.is_contiguous() && weights.numel() == expected,
                  "weights: not packed for these sizes");
  const int64_t columns = shape.columns() + (shape.kind == CellKind::gru ? shape.stride() : 0);
  STD_TORCH_CHECK(biases.scalar_type() == ScalarType::Float && biases.dim() == 1 && biases.is_contiguous() &&
                      biases.numel() == shape.layers * shape.directions * columns,
                  "biases: not packed for these sizes");
}

// x [time, batch, input], or [rows, input] with batch_sizes; sizes: input, hidden, projection (0: none), layers, directions
// -> y [time, batch, directions * outputs] (or [rows, ...]), h [layers * directions, batch, outputs], c likewise (LSTM; else empty)
std::tuple<Tensor, Tensor, Tensor> recurrent(const Tensor& x_in, const Tensor& weights_in, const Tensor& biases,
                                             std::optional<Tensor> h0, std::optional<Tensor> c0,
                                             std::vector<int64_t> batch_sizes, int64_t kind, std::vector<int64_t> sizes,
                                             bool bfloat16_out) {
  const Shape shape = as_shape(kind, sizes);
  const Schedule schedule = as_schedule(x_in, batch_sizes, shape);
  const ElementType given_type = packed_type(weights_in);
  check_sizes(weights_in, biases, shape, given_type);
  const bool widens = is_scaled(given_type) && !table().scaling.multiplies(given_type);
  const Tensor weights = widens ? widen_weights(weights_in, given_type, shape) : weights_in;
  const ElementType weight_type = packed_type(weights);
  const ElementType between_layers = weight_type == ElementType::float32 ? ElementType::float32 : ElementType::bfloat16;
  const ElementType out_type = bfloat16_out ? ElementType::bfloat16 : ElementType::float32;
  const int64_t batch = schedule.batch, outputs = shape.outputs(), width = shape.directions * outputs;
  const bool has_cell = shape.kind == CellKind::lstm;
  const State h_given(h0, "h0", shape, batch, outputs), c_given(has_cell ? c0 : std::nullopt, "c0", shape, batch, shape.units);
  Tensor h_last = empty({shape.layers * shape.directions, batch, outputs}, scalar_type(out_type));
  Tensor c_last = empty({has_cell ? shape.layers * shape.directions : 0, batch, shape.units}, scalar_type(out_type));

  Buffers buffers(shape, schedule);
  WeightReader reader{static_cast<const char*>(weights.data_ptr()), static_cast<const float*>(biases.data_ptr()), weight_type};
  Tensor x = x_in, y, holder;
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    const ElementType y_type = layer + 1 < shape.layers ? between_layers : out_type;
    y = batch_sizes.empty() ? empty({schedule.steps(), batch, width}, scalar_type(y_type))
                            : empty({schedule.total, width}, scalar_type(y_type));
    int64_t rows = 0;
    const Rows x_rows = as_rows(x, "x", holder, rows);
    std::vector<Direction> directions(static_cast<size_t>(shape.directions));
    for (int64_t d = 0; d < shape.directions; ++d) {
      Direction& direction = directions[static_cast<size_t>(d)];
      direction.shape = &shape;
      direction.schedule = &schedule;
      direction.weights = reader.next(shape, shape.inputs_of(layer));
      direction.weight_type = weight_type;
      direction.backward = d == 1;
      direction.parts = parts_for(shape, schedule);
      direction.x_columns = shape.inputs_of(layer);
      direction.y = static_cast<char*>(y.data_ptr()) + d * outputs * element_size(y_type);
      direction.y_stride = width;
      direction.y_type = y_type;
      buffers.give_to(direction, d);
      const int64_t index = layer * shape.directions + d;
      h_given.copy_to(direction.h[0], shape.stride(), index, batch);
      h_given.copy_to(direction.h[1], shape.stride(), index, batch);
      c_given.copy_to(direction.c, shape.stride(), index, batch);
    }
    if (batch > 0) run_layer(directions, shape, schedule, x_rows);
    for (int64_t d = 0; d < shape.directions; ++d) {
      const Direction& direction = directions[static_cast<size_t>(d)];
      for (int64_t b = 0; b < batch; ++b) {
        const int64_t row = (layer * shape.directions + d) * batch + b;
        convert(direction.final_h(b), ElementType::float32,
                static_cast<char*>(h_last.data_ptr()) + row * outputs * element_size(out_type), out_type, outputs);
        if (!has_cell) continue;
        convert(direction.c + b * shape.stride(), ElementType::float32,
                static_cast<char*>(c_last.data_ptr()) + row * shape.units * element_size(out_type), out_type, shape.units);
      }
    }
    x = y;
  }
  return {y, h_last, c_last};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def(
      "recurrent(Tensor x, Tensor weights, Tensor biases, Tensor? h0, Tensor? c0, int[] batch_sizes, int kind, int[] sizes, "
      "bool bfloat16_out) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) { library.impl("recurrent", TORCH_BOX(&recurrent)); }

}  // namespace slipstream
