// SPDX-License-Identifier: Apache-2.0
// How a direct convolution with channels last finds the rows of its products in memory without an im2col buffer: some rows of
// x are copied into scratch memory, zero-padded and in the type that is multiplied, as lines of places.
//   pixels   a place is a pixel. An output and a tap are one place; neighbouring outputs are `stride_width` places
//            apart. Outputs are computed along the padded width, and what falls between rows of y is dropped.
//   windows  a place is all that an output sees of a row: a row of the kernel times the channels, zeros behind them
//            up to a whole depth of products. Nothing is dropped, few channels fill the depth, but a pixel is copied several
//            times.
// With strides, lines are sorted by their remainder. Either way outputs that follow each other, from one row of y to the
// next, lie at one stride, as strips and tiles want their rows. Needs kernels/post_op.h and kernels/linear_finish.h.

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

struct LastImage {
  bool windows;
  int64_t across, step;  // taps of a row of the kernel that a place holds; pixels from a place to the next
  int64_t depth;         // elements of a place that are multiplied
  int64_t place;         // elements from a place to the next
  int64_t places;        // in a line
  int64_t position;      // elements from an output to the next
  int64_t positions;     // outputs along a line, those to drop included
  int64_t phases, lines;  // remainders of lines that the kernel reaches; lines of each
  int64_t rows;          // of y, at most, from one image: a segment
  int64_t segments;      // at most, in a block

  int64_t line() const { return places * place; }
  int64_t segment() const { return phases * lines * line(); }
};

// Elements of a row of x that a line's places are copied from.
inline int64_t row_pixels(const ConvolutionLastCall& call, const LastImage& image) {
  return (image.places - 1) * image.step + (image.windows ? call.reach_width() : 0) + 1;
}

// Whether windows cost less for a row of y. `product` is what it costs to multiply a cache line of an output's place by a
// panel, in units of copying that line.
inline bool windows_pay(const ConvolutionLastCall& call, int64_t positions, int64_t product) {
  if (call.linear.weight_type != ElementType::float32 && call.in_channels % kPackedDepth) return true;
  const int64_t panels = (call.linear.n + kPanelColumns - 1) / kPanelColumns, products = call.taps() * panels * product;
  const int64_t windows = call.out_width * (products + call.stride_height * call.kernel_width);
  return windows <= positions * (products + call.stride_height * call.stride_width);
}

// For a part of `part_rows` rows of y, in blocks of about `bytes`.
template <typename X>
LastImage last_image(const ConvolutionLastCall& call, int64_t part_rows, int64_t bytes, int64_t product) {
  constexpr int64_t line = 64 / sizeof(X);
  LastImage image;
  image.positions = call.out_width + call.reach_width() / call.stride_width;
  image.windows = windows_pay(call, image.positions, product);
  if (image.windows) image.positions = call.out_width;
  image.across = image.windows ? call.kernel_width : 1;
  image.step = image.windows ? call.stride_width : 1;
  image.depth = image.across * call.in_channels;
  // An odd number of cache lines: see x_stride_of in kernels/linear_vector.h. One more where taps are copied one by one.
  const int64_t lines = (image.depth + line - 1) / line + (image.across > 1 && call.dilation_width > 1 ? 1 : 0);
  image.place = (lines | 1) * line;
  image.places = image.windows ? image.positions : image.positions * call.stride_width;
  image.position = image.windows ? image.place : image.place * call.stride_width;
  image.phases = call.stride_height < call.reach_height() + 1 ? call.stride_height : call.reach_height() + 1;
  const int64_t more = call.reach_height() / call.stride_height;
  int64_t rows = bytes / (image.phases * image.line() * static_cast<int64_t>(sizeof(X))) - more;
  rows = rows < 1 ? 1 : rows < call.out_height ? rows : call.out_height;
  const int64_t shares = (call.out_height + rows - 1) / rows;
  rows = (call.out_height + shares - 1) / shares;
  image.rows = rows < part_rows ? rows : part_rows;
  image.lines = image.rows + more;
  const int64_t most = bytes / (image.segment() * static_cast<int64_t>(sizeof(X)));
  const int64_t wanted = (part_rows + image.rows - 1) / image.rows;
  image.segments = image.rows < call.out_height || most < 1 ? 1 : most < wanted ? most : wanted;
  return image;
}

