// SPDX-License-Identifier: Apache-2.0
// Operands of one call as float16, where the level multiplies bfloat16 so (kernels/half_operands.h): panels converted once for all
// threads, and the scales of images.
#pragma once

#include <atomic>
#include <memory>

#include "../isa/level.h"
#include "element.h"
#include "scratch.h"
#include "tensor_rows.h"

namespace slipstream {

// Scratch memory of a call, beside that of its threads.
inline Scratch& call_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

// Panels in float16, and what their columns' products are put back by: [panel][32]. Null where a panel does not fit. Valid until the
// thread's next call.
struct HalfPanels {
  const void* weight = nullptr;
  const float* back = nullptr;
};

// `panels` panels of bfloat16, each `steps` steps of two deep.
inline HalfPanels fit_panels(const void* packed, int64_t panels, int64_t steps) {
  const int64_t panel_bytes = steps * kPanelColumns * 4, all_bytes = panels * panel_bytes;
  uint8_t* memory = static_cast<uint8_t*>(call_scratch().take(static_cast<size_t>(all_bytes + panels * kPanelColumns * 4)));
  float* back = reinterpret_cast<float*>(memory + all_bytes);
  const auto fit_panel = table().fit_panel;
  std::atomic<bool> fits{true};
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const uint8_t* panel = static_cast<const uint8_t*>(packed) + p * panel_bytes;
      if (!fit_panel(panel, steps, memory + p * panel_bytes, back + p * kPanelColumns)) fits = false;
    }
  });
  if (!fits) return {};
  return {memory, back};
}

// The scales of `count` images of so many pieces each, whose values are added up by up to 2^bits of them before they are rounded;
// zeros for those that do not fit. magnitude_of(image, piece): the largest, as bits.
template <typename MagnitudeOf>
std::unique_ptr<HalfScale[]> scale_pieces(int64_t count, int64_t pieces, int bits, const MagnitudeOf& magnitude_of) {
  auto largest = std::make_unique<std::atomic<uint32_t>[]>(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) largest[i] = 0;
  torch::stable::parallel_for(0, count * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      std::atomic<uint32_t>& of_image = largest[piece / pieces];
      const uint32_t found = magnitude_of(piece / pieces, piece % pieces);
      uint32_t before = of_image;
      while (before < found && !of_image.compare_exchange_weak(before, found)) {}
    }
  });
  auto scales = std::make_unique<HalfScale[]>(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits_of_largest = largest[i];
    const bool grows = bits_of_largest > 0 && bits_of_largest < 0x7f800000u;
    scales[i] = table().half_scale(grows ? bits_of_largest + (static_cast<uint32_t>(bits) << 23) : bits_of_largest);
  }
  return scales;
}

// Of images of `size` neighbouring elements.
inline std::unique_ptr<HalfScale[]> scale_images(const void* x, ElementType type, int64_t count, int64_t size, int bits) {
  constexpr int64_t kChunk = 1 << 16;  // elements that are read at a time
  const auto largest_magnitude = table().largest_magnitude;
  return scale_pieces(count, (size + kChunk - 1) / kChunk, bits, [&](int64_t image, int64_t chunk) {
    const int64_t first = chunk * kChunk, last = first + kChunk < size ? first + kChunk : size;
    return largest_magnitude(x, type, image * size + first, image * size + last);
  });
}

// A packed panel of depth k as one of float16 (kernels/linear.h). False where it does not fit.
inline bool fit_packed_panel(const void* panel, ElementType type, int64_t k, uint8_t* to) {
  const int64_t depth = packed_depth(ElementType::float16, k);
  float* back = reinterpret_cast<float*>(to + depth * kPanelColumns * 2);
  if (type == ElementType::bfloat16) return table().fit_panel(static_cast<const uint8_t*>(panel), depth / 2, to, back);
  return table().fit_panel_of_floats(static_cast<const float*>(panel), k, to, back);
}

// A weight packed as float16 as one of bfloat16, for a level that does not multiply float16.
inline void widen_packed(const uint16_t* from, int64_t n, int64_t k, uint16_t* to) {
  const int64_t panels = round_up(n, kPanelColumns) / kPanelColumns, size = panel_size(ElementType::bfloat16, k);
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const uint16_t* panel = from + p * panel_size(ElementType::float16, k);
      const float* back = reinterpret_cast<const float*>(panel + size);
      for (int64_t i = 0; i < size; ++i) {
        const float column = back[i / 2 % kPanelColumns] * std::ldexp(1.f, kHalfExponent / 2);
        to[p * size + i] = to_bfloat16(half_to_float(panel[i]) * column);
      }
    }
  });
}

// The weight of a call whose n, k and type of weight are set, as the level multiplies it. The holder keeps it alive.
inline void take_weight(LinearCall& call, const Tensor& packed, Tensor& holder) {
  holder = packed;
  if (call.weight_type == ElementType::float16 && !table().fit_panel) {
    holder = empty({packed_size(ElementType::bfloat16, call.n, call.k)}, ScalarType::BFloat16);
    widen_packed(static_cast<const uint16_t*>(packed.data_ptr()), call.n, call.k, static_cast<uint16_t*>(holder.data_ptr()));
    call.weight_type = ElementType::bfloat16;
  }
  call.weight = holder.data_ptr();
}

}  // namespace slipstream
