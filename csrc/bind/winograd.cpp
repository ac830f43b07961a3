// SPDX-License-Identifier: Apache-2.0
// slipstream::pack_winograd and slipstream::winograd: 3 x 3 convolution of stride 1, channels last on both sides.
#include <atomic>
#include <cstring>
#include <optional>
#include <vector>

#include "../isa/level.h"
#include "element.h"
#include "scaled_operands.h"
#include "image_rows.h"
#include "partition.h"
#include "scratch.h"

namespace slipstream {
namespace {

// A run of panels would transform its tiles of x again.
constexpr LeastRun kLeastRun{12, INT64_MAX / 8};

// u [n][n] = G w G^T of one pair of channels.
template <int n>
void transform_weight(const double (&g)[n][3], const double (&w)[9], double* u) {
  for (int i = 0; i < n; ++i) {
    double row[3];
    for (int c = 0; c < 3; ++c) row[c] = g[i][0] * w[c] + g[i][1] * w[3 + c] + g[i][2] * w[6 + c];
    for (int j = 0; j < n; ++j) u[i * n + j] = row[0] * g[j][0] + row[1] * g[j][1] + row[2] * g[j][2];
  }
}

struct WeightSource {
  const void* data;
  ElementType type;
  int64_t out, in;
};

// One panel of output channels, all points.
void pack_panel(const WeightSource& weight, int64_t tile, int64_t panel, ElementType type, void* to) {
  const int64_t points = (tile + 2) * (tile + 2), size = panel_size(type, weight.in), first = panel * kPanelColumns;
  std::memset(to, 0, static_cast<size_t>(points * size * element_size(type)));
  const int64_t columns = weight.out - first < kPanelColumns ? weight.out - first : kPanelColumns;
  for (int64_t c = 0; c < weight.in; ++c) {
    for (int64_t o = 0; o < columns; ++o) {
      double w[9], u[36];
      for (int t = 0; t < 9; ++t) w[t] = to_float(weight.data, weight.type, ((first + o) * weight.in + c) * 9 + t);
      tile == 4 ? transform_weight(kWeightTransform4, w, u) : transform_weight(kWeightTransform2, w, u);
      for (int64_t point = 0; point < points; ++point) {
        const float value = static_cast<float>(u[point]);
        if (type == ElementType::float32) {
          static_cast<float*>(to)[point * size + c * kPanelColumns + o] = value;
        } else {
          static_cast<uint16_t*>(to)[point * size + (c / 2 * kPanelColumns + o) * 2 + c % 2] = to_bfloat16(value);
        }
      }
    }
  }
}

// All panels as `type`.
Tensor pack_as(const WeightSource& source, int64_t tile, ElementType type) {
  const int64_t panels = round_up(source.out, kPanelColumns) / kPanelColumns;
  const int64_t elements = (tile + 2) * (tile + 2) * panel_size(type, source.in);
  Tensor packed = empty({panels, elements}, scalar_type(type));
  char* to = static_cast<char*>(packed.data_ptr());
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      pack_panel(source, tile, panel, type, to + panel * elements * element_size(type));
    }
  });
  return packed;
}

// The same as the level's scaled type; nothing where a point of a panel does not fit.
std::optional<Tensor> pack_fitted(const WeightSource& source, int64_t tile, const Scaling& scaling) {
  const ElementType type = scaling.type;
  const int64_t panels = round_up(source.out, kPanelColumns) / kPanelColumns, points = (tile + 2) * (tile + 2);
  const int64_t from_size = panel_size(ElementType::float32, source.in), to_size = panel_size(type, source.in);
  Tensor packed = empty({panels, points * to_size}, scalar_type(type));
  uint16_t* to = static_cast<uint16_t*>(packed.data_ptr());
  std::atomic<bool> fits{true};
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    float* plain = static_cast<float*>(thread_scratch().take(static_cast<size_t>(points * from_size) * sizeof(float)));
    for (int64_t panel = begin; panel < end; ++panel) {
      pack_panel(source, tile, panel, ElementType::float32, plain);
      for (int64_t point = 0; point < points; ++point) {
        uint8_t* panel_of_point = reinterpret_cast<uint8_t*>(to + (panel * points + point) * to_size);
        if (!fit_packed_panel(scaling, plain + point * from_size, ElementType::float32, source.in, panel_of_point)) fits = false;
      }
    }
  });
  if (!fits) return std::nullopt;
  return packed;
}