// Elements from a place to what a tap multiplies, for the first of the taps that a place holds.
inline int64_t tap_offset(const ConvolutionLastCall& call, const LastImage& image, int64_t row, int64_t column) {
  const int64_t down = row * call.dilation_height;
  const int64_t line = down % call.stride_height * image.lines + down / call.stride_height;
  return line * image.line() + (image.windows ? 0 : column * call.dilation_width * image.place);
}

template <typename To>
SLIPSTREAM_INLINE void convert(const void* from, ElementType type, int64_t index, int64_t count, float scale, To* to) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, scaled_into<To>(load_element(from, type, index + i), scale));
  if (i < count) store_first(to + i, count - i, scaled_into<To>(load_element_partly(from, type, index + i, count - i), scale));
}

// Lanes [begin, begin + kWidth) of three registers as they lie interleaved: abcabc.
template <int begin, int... lane>
SLIPSTREAM_INLINE Vec third_of_three(Vec a, Vec b, Vec c, LaneList<lane...>) {
  const Vec ab = __builtin_shufflevector(a, b, ((begin + lane) % 3 == 1 ? kWidth : 0) + (begin + lane) / 3 ...);
  return __builtin_shufflevector(ab, c, ((begin + lane) % 3 == 2 ? kWidth + (begin + lane) / 3 : lane)...);
}

// Pixels of which channels lie `call.channel` elements apart, in rows that have their pixels side by side.
template <typename X>
void interleave_planes(const ConvolutionLastCall& call, int64_t from, int64_t count, int64_t place, float scale, X* to) {
  auto load_plane = [&](int64_t k, int64_t i) {
    return scaled_into<X>(load_element(call.x.data, call.x.type, from + k * call.channel + i), scale);
  };
  int64_t i = 0;
  if (call.in_channels == 3 && place == 3) {
    for (; i + kWidth <= count; i += kWidth, to += 3 * kWidth) {
      const Vec a = load_plane(0, i), b = load_plane(1, i), c = load_plane(2, i);
      store(to, third_of_three<0>(a, b, c, Lanes{}));
      store(to + kWidth, third_of_three<kWidth>(a, b, c, Lanes{}));
      store(to + 2 * kWidth, third_of_three<2 * kWidth>(a, b, c, Lanes{}));
    }
  }
  for (; i < count; i += kWidth, to += kWidth * place) {
    const int64_t pixels = count - i < kWidth ? count - i : kWidth;
    for (int64_t k = 0; k < call.in_channels; ++k) {
      X plane[kWidth];
      const Vec v = load_element_partly(call.x.data, call.x.type, from + k * call.channel + i, pixels);
      store(plane, scaled_into<X>(v, scale));
      for (int64_t p = 0; p < pixels; ++p) to[p * place + k] = plane[p];
    }
  }
}

// `count` pixels of a row of an image, zeros where they are outside of it, from the column `column` on; `place` elements apart.
template <typename X>
void copy_pixels(const ConvolutionLastCall& call, int64_t index, int64_t row, int64_t column, int64_t count, int64_t place, X* to) {
  const int64_t channels = call.in_channels, at = index * call.x.image + row * call.x.row;
  const float scale = scale_into<X>(call, index);
  const int64_t before = column >= 0 ? 0 : -column < count ? -column : count;
  const int64_t stop = call.width - column < before ? before : call.width - column < count ? call.width - column : count;
  __builtin_memset(to, 0, static_cast<size_t>(before * place) * sizeof(X));
  const int64_t from = at + (column + before) * call.x.pixel;
  if (call.channel != 1) {
    interleave_planes(call, from, stop - before, place, scale, to + before * place);
  } else if (place == channels && call.x.pixel == channels) {
    convert(call.x.data, call.x.type, from, (stop - before) * channels, scale, to + before * place);
  } else {
    for (int64_t i = before; i < stop; ++i) {
      convert(call.x.data, call.x.type, from + (i - before) * call.x.pixel, channels, scale, to + i * place);
    }
  }
  __builtin_memset(to + stop * place, 0, static_cast<size_t>((count - stop) * place) * sizeof(X));
}

// Words of 32 bits in a cache line, which copies go by.
constexpr int64_t kLineWords = 16;

