// SPDX-License-Identifier: Apache-2.0
// One table of kernels a level. A level's source file fills its own; isa/select.cpp picks the active one.
#pragma once

#include "../kernels/attention_call.h"
#include "../kernels/batched_matmul_call.h"
#include "../kernels/concatenate_call.h"
#include "../kernels/convolution_call.h"
#include "../kernels/convolution_last_call.h"
#include "../kernels/depthwise_call.h"
#include "../kernels/group_norm_call.h"
#include "../kernels/operand_scale.h"
#include "../kernels/linear.h"
#include "../kernels/pooling_call.h"
#include "../kernels/norm_call.h"
#include "../kernels/recurrent_call.h"
#include "../kernels/relative_scores_call.h"
#include "../kernels/winograd_call.h"
#include "caches.h"

namespace slipstream {

// How bfloat16 is multiplied scaled: as float16 (kernels/half_operands.h), as int16 (kernels/int16_operands.h); or as it is, and then
// what follows is null.
struct Scaling {
  ElementType type = ElementType::bfloat16;
  // Packs a packed panel of bfloat16 or float32, of depth k, so; to back[32], what each column's products are put back by. False
  // where it does not fit.
  bool (*fit_panel)(const void* panel, ElementType type, int64_t k, uint8_t* to, float* back) = nullptr;
  uint32_t (*largest_magnitude)(const void* data, ElementType type, int64_t begin, int64_t end) = nullptr;
  OperandScale (*operand_scale)(uint32_t largest_bits) = nullptr;
  // Above 0 where too many of these elements are faint beside the largest, whose bits are given; sums of it say it for all that are
  // summed. Null where that loses nothing.
  int32_t (*faintness)(const void* data, ElementType type, int64_t begin, int64_t end, uint32_t largest_bits) = nullptr;

  bool multiplies(ElementType scaled) const { return fit_panel && type == scaled; }
};

struct KernelTable {
  // Bytes of scratch memory, 64-byte aligned, that a call of `linear` on this part needs.
  size_t (*linear_scratch)(const LinearCall& call, const LinearPart& part);
  void (*linear)(const LinearCall& call, const LinearPart& part, void* scratch);
  Scaling scaling;           // of linear and all that is built on it, and of convolution_last
  Scaling winograd_scaling;  // of winograd
  bool multiplies_bfloat16;  // as it is, by dot products, sooner than float32; else it is widened, or scaled
  // linear's for a weight in several parts; null where there are no tiles.
  size_t (*linear_split_scratch)(const LinearCall& call, const LinearPart& part);
  void (*linear_split)(const LinearCall& call, const LinearPart& part, void* scratch);
  void (*pack_matrix)(const MatrixToPack& matrix, void* packed);
  void (*activation)(const void* x, ElementType x_type, void* y, ElementType y_type, int64_t begin, int64_t end, PostOp op);
  void (*gate_rows)(const Rows& x, const Rows& gate, int64_t rows, int64_t columns, void* y, ElementType y_type);
  bool (*concatenate)(const ConcatenateCall& call, int64_t part, int64_t begin, int64_t end);
  void (*transpose)(const TransposeCall& call, int64_t begin, int64_t end);
  void (*norm)(const NormCall& call, int64_t begin, int64_t end, void* scratch);
  void (*group_moments)(const GroupNormCall& call, int64_t item, int64_t begin, int64_t end, float* moments);
  void (*settle_group)(const GroupNormCall& call, float* moments, float* table);
  void (*finish_group)(const GroupNormCall& call, int64_t item, int64_t begin, int64_t end, const float* table);
  size_t (*attention_scratch)(const AttentionCall& call);
  void (*attention)(const AttentionCall& call, const AttentionPart& part, void* scratch);
  size_t (*relative_scores_scratch)(const RelativeScoresCall& call);
  void (*relative_scores)(const RelativeScoresCall& call, void* scratch);
  void (*gather_image)(const ConvolutionCall& call, int64_t begin, int64_t end, void* image);
  void (*convolution)(const ConvolutionCall& call, const ConvolutionPart& part, const void* image);
  size_t (*convolution_last_scratch)(const ConvolutionLastCall& call, const LinearPart& part);  // channels last
  void (*convolution_last)(const ConvolutionLastCall& call, const LinearPart& part, void* scratch);
  size_t (*convolution_last_split_scratch)(const ConvolutionLastCall& call, const LinearPart& part);  // as linear_split's
  void (*convolution_last_split)(const ConvolutionLastCall& call, const LinearPart& part, void* scratch);
  void (*depthwise)(const ConvolutionCall& call, int64_t begin, int64_t end, int64_t outputs_of_a_channel, float* image);
  size_t (*linear_int8_scratch)(const LinearInt8Call& call, const LinearPart& part);
  void (*linear_int8)(const LinearInt8Call& call, const LinearPart& part, void* scratch);
  Range (*range_of_rows)(const Rows& x, int64_t k, int64_t begin, int64_t end);
  void (*depthwise_last)(const DepthwiseCall& call, const RowsPart& part);  // channels last
  size_t (*winograd_scratch)(const WinogradCall& call, const LinearPart& part);
  void (*winograd)(const WinogradCall& call, const LinearPart& part, void* scratch);
  void (*recurrent_cell)(const CellCall& call, int64_t begin, int64_t end);
  void (*pooling)(const PoolingCall& call, const RowsPart& part);
};

extern const KernelTable table_baseline, table_avx2, table_avx2_vnni, table_avx512, table_avx512_vnni, table_avx512_bf16_widened,
    table_avx512_bf16, table_avx512_fp16, table_amx, table_amx_emulated;

}  // namespace slipstream
