// SPDX-License-Identifier: Apache-2.0
/// @file
/// A type for each tensor, so that the expected error is least within so many bytes: of a table with a row a tensor, one option of each
/// row, with Σ bytes ≤ budget and the least Σ weight · error. This is the knapsack problem with a class a tensor; it is solved exactly, by
/// dynamic programming over bytes in units of what all differences of bytes have in common.
/// Source: Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, section 11.5.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mistral/gguf.hpp"

namespace nibble::mistral {

/// What a tensor costs in a type.
struct type_option {
  gguf_type type;
  std::uint64_t bytes;
  double error;  ///< at least 0
};

struct tensor_options {
  std::string name;
  double weight = 1;                 ///< of its errors in the sum; at least 0
  std::vector<type_option> options;  ///< one at least, in any order
};

struct chosen_types {
  std::vector<size_t> options;  ///< by tensor: which of its options
  std::uint64_t bytes = 0;
  double error = 0;  ///< Σ weight · error
};

/// Bytes of the smallest choice, and of the one of least error: a larger budget gains nothing.
struct byte_range {
  std::uint64_t least = 0, most = 0;
};
byte_range bytes_of_choices(const std::vector<tensor_options>& table);

/// The best choice of at most `budget` bytes; of several as good, one of the fewest bytes. A larger budget never has more error.
/// @pre budget ≥ bytes_of_choices(table).least.
/// @param units  At most so many units of bytes are told apart. Where differences have too little in common they are rounded up to a
/// power of 2 of bytes, and what is best by rounded sizes is chosen: never above the budget, but up to a unit a tensor below it.
chosen_types choose_types(const std::vector<tensor_options>& table, std::uint64_t budget,
                          std::uint64_t units = std::uint64_t(1) << 19);

}  // namespace nibble::mistral
