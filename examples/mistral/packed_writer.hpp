// SPDX-License-Identifier: Apache-2.0
/// @file
/// A quantized linear, and its tensors in the formats that engines load.
///     compressed-tensors   NAME.weight_packed, .weight_scale, .weight_shape, .weight_zero_point (asymmetric)
///     AutoAWQ              NAME.qweight, .qzeros (but for Marlin), .scales
///     GPTQModel            NAME.qweight, .qzeros, .scales, .g_idx
/// and a code a byte (coded_linear.hpp).
#pragma once

#include <string>
#include <vector>

#include "config.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"
#include "quantization.hpp"
#include "safetensors.hpp"

namespace nibble::mistral {

/// Codes (n, k), one a byte, and params (row_groups, groups); of fp8 codes their scales alone count.
struct quantized_linear {
  index_t n = 0, k = 0, row_groups = 0, groups = 0;
  std::vector<uint8_t> codes;
  std::vector<params> parameters;
  float input_scale = 0;          ///< of input_rounding::tensor
  std::vector<int32_t> group_of;  ///< (k), the group of each input; empty: neighbours share one

  /// Room for n·k codes whose scales are shared by `group` inputs and `rows` outputs, −1 for all of them.
  static quantized_linear blank(index_t n, index_t k, index_t group, index_t rows = 1) {
    quantized_linear q;
    q.n = n, q.k = k, q.groups = per_group(group).across(k);
    q.row_groups = rows < 0 ? 1 : ceil_div(n, rows);
    q.codes.resize(static_cast<size_t>(n * k));
    q.parameters.resize(static_cast<size_t>(q.row_groups * q.groups));
    return q;
  }
  matrix<uint8_t> code_matrix() { return {codes.data(), n, k}; }
  matrix<params> param_matrix() { return {parameters.data(), row_groups, groups}; }
  matrix<const uint8_t> code_matrix() const { return {codes.data(), n, k}; }
  matrix<const params> param_matrix() const { return {parameters.data(), row_groups, groups}; }
};

/// How `how` rounds: the convention of the format's own writer, scales rounded to `scales` before codes are chosen.
any_scheme scheme_of(const packing& how, dtype scales);

/// w (n, k) ← what the codes of q stand for. @param group inputs that share a scale where group_of is empty.
void dequantize(const quantized_linear& q, index_t group, any_scheme scheme, matrix<float> w);

/// Zero points of 0, which GPTQ's first format stores as the largest code plus 1 less 1, and readers that add 1 without
/// wrapping misread, become 1: codes move up where there is room, else the scale grows and codes are found again for the
/// weights w (n, k) that q stands for. Does nothing in other formats.
void avoid_zero_point_zero(const packing& how, any_scheme scheme, matrix<const float> w, quantized_linear& q);

/// @throws usage_error when the format cannot hold a linear (n, k) so packed; the message names `name` and the reason.
void check_packable(const std::string& name, index_t n, index_t k, const packing& how);

/// Writes the tensors of one linear. @param scales dtype that weight_scale is stored in; fp16 for AutoAWQ and GPTQ formats.
void write_packed(safetensors_writer& out, const std::string& name, const quantized_linear& q, const packing& how,
                  dtype scales);

/// Bytes that write_packed adds for a linear (n, k).
std::uint64_t packed_bytes(index_t n, index_t k, const packing& how, dtype scales);

/// @throws error as write_tensor does, of a tensor that is to be written later.
void check_storable(const std::string& name, const tensor& t, const std::string& type);

/// Copies a tensor, converted to `type` ("BF16", "F16", "F32") where it differs.
/// @throws error naming the tensor when a value is not finite, or too large for `type`.
void write_tensor(safetensors_writer& out, const std::string& name, const tensor& t, const std::string& type);

/// Writes floats as `type`; same checks.
void write_floats(safetensors_writer& out, const std::string& name, const std::vector<float>& values,
                  const std::string& type);

/// "BF16" → dtype::bf16 …; @throws error for another.
dtype parse_dtype(const std::string& type);

}  // namespace nibble::mistral
