// SPDX-License-Identifier: Apache-2.0
// A tensor seen as rows: the checks and conversions between torch tensors and the kernels' plain values.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "../kernels/linear.h"

namespace slipstream {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline int64_t element_size(ElementType type) { return type == ElementType::float32 ? 4 : 2; }

// Where a row begins.
inline const void* row_of(const Rows& matrix, int64_t row) {
  return static_cast<const char*>(matrix.data) + row * matrix.stride * element_size(matrix.type);
}

inline void check_parts(int64_t parts, bool bfloat16) {
  STD_TORCH_CHECK(parts >= 1 && parts <= 3 && (!bfloat16 || parts == 1), "parts: not 1, 2 or 3 of float32, or 1 of bfloat16");
}

inline ScalarType scalar_type(ElementType type) {
  if (type == ElementType::float16) return ScalarType::Half;
  if (type == ElementType::int16) return ScalarType::Short;
  return type == ElementType::float32 ? ScalarType::Float : ScalarType::BFloat16;
}

// Throws unless the tensor is dense, on the CPU, and float32 or bfloat16.
inline ElementType element_type(const Tensor& tensor, const char* argument) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, argument,
                  ": not float32 or bfloat16; convert it with .to()");
  STD_TORCH_CHECK(tensor.is_cpu(), argument, ": not on the CPU; move it with .cpu()");
  return type == ScalarType::Float ? ElementType::float32 : ElementType::bfloat16;
}

// Of a packed weight, which may be scaled too.
inline ElementType packed_type(const Tensor& packed) {
  if (packed.scalar_type() == ScalarType::Half && packed.is_cpu()) return ElementType::float16;
  if (packed.scalar_type() == ScalarType::Short && packed.is_cpu()) return ElementType::int16;
  return element_type(packed, "packed");
}

// All dimensions but the last folded into rows. False when they do not lie at one stride, or the last is not dense; without
// elements any strides will do, and stay as they are in what torch calls a dense copy.
inline bool fold_rows(const Tensor& tensor, int64_t& rows, int64_t& stride) {
  const int64_t dims = tensor.dim();
  const int64_t columns = tensor.size(dims - 1);
  rows = 1;
  stride = columns;
  const bool empty = tensor.numel() == 0;
  if (columns > 1 && tensor.stride(dims - 1) != 1 && !empty) return false;
  bool first = true;
  for (int64_t d = dims - 2; d >= 0; --d) {
    const int64_t size = tensor.size(d);
    if (size == 1) continue;
    if (first) {
      stride = tensor.stride(d);
      first = false;
    } else if (tensor.stride(d) != stride * rows && !empty) {
      return false;
    }
    rows *= size;
  }
  return true;
}

// The tensor itself, or a dense copy, as rows. `holder` keeps a copy alive for as long as the rows are used.
inline Rows as_rows(const Tensor& tensor, const char* argument, Tensor& holder, int64_t& rows) {
  Rows result;
  result.type = element_type(tensor, argument);
  holder = tensor;
  if (!fold_rows(holder, rows, result.stride)) {
    holder = torch::stable::contiguous(tensor);
    fold_rows(holder, rows, result.stride);
  }
  result.data = holder.data_ptr();
  return result;
}

inline Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type) {
  AtenTensorHandle handle = nullptr;
  const int32_t dtype = type == ScalarType::Char    ? aoti_torch_dtype_int8()
                        : type == ScalarType::Half  ? aoti_torch_dtype_float16()
                        : type == ScalarType::Short ? aoti_torch_dtype_int16()
                        : type == ScalarType::Float ? aoti_torch_dtype_float32()
                                                    : aoti_torch_dtype_bfloat16();
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  return empty_strided(sizes, strides, type);
}

}  // namespace slipstream
