// SPDX-License-Identifier: Apache-2.0
/// @file
/// config.json's quantization_config: how the linears of a checkpoint are packed, read and written.
/// Sources: compressed-tensors 0.19, QuantizationConfig; AutoAWQ 0.2.9, AwqConfig.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "config.hpp"

namespace nibble::mistral {

enum class packed_format { compressed_tensors, awq_gemm, awq_gemv };

/// "compressed-tensors", "awq-gemm", "awq-gemv"
const char* to_string(packed_format format);

/// How one linear is packed.
struct packing {
  packed_format format = packed_format::compressed_tensors;
  int bits = 4;
  bool symmetric = false;
  index_t group = 128;  ///< inputs that share a scale; −1: all
};

/// quantization_config, as far as it concerns weights.
class quantization {
 public:
  /// Of a model's config.json; empty when the model is not quantized.
  /// @throws error naming the file and key for a method, format or feature that cannot be read here.
  static std::optional<quantization> read(const config& model, const std::string& where);

  /// How the linear `name` is packed; empty when it is left as it was.
  std::optional<packing> of(const std::string& name) const;

 private:
  struct group {
    packing how;
    std::vector<std::string> targets;
  };
  void read_compressed_tensors(const nlohmann::ordered_json& json);
  void read_awq(const nlohmann::ordered_json& json);

  std::string where_;
  std::vector<group> groups_;
  std::vector<std::string> ignore_;
  bool awq_ = false;
};

/// What quantization_config says of a checkpoint whose linears but for those in `ignore` (names, or patterns "re:…")
/// are packed alike. @throws usage_error for patterns in an AutoAWQ format, which has none.
nlohmann::ordered_json quantization_json(const packing& how, const std::vector<std::string>& ignore);

}  // namespace nibble::mistral
