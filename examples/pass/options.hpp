// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a pass is told on its command line.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "mistral/gpu.hpp"
#include "mistral/quantization.hpp"
#include "nibble/awq.hpp"
#include "nibble/gptq.hpp"
#include "nibble/host/matmul.hpp"

namespace nibble::mistral {

/// What is folded into the layer before.
enum class scaling { none, awq, smooth };

/// How codes are found once a linear is scaled: each for itself, or each making up for those before it.
enum class rounding { nearest, gptq };

/// How a pass finds codes.
struct method {
  const char* word;   ///< of --method and --json
  const char* title;  ///< of tables and cards
  bool calibrated;    ///< by statistics of a text; false: rounded to nearest in min-max ranges
  scaling scales;
  rounding codes;
};
namespace methods {
inline constexpr method awq = {"awq", "AWQ", true, scaling::awq, rounding::nearest};
inline constexpr method gptq = {"gptq", "GPTQ", true, scaling::none, rounding::gptq};
inline constexpr method awq_gptq = {"awq+gptq", "AWQ + GPTQ", true, scaling::awq, rounding::gptq};
inline constexpr method smoothquant = {"smoothquant", "SmoothQuant", true, scaling::smooth, rounding::nearest};
inline constexpr method smoothquant_gptq = {"smoothquant+gptq", "SmoothQuant + GPTQ", true, scaling::smooth,
                                            rounding::gptq};
inline constexpr method rtn = {"rtn", "round to nearest", false, scaling::none, rounding::nearest};
}  // namespace methods

enum class clip_search { none, mse, gram };
enum class search_loss { gram, block };
enum class propagation { original, quantized };
/// Inputs that SmoothQuant scales: those that norms make; down's as well, through the rows of up; and o's, through those of v.
enum class smoothing { norms, down, all };

/// α of SmoothQuant: one for all inputs, or searched for each, or no smoothing at all.
struct smoothing_strength {
  bool smooth = true;
  std::optional<float> fixed;

