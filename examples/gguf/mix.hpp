// SPDX-License-Identifier: Apache-2.0
/// @file
/// File types of llama.cpp: one word for a whole model, and the type that each tensor gets by it. Those with S, M or L mix
/// types: linears that hurt most where they are coarse get more bits.
/// Source: ggml-org/llama.cpp, llama-quant.cpp, as of October 2026, for dense models.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "mistral/gguf.hpp"
#include "nibble/core.hpp"

namespace nibble::mistral {

/// The layers i of n that a rule is for.
enum class layer_range {
  all,
  first_2,
  first_4,
  first_eighth,     ///< i < n/8
  first_sixteenth,  ///< i < n/16
  alternate  ///< the first and the last eighth, and every third between: i < n/8, i ≥ 7n/8 or (i − n/8) % 3 = 2
};

/// When a rule counts at all.
enum class mix_condition {
  always,
  shared_heads,        ///< at least four query heads share a key's
  with_importance,     ///< an importance matrix is given
  without_importance,  ///< none is
};

/// Tensors "blk.N.ROLE.weight" of some layers get `type`.
struct mix_rule {
  std::string_view role;
  layer_range layers;
  mix_condition condition;
  gguf_type type;
};

struct mix {
  const char* name;             ///< as on the command line
  std::uint32_t number;         ///< general.file_type
  gguf_type base;               ///< of what no rule is for
  gguf_type head;               ///< of the output matrix, or of the embedding where that is the output
  std::vector<mix_rule> rules;  ///< the first that is for a tensor counts
};

/// All, in the order of their sizes.
const std::vector<mix>& mixes();
/// Null where there is none.
const mix* find_mix(std::string_view name);

/// What the rules ask of a model.
struct mixed_model {
  index_t layers = 0;
  index_t shared = 1;  ///< query heads a key's
  bool importance = false;
  bool tied = false;  ///< the embedding is the output
};

/// The type of a tensor by its name in the file. Vectors, the norms, are F32 in every mix.
gguf_type mixed_type(const mix& m, const mixed_model& model, std::string_view tensor);

/// `type`, or where rows of `columns` are no whole blocks of it the one in its place: of 32, or F16.
gguf_type fitting_type(gguf_type type, index_t columns);

}  // namespace nibble::mistral
