// SPDX-License-Identifier: Apache-2.0
/// @file
/// What each tensor would cost in each type that its columns allow: bytes, and the error that is left, measured on some of its rows by
/// encoding and decoding them. Error is squared error over the weights' own square, both weighed by the importance of columns: then it is
/// that of the linear's output, as far as its inputs are uncorrelated. What it does to predictions is sensitivity.hpp's.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "gguf/choose.hpp"
#include "gguf/convert.hpp"

namespace nibble::mistral {

/// The types that a tensor of such columns is given one of: where rows are whole blocks of 256 those that llama.cpp's mixes have from Q2_K
/// on, or those of 32, and F16.
std::vector<gguf_type> candidate_types(index_t columns);

/// Weights of a tensor that are encoded to measure its errors, at least 16 rows. 64 rows of the embedded model's tensors tell the error of
/// all rows within 1.2 % (root mean square over tensors and types; 3.7 % at most); types differ by a factor of 3 to 4 a bit.
inline constexpr index_t weights_measured = index_t(1) << 18;

/// A row a tensor of the plan that is not a vector, in the plan's order; weights are divergences (measure_sensitivity) over the relative
/// errors of the noise that made them, so that weight · error is the divergence that is expected of a type. Bytes are those in a file, with
/// padding.
/// @param told  called as layers are done, with how many.
/// @throws error as write_gguf does, for a weight that is NaN, infinite or too large.
std::vector<tensor_options> measure_types(const gguf_plan& plan, const checkpoint& files, const config& c,
                                          const std::map<std::string, double>& sensitivity,
                                          const std::function<void(index_t)>& told);

/// A budget for all of the file, or for its tensors.
struct size_target {
  double bits_per_weight = 0;  ///< of all tensors together; 0: none
  std::uint64_t bytes = 0;     ///< of the file; 0: none
};

/// The choice for a target, put into the plan: types, bytes, general.file_type.
/// @throws error that tells the range when the target is below the smallest choice or beyond F16.
chosen_types apply_target(gguf_plan& plan, const std::vector<tensor_options>& table, const size_target& target);

/// The file type that llama.cpp prints for the type that most bytes have: that of the mix that is named for it.
const mix& nearest_mix(const gguf_plan& plan);

}  // namespace nibble::mistral
