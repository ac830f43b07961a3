// SPDX-License-Identifier: Apache-2.0
// The kernels of a level with tiles, real or emulated: those on tiles, and the vector kernels for the rest.
#include "../every_kernel.h"
#include "linear.h"
#include "linear_split.h"
#include "pack_parts.h"
#include "linear_int8.h"
#include "convolution_last.h"
#include "convolution_last_split.h"
#include "attention_strips.h"
#include "attention_split.h"
#include "attention.h"

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

constexpr KernelTable every_kernel_with_tiles() {
  KernelTable table = every_kernel();
  table.linear_scratch = amx_linear_scratch;
  table.linear = amx_linear;
  table.linear_split_scratch = amx_linear_split_scratch;
  table.linear_split = amx_linear_split;
  table.pack_matrix = amx_pack_matrix;
  table.linear_int8_scratch = amx_linear_int8_scratch;
  table.linear_int8 = amx_linear_int8;
  table.convolution_last_scratch = amx_convolution_last_scratch;
  table.convolution_last = amx_convolution_last;
  table.convolution_last_split_scratch = amx_convolution_last_split_scratch;
  table.convolution_last_split = amx_convolution_last_split;
  table.attention_scratch = amx_attention_scratch;
  table.attention = amx_attention;
  return table;
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
