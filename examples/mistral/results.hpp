// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a pass's --json says about a quantized model, read back: runs compared with each other, and the gate on what may
/// get worse.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "evaluation_text.hpp"

namespace nibble::mistral {

/// What figures were measured on; runs are comparable when all of it is equal.
struct measured_on {
  std::string sha256;  ///< of the file
  std::string model;   ///< fingerprint of the original; empty where figures are of one model by itself
  index_t documents = 0, questions = 0;
  index_t tokens = 0, windows = 0;  ///< those scored
  index_t window = 0, stride = 0;   ///< of the longest window

  measured_on() = default;
  measured_on(const evaluation_text& text, const std::vector<mistral::window>& plan, const window_options& options);
  /// Adds text_sha256, model_fingerprint unless empty, documents, questions, tokens, windows, window, stride.
  void add_to(nlohmann::ordered_json& out) const;
};

/// Tells models apart without reading them whole: the SHA-256 of each tensor's name, dtype, shape and first 4096 bytes.
std::string fingerprint(const checkpoint& files);

/// One figure of a model: what it is called in --json and in tables.
struct figure_kind {
  const char* key;
  const char* label;
  double unit;   ///< tables show value / unit
  int decimals;  ///< in tables
  bool answers;  ///< there only when questions were asked
};
inline constexpr figure_kind figure_kinds[] = {{"perplexity", "perplexity", 1, 3, false},
                                               {"kl_divergence", "KL divergence, nats", 1, 5, false},
                                               {"kl_divergence_99", "its 99 % quantile", 1, 5, false},
                                               {"top_token_agreement", "same top token, %", 0.01, 2, false},
                                               {"accuracy", "answers right, %", 0.01, 1, true},
                                               {"exact_match", "answers exact, %", 0.01, 1, true},
                                               {"abstained", "abstained, %", 0.01, 1, true},
                                               {"bytes", "size, MB", 1e6, 2, false},
                                               {"seconds", "quantized in, s", 1, 1, false}};

/// Figures by key, in the order of figure_kinds; those of answers only when there are questions.
struct model_results {
  std::string name;  ///< as tables call the model
  std::vector<std::pair<const figure_kind*, double>> figures;

  /// From an entry of "models". @throws error naming `where` and the key that is missing or no number.
  static model_results read(const nlohmann::ordered_json& model, const std::string& where, bool questions);
  double at(const char* key) const;
};

struct earlier_run {
  std::string file;
  model_results model;  ///< the last of its "models": what that run wrote
};

/// Reads an earlier run's --json. @throws error naming the file: a key that is missing, or what was measured differently.
earlier_run read_earlier_run(const std::filesystem::path& file, const measured_on& now);

/// A table of both runs' figures and their differences.
std::string comparison_table(const earlier_run& then, const model_results& now);
/// The same as {"file", "name", key: {"then", "now", "difference"}, …}.
nlohmann::ordered_json comparison_json(const earlier_run& then, const model_results& now);

/// What --max-regression looks at.
struct gated_figures {
  double perplexity = 0;
  double accuracy = 0;  ///< 0 without questions
};

/// What got worse by more than `limit`, a sentence each: perplexity that rose by more than that share of what it was,
/// accuracy that fell by more than that share of what it was.
/// @param against names whose figures `before` are, as in "the original".
std::vector<std::string> regressions(double limit, const gated_figures& before, const gated_figures& now,
                                     const std::string& against);

}  // namespace nibble::mistral