// weight [out, in, 3, 3] float32 or bfloat16 -> [panel, elements of a panel]; layout: kernels/winograd_call.h. With scaled, instead
// of bfloat16 it becomes what the level multiplies scaled, where the weight fits; else bfloat16, whose digits do for tiles of 2, if the
// level multiplies that, or float32.
Tensor pack_winograd(const Tensor& weight_in, int64_t tile, bool bfloat16, bool scaled) {
  STD_TORCH_CHECK(weight_in.dim() == 4 && weight_in.size(2) == 3 && weight_in.size(3) == 3,
                  "weight: not of shape [out, in, 3, 3]");
  STD_TORCH_CHECK(tile == 2 || (tile == 4 && (scaled || !bfloat16)), "tile: 2, or 4 in float32 and scaled");
  const Tensor weight = torch::stable::contiguous(weight_in);
  const WeightSource source = {weight.data_ptr(), element_type(weight, "weight"), weight.size(0), weight.size(1)};
  if (!bfloat16) return pack_as(source, tile, ElementType::float32);
  if (!scaled || !table().winograd_scaling.fit_panel) return pack_as(source, tile, tile == 2 ? ElementType::bfloat16 : ElementType::float32);
  if (std::optional<Tensor> fitted = pack_fitted(source, tile, table().winograd_scaling)) return *fitted;
  return pack_as(source, tile, tile == 2 && table().multiplies_bfloat16 ? ElementType::bfloat16 : ElementType::float32);
}

// A scaled weight as float32, for a level that multiplies none such.
Tensor widen_weight(const Tensor& packed, ElementType type, int64_t points, int64_t in_channels) {
  const int64_t panels = packed.size(0), size = panel_size(ElementType::float32, in_channels);
  Tensor widened = empty({panels, points * size}, ScalarType::Float);
  float* to = static_cast<float*>(widened.data_ptr());
  for_each_widened(static_cast<const uint16_t*>(packed.data_ptr()), type, panels * points, in_channels,
                   [&](int64_t panel, int64_t i, float value) {
                     const int64_t channel = i / (2 * kPanelColumns) * 2 + i % 2, column = i / 2 % kPanelColumns;
                     if (channel < in_channels) to[panel * size + channel * kPanelColumns + column] = value;
                   });
  return widened;
}

WinogradCall call_for(const Tensor& x, const Tensor& packed, int64_t out_channels, int64_t tile, int64_t padding_height,
                      int64_t padding_width, Tensor& weight_holder) {
  WinogradCall call;
  call.x_type = channels_last(x, "x");
  call.x = x.data_ptr();
  call.weight_type = packed_type(packed);
  call.tile = tile;
  call.batch = x.size(0);
  call.in_channels = x.size(1);
  call.out_channels = out_channels;
  call.height = x.size(2);
  call.width = x.size(3);
  call.padding_height = padding_height;
  call.padding_width = padding_width;
  call.out_height = call.height + 2 * padding_height - 2;
  call.out_width = call.width + 2 * padding_width - 2;
  STD_TORCH_CHECK(tile == 2 || tile == 4, "tile: neither 2 nor 4");
  STD_TORCH_CHECK(padding_height >= 0 && padding_width >= 0, "padding: below 0");
  STD_TORCH_CHECK(call.out_height > 0 && call.out_width > 0, "x: smaller than the kernel");
  STD_TORCH_CHECK(packed.dim() == 2 && packed.is_contiguous() &&
                      packed.size(0) == round_up(out_channels, kPanelColumns) / kPanelColumns &&
                      packed.size(1) == call.points() * panel_size(call.weight_type, call.in_channels),
                  "packed: not packed for these sizes");
  weight_holder = packed;
  if (is_scaled(call.weight_type) && !table().winograd_scaling.multiplies(call.weight_type)) {
    weight_holder = widen_weight(packed, call.weight_type, call.points(), call.in_channels);
    call.weight_type = ElementType::float32;
  }
  call.weight = weight_holder.data_ptr();
  return call;
}

// A transformed value is a sum of up to four pixels, d0 - d2 of d0 - d2, or of up to 28 for tiles of 4.
int transform_bits(int64_t tile) { return tile == 4 ? 5 : 2; }
constexpr double kLargestRow = kPointA * kPointB2 + kPointB2 + kPointA + 1;  // the sum of magnitudes in a row of B
static_assert(kLargestRow * kLargestRow < 32, "");

void run_tiles(const WinogradCall& call) {
  const KernelTable& kernels = table();
  const int64_t tiles = call.tiles(), panels = round_up(call.out_channels, kPanelColumns) / kPanelColumns;
  const int64_t work = tiles * call.points() * call.in_channels * call.out_channels;
  for_parts(tiles, panels, work, kProductsWorthAThread, kLeastRun, [&](const LinearPart& part) {
    kernels.winograd(call, part, thread_scratch().take(kernels.winograd_scratch(call, part)));
  });
}

