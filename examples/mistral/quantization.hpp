// SPDX-License-Identifier: Apache-2.0
/// @file
/// config.json's quantization_config: how the linears of a checkpoint are packed, read and written.
/// Sources: compressed-tensors 0.19, QuantizationConfig; AutoAWQ 0.2.9, AwqConfig; GPTQModel 7.7, QuantizeConfig.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "config.hpp"

namespace nibble::mistral {

enum class packed_format { compressed_tensors, awq_gemm, awq_gemv, awq_gemv_fast, marlin, gptq, gptq_v2 };

/// "compressed-tensors", "awq-gemm", "awq-gemv", "awq-gemv-fast", "marlin", "gptq", "gptq-v2"
const char* to_string(packed_format format);

/// Whether it is GPTQModel's, in either version of its zero points.
inline bool is_gptq(packed_format format) {
  return format == packed_format::gptq || format == packed_format::gptq_v2;
}
/// Whether it is AutoAWQ's, Marlin among them: that is where a checkpoint of it is loaded.
inline bool is_autoawq(packed_format format) {
  return format != packed_format::compressed_tensors && !is_gptq(format);
}

/// What a code means: an integer, or fp8 with 4 bits of exponent and no infinity.
enum class code_type { integer, e4m3 };

/// How what a linear reads is rounded, to 8 bits of its weights' type, before it is multiplied: not at all; under a scale
/// for each token, or each token and 128 inputs, found while the model runs; or under one that the checkpoint holds.
enum class input_rounding { none, token, token_block, tensor };

/// How a linear's inputs are rounded before it multiplies them.
struct rounded_inputs {
  input_rounding how = input_rounding::none;
  code_type type = code_type::integer;
  float scale = 0;  ///< of input_rounding::tensor
};
inline bool operator==(const rounded_inputs& a, const rounded_inputs& b) {
  return a.how == b.how && a.type == b.type && a.scale == b.scale;
}

/// Inputs that share a scale at most, where it is not all of them.
inline constexpr index_t largest_group = 1 << 24;
/// Inputs and outputs of a block of fp8 weights, and inputs of a token that share a scale beside it.
inline constexpr index_t block_side = 128;

/// How one linear is packed.
struct packing {
  packed_format format = packed_format::compressed_tensors;
  int bits = 4;
  bool symmetric = false;
  index_t group = 128;  ///< inputs that share a scale; −1: all
  code_type type = code_type::integer;
  index_t rows = 1;  ///< outputs that share a scale; −1: all
  input_rounding inputs = input_rounding::none;
  bool reordered = false;  ///< groups are of inputs in an order of their own, which the checkpoint holds as g_idx
};

inline bool operator==(const packing& a, const packing& b) {
  return a.format == b.format && a.bits == b.bits && a.symmetric == b.symmetric && a.group == b.group &&
         a.type == b.type && a.rows == b.rows && a.inputs == b.inputs && a.reordered == b.reordered;
}

/// "4 bits, asymmetric, groups of 128"; "8 bits, symmetric, one group an output, inputs in 8 bits a token"
std::string to_string(const packing& how);

/// Whether a linear is stored as a code a byte under NAME.weight, as int-quantized and float-quantized have it.
inline bool is_coded(const packing& how) {
  return how.type != code_type::integer || how.inputs != input_rounding::none;
}

/// Linears packed alike: those that one of `targets` matches (a module's name, "re:PATTERN", or the class "Linear").
struct packing_group {
  packing how;
  std::vector<std::string> targets;
};

class regex;

/// How each linear of a model is packed: quantization_config as far as it concerns weights, a recipe, or the options.
/// Names are matched as compressed-tensors 0.19 matches them (match_named_modules, match_targets): patterns by re.match,
/// from the name's start; what `ignore` matches is left as it was; of several targets that match, a name goes before a
/// pattern, a pattern before a class, the lesser text before the greater, and of equal texts the last one counts.
class quantization {
 public:
  quantization() = default;  ///< nothing is packed
  /// @throws error naming `where` for a pattern that is no regular expression.
  quantization(const std::vector<packing_group>& groups, const std::vector<std::string>& ignore, std::string where);

  /// All decoder linears alike, less those in `ignore`; in an AutoAWQ format these are parts of names.
  /// @throws usage_error for patterns in an AutoAWQ format, which has none.
  static quantization uniform(const packing& how, const std::vector<std::string>& ignore, const std::string& where);

  /// Of a model's config.json; empty when the model is not quantized.
  /// @throws error naming the file and key for a method, format or feature that cannot be read here.
  static std::optional<quantization> read(const config& model, const std::string& where);

  /// How the linear `name` is packed; empty when it is left as it was.
  std::optional<packing> of(const std::string& name) const;
  /// Whether a group asks for the embedding, which stays as it was whatever a group asks for.
  bool targets_embedding() const;
  bool ignores(const std::string& name) const;
  /// Those targets and entries of `ignore` that match none of these linears, nor the embedding.
  std::vector<std::string> unmatched(const std::vector<std::string>& linears) const;

  /// Whether some linears round what they read.
  bool rounds_inputs() const;
  /// Whether keys and values are kept in fp8, under a scale of each layer that the checkpoint holds (kv_cache_scheme).
  bool rounds_cache() const { return rounds_cache_; }
  void round_cache() { rounds_cache_ = true; }

  const std::vector<packing_group>& groups() const { return groups_; }
  const std::vector<std::string>& ignore() const { return ignore_; }
  /// Whether `ignore` holds parts of names, as AutoAWQ has it.
  bool by_parts() const { return awq_; }

 private:
  using patterns = std::vector<std::shared_ptr<const regex>>;  ///< null where the text is no pattern
  patterns compiled(const std::vector<std::string>& targets) const;
  std::optional<packing> match(const std::string& name, const std::string& of_class) const;
  void add(packing_group group);
  void read_compressed_tensors(const nlohmann::ordered_json& json);
  void read_awq(const nlohmann::ordered_json& json);
  void read_gptq(const nlohmann::ordered_json& json);
  void read_gptq_rules(const nlohmann::ordered_json& rules, const packing& base);
  std::optional<packing> by_rules(const std::string& name) const;

  /// An entry of GPTQModel's "dynamic": linears whose name the pattern matches from its start.
  struct rule {
    std::shared_ptr<const regex> pattern;
    std::optional<packing> how;  ///< empty: left as they were
  };

  std::string where_;
  std::vector<packing_group> groups_;
  std::vector<std::string> ignore_;
  std::vector<patterns> target_patterns_;  ///< by group
  patterns ignore_patterns_;
  bool awq_ = false;
  bool rounds_cache_ = false;
  bool gptq_ = false;        ///< read of a GPTQ checkpoint, whose rules decide
  std::vector<rule> rules_;  ///< the first that matches counts
  bool head_ = false;        ///< whether a GPTQ checkpoint has its head packed
};

/// What quantization_config says of a checkpoint whose linears but for those in `ignore` (names, or patterns "re:…")
/// are packed alike. @throws usage_error for patterns in an AutoAWQ format, which has none.
nlohmann::ordered_json quantization_json(const packing& how, const std::vector<std::string>& ignore);

/// quantization_config for a model with these `linears`, all that it has. Where they are not packed alike, the way that
/// most are packed targets the class and others name their linears, so that every reader finds the same; in a GPTQ format
/// the others, and those left as they were, have rules in "dynamic".
/// @throws usage_error when an AutoAWQ format is to hold several ways of packing. @pre some linear is packed.
nlohmann::ordered_json quantization_json(const quantization& q, const std::vector<std::string>& linears);

}  // namespace nibble::mistral