template <typename X>
SLIPSTREAM_INLINE void copy_line(const X* from, X* to, const uint32_t* mask = nullptr) {
  for (int64_t w = 0; w < kLineWords; w += kWidth) {
    const int64_t at = w * 4 / static_cast<int64_t>(sizeof(X));
    VecU words = load_words(from + at);
    if (mask) words &= load_words(mask + w);
    store_words(to + at, words);
  }
}

// Windows of a row of pixels, neighbours of which make one.
template <typename X>
void copy_windows(const ConvolutionLastCall& call, const LastImage& image, const X* row, X* to) {
  constexpr int64_t line = 64 / sizeof(X);
  const int64_t step = image.step * call.in_channels, whole = image.depth / line * line;
  uint32_t mask[kLineWords] = {};
  __builtin_memset(mask, 0xff, static_cast<size_t>(image.depth - whole) * sizeof(X));
  for (int64_t i = 0; i < image.places; ++i, to += image.place, row += step) {
    for (int64_t k = 0; k < whole; k += line) copy_line(row + k, to + k);
    if (whole < image.depth) copy_line(row + whole, to + whole, mask);
  }
}

// The same with dilation: tap by tap, and up to a line of cache beyond each.
template <typename X>
void copy_dilated_windows(const ConvolutionLastCall& call, const LastImage& image, const X* row, X* to) {
  constexpr int64_t line = 64 / sizeof(X);
  const int64_t step = image.step * call.in_channels, apart = call.dilation_width * call.in_channels;
  const int64_t padded = round_up(image.depth, line);
  for (int64_t i = 0; i < image.places; ++i, to += image.place, row += step) {
    for (int64_t tap = 0; tap < image.across; ++tap) {
      for (int64_t k = 0; k < call.in_channels; k += line) copy_line(row + tap * apart + k, to + tap * call.in_channels + k);
    }
    for (int64_t k = image.depth; k < padded; ++k) to[k] = X{};
  }
}

// The lines that rows [row, row + rows) of y see: copy(source, offset) is called with the row of x, negative where it is
// outside of the image, and where its line begins in a segment.
template <typename Copy>
void for_each_line(const ConvolutionLastCall& call, const LastImage& image, int64_t row, int64_t rows, const Copy& copy) {
  const int64_t lines = (rows - 1) * call.stride_height + call.reach_height() + 1;
  for (int64_t i = 0; i < lines; ++i) {
    const int64_t phase = i % call.stride_height, source = row * call.stride_height + i - call.padding_height;
    if (phase >= image.phases) continue;
    copy(source < call.height ? source : -1, (phase * image.lines + i / call.stride_height) * image.line());
  }
}

// A line's windows of a row of pixels.
template <typename X>
void copy_all_windows(const ConvolutionLastCall& call, const LastImage& image, const X* row, X* to) {
  call.dilation_width == 1 ? copy_windows(call, image, row, to) : copy_dilated_windows(call, image, row, to);
}

// Those lines of one image; `pixels` is room for a row of x and a cache line more.
template <typename X>
void copy_segment(const ConvolutionLastCall& call, const LastImage& image, int64_t index, int64_t row, int64_t rows, X* pixels,
                  X* to) {
  for_each_line(call, image, row, rows, [&](int64_t source, int64_t offset) {
    X* line = to + offset;
    if (source < 0) {
      __builtin_memset(line, 0, static_cast<size_t>(image.line()) * sizeof(X));
      return;
    }
    if (image.windows) {
      copy_pixels(call, index, source, -call.padding_width, row_pixels(call, image), call.in_channels, pixels);
      copy_all_windows(call, image, pixels, line);
    } else {
      copy_pixels(call, index, source, -call.padding_width, row_pixels(call, image), image.place, line);
    }
  });
}

// Neighbouring outputs whose products are computed together: `count` positions of a segment from `position` on, the first of
// them at `x`. `pixel` is the segment's first output in y.
template <typename X>
struct Stretch {
  const X* x;
  int64_t pixel, position, count;
};

// How a segment is cut: at most `most` positions a stretch, and where there are several stretches, a multiple of `together`.
struct Cut {
  int64_t most, together;

  int64_t stretches(const LastImage& image, int64_t out_width, int64_t rows) const {
    const int64_t positions = (rows - 1) * image.positions + out_width, count = (positions + most - 1) / most;
    return count > 1 ? round_up(count, together) : count;
  }
};

