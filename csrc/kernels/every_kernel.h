// SPDX-License-Identifier: Apache-2.0
// Every vector kernel of a level, and the table of them. A level's file includes this after its vocabulary of simd/; a new kernel
// is added here and in isa/table.h, and every level has it.
#include "post_op.h"
#include "activation.h"
#include "gate.h"
#include "concatenate.h"
#include "transpose.h"
#include "norm.h"
#include "multiply_step.h"
#include "linear_finish.h"
#include "group_norm.h"
#include "ask_for.h"
#include "linear_vector.h"
#include "linear_int8.h"
#ifdef SLIPSTREAM_HALF
#include "half_operands.h"
#include "linear_scaled.h"
#endif
#ifdef SLIPSTREAM_INT16
#include "int16_operands.h"
#include "linear_scaled.h"
#endif
#include "attention_softmax.h"
#include "attention.h"
#include "relative_scores.h"
#include "batched_matmul.h"
#include "recurrent.h"
#include "convolution.h"
#include "convolution_last_scaled.h"
#include "convolution_last_image.h"
#include "convolution_lines.h"
#include "convolution_last.h"
#include "depthwise_tile.h"
#include "winograd_transform.h"
#include "winograd.h"
#include "depthwise.h"
#include "pooling.h"

namespace slipstream {
namespace SLIPSTREAM_LEVEL {

constexpr KernelTable every_kernel() {
  KernelTable table{};
  table.multiplies_bfloat16 = kBf16Step == Step::dot_bf16;
  table.linear_scratch = linear_scratch;
  table.linear = linear;
  table.pack_matrix = pack_matrix;
  table.activation = activation;
  table.gate_rows = gate_rows;
  table.concatenate = concatenate;
  table.transpose = transpose;
  table.norm = norm;
  table.group_moments = group_moments;
  table.settle_group = settle_group;
  table.finish_group = finish_group;
  table.attention_scratch = attention_scratch;
  table.attention = attention;
  table.relative_scores_scratch = relative_scores_scratch;
  table.relative_scores = relative_scores;
  table.gather_image = gather_image;
  table.convolution = convolution;
  table.convolution_last_scratch = convolution_last_scratch;
  table.convolution_last = convolution_last;
  table.depthwise = depthwise;
  table.depthwise_last = depthwise_last;
  table.winograd_scratch = winograd_scratch;
  table.winograd = winograd;
  table.recurrent_cell = recurrent_cell;
  table.pooling = pooling;
  return with_int8(table);
}

}  // namespace SLIPSTREAM_LEVEL
}  // namespace slipstream
