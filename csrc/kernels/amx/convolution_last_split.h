// SPDX-License-Identifier: Apache-2.0
// Direct convolution, channels last, on tiles, for float32 weights in parts of bfloat16. Rows of x are copied in float32 and
// split into as many images as there are parts, in each of which tiles lie alike (kernels/convolution_last_image.h); products
// and the order of their sums are linear's. Needs kernels/amx/linear_split.h and kernels/amx/convolution_last.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

struct SplitPlan {
  LastImage image;
  LastScratch scratch;
  int64_t row_bytes;       // of one part of a row of pixels; the row itself, in float32, takes twice as much
  int64_t image_elements;  // from a part of the image to the next

  // A place's cache lines are copied once a part, and multiplied as often as there are products.
  SplitPlan(const ConvolutionLastCall& call, const LinearPart& part)
      : image(last_image<uint16_t>(call, part.m_end - part.m_begin, split_block_bytes() / call.linear.weight_parts,
                                   kTileLineProduct * products_of(call) / call.linear.weight_parts)) {
    const int64_t parts = call.linear.weight_parts;
    const int64_t depth_tiles = call.taps() / image.across * packed_depth(ElementType::bfloat16, image.depth) / kTileDepth;
    scratch = last_scratch<uint16_t>(call, image, kTileCut, (3 * kTileBlockRows + 2 * kTileRows) * kPanelColumns, depth_tiles);
    row_bytes = round_up(row_pixels(call, image) * call.in_channels * 2 + 64, 64);
    const int64_t one = scratch.sums - scratch.image, before = (2 + parts) * row_bytes - scratch.image;
    image_elements = one / 2;
    const LastScratch at = scratch;
    const int64_t more = before + (parts - 1) * one;
    scratch = {at.image + before, at.sums + more, at.stretches + more, at.products + more, at.bytes + more};
  }

  static int64_t products_of(const ConvolutionLastCall& call) {
    return kPartProductCount - first_product(call.linear.weight_parts);
  }
};

// `count` floats into their parts, which lie `apart` elements apart, by whole registers.
inline void split_floats(const float* from, int64_t count, int64_t parts, int64_t apart, uint16_t* to) {
  for (int64_t i = 0; i < count; i += kWidth) {
    Vec rest = load(from + i);
    for (int64_t part = 0; part < parts; ++part) {
      const VecU bits = take_part(rest, rest);
      *reinterpret_cast<VecHInMemory*>(to + part * apart + i) = narrowed(bits);
    }
  }
}

// copy_segment in parts. `memory` has room for a row of x in float32, and behind it for its parts.
inline void copy_segment_parts(const ConvolutionLastCall& call, const SplitPlan& plan, int64_t index, int64_t row, int64_t rows,
                               char* memory, uint16_t* to) {
  const LastImage& image = plan.image;
  const int64_t parts = call.linear.weight_parts, pixels = row_pixels(call, image);
  float* floats = reinterpret_cast<float*>(memory);
  uint16_t* split = reinterpret_cast<uint16_t*>(memory + 2 * plan.row_bytes);
  for_each_line(call, image, row, rows, [&](int64_t source, int64_t offset) {
    uint16_t* line = to + offset;
    if (source < 0) {
      for (int64_t part = 0; part < parts; ++part) {
        __builtin_memset(line + part * plan.image_elements, 0, static_cast<size_t>(image.line()) * 2);
      }
      return;
    }
    copy_pixels(call, index, source, -call.padding_width, pixels, call.in_channels, floats);
    if (image.windows) {
      split_floats(floats, pixels * call.in_channels, parts, plan.row_bytes / 2, split);
      for (int64_t part = 0; part < parts; ++part) {
        copy_all_windows(call, image, split + part * plan.row_bytes / 2, line + part * plan.image_elements);
      }
    } else {
      for (int64_t i = 0; i < pixels; ++i) {
        split_floats(floats + i * call.in_channels, call.in_channels, parts, plan.image_elements, line + i * image.place);
      }
    }
  });
}

// How the stretches of a block are multiplied.
struct SplitConvolution : SplitSums {
  const int64_t* offsets;          // of each tile's depth: find_tile_depth
  int64_t parts, image_elements, x_bytes;
};

// sums[stretches][16][32] of one pass: one stretch or two by a panel. Each sum's terms come in the same order either way.
template <int stretches>
inline void convolve_parts(const SplitConvolution& by, const Stretch<uint16_t>* x, const int64_t* offsets, const uint16_t* w,
                           int64_t tiles, int product, float* sums) {
  constexpr int64_t kSumsStride = kPanelColumns * 4, kWeightStride = kPanelColumns * 4;
  float* below = sums + kTileRows * kPanelColumns;
  tile_zero(0);
  tile_zero(1);
  if constexpr (stretches == 2) {
    tile_zero(2);
    tile_zero(3);
  }
  for (; product < kPartProductCount; ++product) {
    const int64_t part = kPartProducts[product].x * by.image_elements;
    const uint16_t* columns = w + kPartProducts[product].w * kPartElements;
    for (int64_t t = 0; t < tiles; ++t, columns += by.parts * kPartElements) {
      tile_load(4, x[0].x + part + offsets[t], by.x_bytes);
      tile_load(6, columns, kWeightStride);
      tile_dot_bf16(0, 4, 6);
      tile_load(7, columns + 32, kWeightStride);
      tile_dot_bf16(1, 4, 7);
      if constexpr (stretches == 2) {
        tile_load(5, x[1].x + part + offsets[t], by.x_bytes);
        tile_dot_bf16(2, 5, 6);
        tile_dot_bf16(3, 5, 7);
      }
    }
  }
  tile_store(0, sums, kSumsStride);
  tile_store(1, sums + 16, kSumsStride);
  if constexpr (stretches == 2) {
    tile_store(2, below, kSumsStride);
    tile_store(3, below + 16, kSumsStride);
  }
}