// Into nearly equal stretches. Returns how many there are.
template <typename X>
int64_t cut_segment(const LastImage& image, const Cut& cut, int64_t out_width, int64_t rows, const X* x, int64_t pixel,
                    Stretch<X>* to) {
  const int64_t positions = (rows - 1) * image.positions + out_width, count = cut.stretches(image, out_width, rows);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = positions * i / count, end = positions * (i + 1) / count;
    to[i] = {x + begin * image.position, pixel, begin, end - begin};
  }
  return count;
}

// Sums [count][32] of a stretch through bias, residual and post-op into y; those between rows of y are dropped.
template <typename X>
void finish_stretch(const ConvolutionLastCall& call, const LastImage& image, const Stretch<X>& stretch, const float* sums,
                    int64_t panel) {
  const int64_t column = panel * kPanelColumns, stop = stretch.position + stretch.count;
  if (image.windows) {
    return finish_tile(call.linear, sums, kPanelColumns, stretch.pixel + stretch.position, stretch.count, column);
  }
  for (int64_t at = stretch.position; at < stop;) {
    const int64_t row = at / image.positions, along = at - row * image.positions;
    const int64_t left = call.out_width - along, count = left < stop - at ? left : stop - at;
    if (count > 0) {
      finish_tile(call.linear, sums + (at - stretch.position) * kPanelColumns, kPanelColumns,
                  stretch.pixel + row * call.out_width + along, count, column);
    }
    at += image.positions - along;
  }
}

// What a part needs of scratch memory, in bytes from its start.
struct LastScratch {
  int64_t image, sums, stretches, products, bytes;
};

// `sums`: floats; `products`: numbers that say where products are.
template <typename X>
LastScratch last_scratch(const ConvolutionLastCall& call, const LastImage& image, const Cut& cut, int64_t sums,
                         int64_t products) {
  constexpr int64_t size = sizeof(X);
  LastScratch at;
  at.image = round_up(image.windows ? row_pixels(call, image) * call.in_channels * size + 64 : 0, 64);
  // Tiles and copies go beyond the last place.
  at.sums = at.image + (image.segments * image.segment() + 16 * image.position) * size + 64;
  at.stretches = at.sums + sums * 4;
  const int64_t stretches = image.segments * cut.stretches(image, call.out_width, image.rows);
  at.products = at.stretches + stretches * static_cast<int64_t>(sizeof(Stretch<X>));
  at.bytes = at.products + products * static_cast<int64_t>(sizeof(int64_t));
  return at;
}

// Rows [begin, end) of y, counted through all images, by blocks: multiply(stretches, count) has each block's image in scratch
// memory, where copy(index, row, rows, to) brings a segment.
template <typename X, typename Copy, typename Multiply>
void for_each_copied_block(const ConvolutionLastCall& call, const LastImage& image, const LastScratch& at, const Cut& cut,
                           int64_t begin, int64_t end, void* scratch, const Copy& copy, const Multiply& multiply) {
  char* memory = static_cast<char*>(scratch);
  Stretch<X>* stretches = reinterpret_cast<Stretch<X>*>(memory + at.stretches);
  while (begin < end) {
    int64_t count = 0;
    X* x = reinterpret_cast<X*>(memory + at.image);
    for (int64_t s = 0; s < image.segments && begin < end; ++s, x += image.segment()) {
      const int64_t index = begin / call.out_height, row = begin % call.out_height;
      int64_t rows = call.out_height - row < image.rows ? call.out_height - row : image.rows;
      if (end - begin < rows) rows = end - begin;
      copy(index, row, rows, x);
      count += cut_segment(image, cut, call.out_width, rows, x, begin * call.out_width, stretches + count);
      begin += rows;
    }
    multiply(stretches, count);
  }
}

// The same of x as X.
template <typename X, typename Multiply>
void for_each_block_of_rows(const ConvolutionLastCall& call, const LastImage& image, const LastScratch& at, const Cut& cut,
                            int64_t begin, int64_t end, void* scratch, const Multiply& multiply) {
  X* pixels = static_cast<X*>(scratch);
  auto copy = [&](int64_t index, int64_t row, int64_t rows, X* to) { copy_segment(call, image, index, row, rows, pixels, to); };
  for_each_copied_block<X>(call, image, at, cut, begin, end, scratch, copy, multiply);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
