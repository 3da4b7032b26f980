// SPDX-License-Identifier: Apache-2.0
/// @file
/// An importance matrix in llama.cpp's GGUF form: for each linear, by input column, the sum of squares that calibration saw and
/// how often. A column's weight in the squared error of rounding is their quotient, the mean square.
///     general.type "imatrix", imatrix.datasets (strings), imatrix.chunk_count, imatrix.chunk_size (u32)
///     NAME.in_sum2 (k, 1), NAME.counts (1, 1), F32, NAME a tensor's, as "blk.3.attn_q.weight"
/// Source: ggml-org/llama.cpp, tools/imatrix.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "nibble/core.hpp"

namespace nibble::mistral {

struct importance_matrix {
  std::filesystem::path file;  ///< that it was read from; empty: none
  std::string dataset;         ///< what the first text that it is of was called; may be empty
  index_t chunks = 0;          ///< sequences of it; 0: not known
  std::map<std::string, std::vector<float>, std::less<>>
      weights;  ///< by the tensor's name in a GGUF file; one a column
};

/// @throws error naming file and tensor: no such file, other tensors or shapes than the form has, a value that is NaN, infinite or
/// negative, or experts' statistics.
importance_matrix read_importance(const std::filesystem::path& file);

/// What a calibration adds up.
struct importance_sums {
  std::string dataset;
  index_t chunks = 0, chunk_size = 0;                          ///< sequences, and tokens of the longest
  index_t tokens = 0;                                          ///< that every column saw
  std::map<std::string, std::vector<double>, std::less<>> of;  ///< by the tensor's name: Σ x² of each column
};

/// The matrix of these sums, each rounded to float as the form stores it: what read_importance() has of a file of them, but for
/// `file`. @throws error naming the tensor with a sum beyond float.
importance_matrix importance_of(const importance_sums& sums);

/// Writes the form; the file appears only when whole. @throws error as importance_of(), and when it cannot be written.
void write_importance(const std::filesystem::path& file, const importance_sums& sums);

}  // namespace nibble::mistral
