// SPDX-License-Identifier: Apache-2.0
/// @file
/// Linears stored as a code a byte, as compressed-tensors has them where inputs are rounded or codes are floats.
///     int-quantized    NAME.weight I8 (n, k); NAME.weight_scale (n, 1)
///     float-quantized  NAME.weight F8_E4M3 (n, k); NAME.weight_scale [1], (n, 1), or (⌈n/128⌉, ⌈k/128⌉)
///     both             NAME.input_scale [1] where one scale for all tokens is fixed
#pragma once

#include <memory>
#include <string>

#include "nibble/layout.hpp"
#include "packed_writer.hpp"
#include "resident.hpp"
#include "weights.hpp"

namespace nibble::mistral {

/// Whether a linear (n, k) can be stored so, and if not, why.
layout::verdict can_code(index_t n, index_t k, const packing& how);

/// @pre is_coded(how)
void write_coded(safetensors_writer& out, const std::string& name, const quantized_linear& q, const packing& how,
                 dtype scales);

/// Bytes that write_coded adds for a linear (n, k).
std::uint64_t coded_bytes(index_t n, index_t k, const packing& how, dtype scales);

/// @throws error naming the tensor when one is missing, of another shape or type, or holds NaN.
std::unique_ptr<linear_weights> open_coded(const checkpoint& from, const packing& how, const std::string& name,
                                           index_t n, index_t k);

/// The one positive number of the tensor `name`. @throws error naming it when it holds another.
float read_single_scale(const checkpoint& from, const std::string& name);

/// q in memory as it is decoded from: integers as codes, floats as fp32. `stored` is the dtype of scales.
resident_linear resident_of(const quantized_linear& q, const packing& how, dtype stored);

}  // namespace nibble::mistral
