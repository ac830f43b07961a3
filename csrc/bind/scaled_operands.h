// SPDX-License-Identifier: Apache-2.0
// Operands as float16 or integers, where the level multiplies bfloat16 so (kernels/half_operands.h, kernels/int16_operands.h): packed
// panels, for it and for other levels, and the scales of images.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>

#include "../isa/level.h"
#include "element.h"
#include "scratch.h"
#include "tensor_rows.h"

namespace slipstream {

// Elements whose largest is found in the time that waking a thread takes, or longer where they come from memory.
constexpr int64_t kScannedByAThread = 1 << 17;

// Faint values are looked for in every fourth piece of an image.
constexpr int64_t kPiecesBetween = 4;

// Images too much of which is faint beside the largest do not fit where they become integers. What is passed: as below.
template <typename Runs>
void drop_faint(const Scaling& scaling, const void* x, ElementType type, int64_t count, int64_t pieces, int64_t size, const Runs& runs,
                const std::atomic<uint32_t>* largest, OperandScale* scales) {
  const int64_t looked_at = (pieces + kPiecesBetween - 1) / kPiecesBetween;
  auto balance = std::make_unique<std::atomic<int64_t>[]>(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) balance[i] = 0;
  torch::stable::parallel_for(0, count * looked_at, 1 + kScannedByAThread / (size + 1), [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t image = piece / looked_at;
      int64_t sum = 0;
      runs(image, piece % looked_at * kPiecesBetween,
           [&](int64_t first, int64_t last) { sum += scaling.faintness(x, type, first, last, largest[image]); });
      balance[image] += sum;
    }
  });
  for (int64_t i = 0; i < count; ++i) {
    if (balance[i] > 0) scales[i] = {0, 0};
  }
}

// The scales of `count` images of so many pieces of `size` elements each, whose values are added up by up to 2^bits of them before they
// are rounded; zeros for those that do not fit. runs(image, piece, take) calls take(first, last) for what lies side by side in x.
template <typename Runs>
std::unique_ptr<OperandScale[]> scale_pieces(const Scaling& scaling, const void* x, ElementType type, int64_t count, int64_t pieces,
                                             int64_t size, int bits, const Runs& runs) {
  auto largest = std::make_unique<std::atomic<uint32_t>[]>(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) largest[i] = 0;
  torch::stable::parallel_for(0, count * pieces, 1 + kScannedByAThread / (size + 1), [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      std::atomic<uint32_t>& of_image = largest[piece / pieces];
      uint32_t found = 0;
      runs(piece / pieces, piece % pieces,
           [&](int64_t first, int64_t last) { found = std::max(found, scaling.largest_magnitude(x, type, first, last)); });
      uint32_t before = of_image;
      while (before < found && !of_image.compare_exchange_weak(before, found)) {}
    }
  });
  auto scales = std::make_unique<OperandScale[]>(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits_of_largest = largest[i];
    const bool grows = bits_of_largest > 0 && bits_of_largest < 0x7f800000u;
    scales[i] = scaling.operand_scale(grows ? bits_of_largest + (static_cast<uint32_t>(bits) << 23) : bits_of_largest);
  }
  if (scaling.faintness) drop_faint(scaling, x, type, count, pieces, size, runs, largest.get(), scales.get());
  return scales;
}

// Of images of `size` neighbouring elements.
inline std::unique_ptr<OperandScale[]> scale_images(const Scaling& scaling, const void* x, ElementType type, int64_t count, int64_t size,
                                                    int bits) {
  constexpr int64_t kChunk = 1 << 16;  // elements that are read at a time
  const auto runs = [&](int64_t image, int64_t chunk, const auto& take) {
    const int64_t first = chunk * kChunk, last = first + kChunk < size ? first + kChunk : size;
    take(image * size + first, image * size + last);
  };
  return scale_pieces(scaling, x, type, count, (size + kChunk - 1) / kChunk, kChunk, bits, runs);
}

// A packed panel of depth k as one of the scaled type (kernels/linear.h). False where it does not fit.
inline bool fit_packed_panel(const Scaling& scaling, const void* panel, ElementType type, int64_t k, uint8_t* to) {
  const int64_t depth = packed_depth(scaling.type, k);
  return scaling.fit_panel(panel, type, k, to, reinterpret_cast<float*>(to + depth * kPanelColumns * 2));
}

// Scaled panels, for a level that multiplies no such: take(panel, element, value) has each number at its place in a panel of
// bfloat16.
template <typename Take>
void for_each_widened(const uint16_t* from, ElementType type, int64_t panels, int64_t k, const Take& take) {
  const bool integers = type == ElementType::int16;
  const int64_t size = panel_size(ElementType::bfloat16, k);
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const uint16_t* panel = from + p * panel_size(ElementType::float16, k);
      const float* back = reinterpret_cast<const float*>(panel + size);
      for (int64_t i = 0; i < size; ++i) {
        const float of_column = back[i / 2 % kPanelColumns];
        take(p, i, integers ? static_cast<float>(static_cast<int16_t>(panel[i])) * of_column
                            : half_to_float(panel[i]) * (of_column * std::ldexp(1.f, kHalfExponent / 2)));
      }
    }
  });
}

// A scaled weight as one of bfloat16.
inline void widen_packed(const uint16_t* from, ElementType type, int64_t n, int64_t k, uint16_t* to) {
  const int64_t panels = round_up(n, kPanelColumns) / kPanelColumns, size = panel_size(ElementType::bfloat16, k);
  for_each_widened(from, type, panels, k, [&](int64_t p, int64_t i, float value) { to[p * size + i] = to_bfloat16(value); });
}

// A weight of packed panels of depth k as the level multiplies it: itself, or widened, and then its type is another.
inline Tensor take_panels(const Tensor& packed, int64_t n, int64_t k, ElementType& type) {
  if (!is_scaled(type) || table().scaling.multiplies(type)) return packed;
  Tensor widened = empty({packed_size(ElementType::bfloat16, n, k)}, ScalarType::BFloat16);
  widen_packed(static_cast<const uint16_t*>(packed.data_ptr()), type, n, k, static_cast<uint16_t*>(widened.data_ptr()));
  type = ElementType::bfloat16;
  return widened;
}

// The weight of a call whose n, k and type of weight are set. The holder keeps it alive.
inline void take_weight(LinearCall& call, const Tensor& packed, Tensor& holder) {
  holder = take_panels(packed, call.n, call.k, call.weight_type);
  call.weight = holder.data_ptr();
}

}  // namespace slipstream