// sums [count][16][32] of stretches and one panel, by the products from `product` on.
inline void convolve_split_panel(const SplitConvolution& by, const Stretch<uint16_t>* stretches, int64_t count,
                                 const uint16_t* w, int product, float* sums) {
  for (int64_t t = 0; t < by.depth_tiles; t += kSplitPassTiles) {
    const int64_t* offsets = by.offsets + t;
    const uint16_t* columns = w + t * by.parts * kPartElements;
    int64_t s = 0;
    for (; s + 2 <= count; s += 2) {
      add_pass(by, t, 2, sums, s * kTileRows * kPanelColumns, [&](int64_t tiles, float* to) {
        convolve_parts<2>(by, stretches + s, offsets, columns, tiles, product, to);
      });
    }
    if (s == count) continue;
    add_pass(by, t, 1, sums, s * kTileRows * kPanelColumns, [&](int64_t tiles, float* to) {
      convolve_parts<1>(by, stretches + s, offsets, columns, tiles, product, to);
    });
  }
}

// Sums that are not finite, from the leading parts. What lies behind a stretch's outputs is nobody's.
inline void mend_stretches(const SplitConvolution& by, const Stretch<uint16_t>* stretches, int64_t count, const uint16_t* w,
                           float* sums, float* again) {
  constexpr int64_t kTileSums = kTileRows * kPanelColumns;
  bool all_finite = true;
  for (int64_t s = 0; s < count; ++s) all_finite = all_finite && are_finite(sums + s * kTileSums, stretches[s].count);
  if (all_finite) return;
  convolve_split_panel(by, stretches, count, w, kLeadingProduct, again);
  replace_not_finite(sums, again, count * kTileRows);
}

// A block against all panels of a part. `sums` has room for two of a block's.
inline void convolve_split_block(const ConvolutionLastCall& call, const LastImage& image, const SplitConvolution& by,
                                 const Stretch<uint16_t>* stretches, int64_t stretch_count, const LinearPart& part,
                                 float* sums) {
  const int first_of_all = first_product(by.parts);
  for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel) {
    const uint16_t* w = static_cast<const uint16_t*>(call.linear.weight) + panel * call.panel_elements();
    for (int64_t first = 0; first < stretch_count; first += kTileStretches) {
      const int64_t count = stretch_count - first < kTileStretches ? stretch_count - first : kTileStretches;
      convolve_split_panel(by, stretches + first, count, w, first_of_all, sums);
      mend_stretches(by, stretches + first, count, w, sums, sums + kTileBlockRows * kPanelColumns);
      for (int64_t s = 0; s < count; ++s) {
        finish_stretch(call, image, stretches[first + s], sums + s * kTileRows * kPanelColumns, panel);
      }
    }
  }
}

inline size_t amx_convolution_last_split_scratch(const ConvolutionLastCall& call, const LinearPart& part) {
  return static_cast<size_t>(SplitPlan(call, part).scratch.bytes);
}

inline void amx_convolution_last_split(const ConvolutionLastCall& call, const LinearPart& part, void* scratch) {
  const SplitPlan plan(call, part);
  char* memory = static_cast<char*>(scratch);
  float *sums = reinterpret_cast<float*>(memory + plan.scratch.sums), *group = sums + 2 * kTileBlockRows * kPanelColumns;
  int64_t* offsets = reinterpret_cast<int64_t*>(memory + plan.scratch.products);
  const int64_t depth_tiles = find_tile_depth(call, plan.image, offsets), x_bytes = plan.image.position * 2;
  for_each_copied_block<uint16_t>(
      call, plan.image, plan.scratch, kTileCut, part.m_begin, part.m_end, scratch,
      [&](int64_t index, int64_t row, int64_t rows, uint16_t* to) {
        copy_segment_parts(call, plan, index, row, rows, memory, to);
      },
      [&](const Stretch<uint16_t>* stretches, int64_t count) {
        int64_t most = 0;
        for (int64_t s = 0; s < count; ++s) most = stretches[s].count > most ? stretches[s].count : most;
        const SplitSums by_passes{depth_tiles, most, group + kTileBlockRows * kPanelColumns, group};
        const SplitConvolution by{by_passes, offsets, call.linear.weight_parts, plan.image_elements, x_bytes};
        open_tiles(static_cast<int>(most));
        convolve_split_block(call, plan.image, by, stretches, count, part, sums);
        close_tiles();
      });
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
