// SPDX-License-Identifier: Apache-2.0
/// @file
/// An importance matrix in llama.cpp's GGUF form: for each linear, by input column, the sum of squares that calibration saw and
/// how often. A column's weight in the squared error of rounding is their quotient, the mean square.
/// Source: ggml-org/llama.cpp, tools/imatrix.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace nibble::mistral {

struct importance_matrix {
  std::filesystem::path file;
  std::map<std::string, std::vector<float>, std::less<>>
      weights;  ///< by the tensor's name in a GGUF file; one a column
};

/// @throws error naming file and tensor: no such file, other tensors or shapes than the form has, a value that is NaN, infinite or
/// negative, or experts' statistics.
importance_matrix read_importance(const std::filesystem::path& file);

}  // namespace nibble::mistral