  bool any() const { return smooth; }
  bool searched() const { return smooth && !fixed; }
};

/// A word of the command line, and what it stands for.
template <class T>
struct choice {
  const char* word;
  T value;
};
inline constexpr choice<packed_format> format_choices[] = {{"compressed-tensors", packed_format::compressed_tensors},
                                                           {"awq-gemm", packed_format::awq_gemm},
                                                           {"awq-gemv", packed_format::awq_gemv},
                                                           {"awq-gemv-fast", packed_format::awq_gemv_fast},
                                                           {"marlin", packed_format::marlin},
                                                           {"gptq", packed_format::gptq},
                                                           {"gptq-v2", packed_format::gptq_v2}};
inline constexpr choice<search_loss> loss_choices[] = {{"block", search_loss::block}, {"gram", search_loss::gram}};
inline constexpr choice<duo_scaling> duo_choices[] = {
    {"true", duo_scaling::on}, {"false", duo_scaling::off}, {"both", duo_scaling::both}};
inline constexpr choice<clip_search> clip_choices[] = {
    {"mse", clip_search::mse}, {"gram", clip_search::gram}, {"none", clip_search::none}};
inline constexpr choice<propagation> propagation_choices[] = {{"original", propagation::original},
                                                              {"quantized", propagation::quantized}};

/// None: the fastest that leaves the checkpoint's weights as they are.
inline constexpr choice<std::optional<host::matmul_precision>> precision_choices[] = {
    {"auto", std::nullopt},
    {"float32", host::matmul_precision::float32},
    {"bfloat16", host::matmul_precision::bfloat16}};

inline constexpr choice<bool> cache_choices[] = {{"none", false}, {"fp8", true}};

inline constexpr choice<activation_order> order_choices[] = {{"none", activation_order::none},
                                                             {"static", activation_order::static_groups},
                                                             {"group-aware", activation_order::group_aware},
                                                             {"descending", activation_order::descending}};

inline constexpr choice<smoothing> smoothing_choices[] = {
    {"norms", smoothing::norms}, {"down", smoothing::down}, {"all", smoothing::all}};

/// The word for one of the choices, and the choice of a word. @pre it is there.
template <class T, size_t N>
std::string word_of(const choice<T> (&choices)[N], T value) {
  return std::find_if(choices, choices + N, [&](const choice<T>& each) { return each.value == value; })->word;
}
template <class T, size_t N>
T value_of(const choice<T> (&choices)[N], const std::string& word) {
  return std::find_if(choices, choices + N, [&](const choice<T>& each) { return each.word == word; })->value;
}

struct pass_options {
  std::string program;          ///< whose options these are
  std::vector<method> offered;  ///< by the program
  std::string model, output, calibration, evaluate, json, report, recipe;
  std::string baseline;  ///< --json of an earlier run
  index_t samples = 256, max_length = 512;
  std::string scheme = "W4A16_ASYM";
  index_t group_size = 128;
  packed_format format = packed_format::compressed_tensors;
  std::vector<std::string> ignore = {"lm_head"};
  quantization how;  ///< how each linear is packed: what the recipe, or the four above, say
  method how_found = methods::rtn;
  search_loss loss = search_loss::gram;
  duo_scaling duo = duo_scaling::both;
  int grid = 20;
  clip_search clip = clip_search::gram;
  int sweeps = 2;
  float shrinkage = 0.5f;
  propagation propagate = propagation::original;
  float damping = 0.01f;
  activation_order order = activation_order::none;
  float drift = 1.0f;           ///< share of the drift of a linear's inputs that its target makes up for; GPTAQ's α
  float residual_drift = 0.5f;  ///< share of the residual stream's drift that down's target makes up for
  bool drift_given = false;     ///< one of them more than 0, by the user, not by default
  index_t drift_samples = 0;    ///< sequences on which drift is seen; 0: as many as drift_tokens_per_channel asks for
  smoothing_strength strength;
  smoothing smoothed_inputs = smoothing::down;
  bool cache_rounded = false;  ///< scales for keys and values in fp8
  backend_options backend;
  std::optional<host::matmul_precision> precision;  ///< of products on the CPU
  int threads = 0;                                  ///< 0: all
  std::uint64_t seed = 42;
  double max_regression = -1;  ///< negative: off
  std::uint64_t max_shard_bytes = 5'000'000'000;
  bool overwrite = false;
  bool restart = false;
  bool dry_run = false;
  bool allow_overlap = false;  ///< of calibration samples with the text to evaluate

  bool calibrated() const { return how_found.calibrated; }
  bool scales_searched() const { return how_found.scales == scaling::awq; }
  /// Whether scales are folded into weights.
  bool scaled() const { return how_found.scales != scaling::none; }
  /// Whether scales are judged by outputs of blocks.
  bool blocks_judged() const { return scales_searched() && loss == search_loss::block; }
  bool smoothed() const { return how_found.scales == scaling::smooth; }
  bool solved() const { return how_found.codes == rounding::gptq; }
  /// Whether codes are found under Gram matrices of all tokens; a sample of them does otherwise.
  bool correlations_seen() const { return !smoothed() || solved() || clip == clip_search::gram || sweeps > 0; }
  /// Whether a layer is quantized half by half, and o and down after the other linears of theirs, under what these, quantized, give.
  bool by_halves() const { return solved() && propagate == propagation::quantized; }
  /// Whether the original model's activations are followed beside the quantized one's.
  bool drift_followed() const { return by_halves() && (drift > 0 || residual_drift > 0); }
  bool residual_followed() const { return by_halves() && residual_drift > 0; }
};

/// A note to the user, on stderr.
void tell(const pass_options& o, const std::string& note);

/// Settles what the command line said, and the recipe if it named one. @returns what the user should be told, sentences.
/// @throws usage_error for combinations that make no sense, error for a recipe that cannot be followed.
std::vector<std::string> check(pass_options& o);

/// "auto", "none", or a number from 0 to 1. @throws usage_error.
smoothing_strength parse_strength(const std::string& text);
std::string to_string(const smoothing_strength& strength);

}  // namespace nibble::mistral