WinogradCall image_of(WinogradCall call, int64_t index) {
  const int64_t in = index * call.height * call.width * call.in_channels;
  const int64_t out = index * call.out_height * call.out_width * call.out_channels;
  call.batch = 1;
  call.x = static_cast<const char*>(call.x) + in * element_size(call.x_type);
  call.y = static_cast<char*>(call.y) + out * element_size(call.y_type);
  if (call.residual) call.residual = static_cast<const char*>(call.residual) + out * element_size(call.residual_type);
  return call;
}

std::atomic<int64_t> convolved_twice{0};

int64_t images_convolved_twice() { return convolved_twice.load(std::memory_order_relaxed); }

// Where weights are scaled all images are too; those that do not fit are computed again, by themselves, with widened weights.
void run(WinogradCall call) {
  if (!is_scaled(call.weight_type)) return run_tiles(call);
  std::vector<uint8_t> misfits(static_cast<size_t>(call.batch));
  std::unique_ptr<OperandScale[]> scales;
  if (call.weight_type == ElementType::int16) {
    call.misfits = misfits.data();  // what becomes integers is fitted tile by tile
  } else {
    const int64_t size = call.height * call.width * call.in_channels;
    scales = scale_images(table().winograd_scaling, call.x, call.x_type, call.batch, size, transform_bits(call.tile));
    for (size_t image = 0; image < misfits.size(); ++image) misfits[image] = scales[image].back == 0;
    call.scales = scales.get();
  }
  run_tiles(call);
  call.scales = nullptr;
  call.misfits = nullptr;
  for (int64_t image = 0; image < call.batch; ++image) {
    if (!misfits[static_cast<size_t>(image)]) continue;
    convolved_twice.fetch_add(1, std::memory_order_relaxed);
    run_tiles(image_of(call, image));
  }
}

// y [batch, out, oh, ow] = post_op(conv(x) + bias + residual); x, residual and y in memory format channels_last.
Tensor winograd(const Tensor& x, const Tensor& packed, int64_t out_channels, int64_t tile, int64_t padding_height,
                int64_t padding_width, std::optional<Tensor> bias, int64_t post_op, std::optional<Tensor> residual,
                bool bfloat16_out) {
  Tensor weight_holder;
  WinogradCall call = call_for(x, packed, out_channels, tile, padding_height, padding_width, weight_holder);
  STD_TORCH_CHECK(post_op >= 0 && post_op < kPostOpCount, "post_op: unknown code");
  call.post_op = static_cast<PostOp>(post_op);
  Tensor bias_holder;
  if (bias) {
    STD_TORCH_CHECK(bias->scalar_type() == ScalarType::Float && bias->dim() == 1 && bias->size(0) == out_channels,
                    "bias: not a float32 vector of output channels");
    bias_holder = torch::stable::contiguous(*bias);
    call.bias = static_cast<const float*>(bias_holder.data_ptr());
  }
  if (residual) {
    const Rows rows = residual_rows(*residual, call.batch, out_channels, call.out_height, call.out_width);
    call.residual = rows.data;
    call.residual_type = rows.type;
  }
  call.y_type = bfloat16_out ? ElementType::bfloat16 : ElementType::float32;
  const int64_t pixels = call.out_height * call.out_width;
  Tensor y = empty_strided({call.batch, out_channels, call.out_height, call.out_width},
                           {pixels * out_channels, 1, call.out_width * out_channels, out_channels}, scalar_type(call.y_type));
  call.y = y.data_ptr();
  if (call.batch > 0 && out_channels > 0) run(call);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(slipstream, library) {
  library.def("pack_winograd(Tensor weight, int tile, bool bfloat16, bool scaled=False) -> Tensor");
  library.def(
      "winograd(Tensor x, Tensor packed, int out_channels, int tile, int padding_height, int padding_width, Tensor? bias, "
      "int post_op, Tensor? residual, bool bfloat16_out) -> Tensor");
  library.def("images_convolved_twice() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CPU, library) {
  library.impl("pack_winograd", TORCH_BOX(&pack_winograd));
  library.impl("winograd", TORCH_BOX(&winograd));
}

STABLE_TORCH_LIBRARY_IMPL(slipstream, CompositeExplicitAutograd, library) {
  library.impl("images_convolved_twice", TORCH_BOX(&images_convolved_twice));
}

}  // namespace slipstream
