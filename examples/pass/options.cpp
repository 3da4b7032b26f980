// SPDX-License-Identifier: Apache-2.0
#include "pass/options.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "mistral/error.hpp"
#include "mistral/file.hpp"
#include "mistral/recipe.hpp"

namespace nibble::mistral {
namespace {

struct named_scheme {
  const char* name;
  packing how;  ///< its group counts where inputs stay as they are in integer schemes: --group-size is in its place
};
constexpr packing weights_only(int bits, bool symmetric) {
  return {packed_format::compressed_tensors, bits, symmetric};
}
constexpr packing with_inputs(code_type type, index_t group, index_t rows, input_rounding inputs) {
  return {packed_format::compressed_tensors, 8, true, group, type, rows, inputs};
}
constexpr named_scheme schemes[] = {{"W4A16_ASYM", weights_only(4, false)},
                                    {"W4A16", weights_only(4, true)},
                                    {"W8A16", weights_only(8, true)},
                                    {"W8A16_ASYM", weights_only(8, false)},
                                    {"W3A16_ASYM", weights_only(3, false)},
                                    {"W3A16", weights_only(3, true)},
                                    {"W2A16_ASYM", weights_only(2, false)},
                                    {"W8A8", with_inputs(code_type::integer, -1, 1, input_rounding::token)},
                                    {"W8A8_STATIC", with_inputs(code_type::integer, -1, 1, input_rounding::tensor)},
                                    {"FP8", with_inputs(code_type::e4m3, -1, -1, input_rounding::tensor)},
                                    {"FP8_DYNAMIC", with_inputs(code_type::e4m3, -1, 1, input_rounding::token)},
                                    {"FP8_BLOCK", with_inputs(code_type::e4m3, 128, 128, input_rounding::token_block)}};

/// Bits and symmetry that --scheme names, groups as --group-size says.
packing named_packing(const pass_options& o) {
  const auto* known =
      std::find_if(std::begin(schemes), std::end(schemes), [&](const named_scheme& s) { return o.scheme == s.name; });
  if (known == std::end(schemes)) {
    std::string names;
    for (const auto& s : schemes) names += std::string(names.empty() ? "" : ", ") + s.name;
    throw usage_error("--scheme " + o.scheme + " is not one of " + names);
  }
  if (o.group_size != -1 && o.group_size != 32 && o.group_size != 64 && o.group_size != 128)
    throw usage_error("--group-size " + std::to_string(o.group_size) + " is not one of 128, 64, 32, -1");
  packing how = known->how;
  how.format = o.format;
  if (!is_coded(how)) how.group = o.group_size;
  return how;
}

void check_format(const pass_options& o) {
  const std::string format = std::string("--format ") + to_string(o.format);
  const bool symmetric = o.format == packed_format::marlin;
  const std::string scheme = symmetric ? "W4A16" : "W4A16_ASYM";
  for (const packing_group& group : o.how.groups()) {
    const int bits = group.how.bits;
    if (is_autoawq(o.format) && (bits != 4 || group.how.symmetric != symmetric))
      throw usage_error(format + " holds 4 bits " + (symmetric ? "without" : "with") +
                        " zero points only: use it with " +
                        (o.recipe.empty() ? "--scheme " + scheme : "a recipe whose only scheme is " + scheme));
    if (is_gptq(o.format) && is_coded(group.how))
      throw usage_error(format +
                        " holds integer weights whose inputs stay as they are; use --format compressed-tensors");
    if (is_gptq(o.format) && bits != 2 && bits != 3 && bits != 4 && bits != 8)
      throw usage_error(format + " holds 2, 3, 4 or 8 bits, and " + o.recipe + " asks for " + std::to_string(bits) +
                        "; use --format compressed-tensors");
  }
}

/// Groups of inputs in the order of activations. @throws usage_error where the format has no place for it.
void check_order(pass_options& o) {
  if (!o.solved() || o.order != activation_order::descending) return;
  if (!is_gptq(o.format))
    throw usage_error((o.recipe.empty() ? "--actorder descending" : o.recipe + ": actorder group") +
                      " forms groups in the order of activations, which only GPTQ's formats hold (compressed-tensors "
                      "gave it up): use "
                      "it with --format gptq or gptq-v2, or " +
                      (o.recipe.empty() ? "--actorder static" : "ask for static"));
  std::vector<packing_group> groups = o.how.groups();
  for (packing_group& group : groups) group.how.reordered = group.how.group > 0;
  o.how = quantization(groups, o.ignore, o.recipe.empty() ? "--ignore" : o.recipe);
}

/// Scales of keys and values, which compressed-tensors has a place for, come from a calibration.
/// float32 is a CPU's, for the whole run.
void check_precision(pass_options& o, std::vector<std::string>& notes) {
  if (!o.precision) return;
  if (!o.calibrated())
    throw usage_error(std::string("--matmul-precision is about calibration, and --method ") + o.how_found.word +
                      " does none; leave it out");
  if (*o.precision == host::matmul_precision::bfloat16) return;
  if (o.backend.insists())
    throw usage_error(
        "--matmul-precision float32 is for a CPU, as a GPU multiplies bfloat16 here; leave it out, or run with "
        "--backend cpu");
  if (o.backend.name == "auto" && gpu_count() > 0)
    notes.push_back("--matmul-precision float32 keeps the run on the CPU, as a GPU multiplies bfloat16 here");
  o.backend.name = "cpu";
}

void check_cache(pass_options& o) {
  if (!o.cache_rounded) return;
  if (o.format != packed_format::compressed_tensors)
    throw usage_error("--kv-cache fp8 needs --format compressed-tensors, which has a place for its scales");
  if (!o.calibrated())
    throw usage_error(std::string("--kv-cache fp8 takes its scales from a calibration, and --method ") +
                      o.how_found.word + " does none; use another --method");
  o.how.round_cache();
}

/// What the format's readers refuse, which the user may want to know before.
void note_readers(const pass_options& o, std::vector<std::string>& notes) {
  if (!is_gptq(o.format)) return;
  const auto& groups = o.how.groups();
  const bool asymmetric = std::any_of(groups.begin(), groups.end(), [](const auto& g) { return !g.how.symmetric; });
  if (asymmetric && o.format == packed_format::gptq)
    notes.emplace_back("GPTQModel loads weights with zero points as --format gptq-v2 only");
}

/// How the command line names what the linears are packed by.
std::string packing_source(const pass_options& o) {
  return o.recipe.empty() ? "--scheme " + o.scheme : o.recipe;
}

/// The method can do what the linears are packed by: SmoothQuant is for inputs that are rounded, the others for weights alone.
void check_method(const pass_options& o) {
  const auto any = [&](auto has) {
    return std::any_of(o.how.groups().begin(), o.how.groups().end(),
                       [&](const packing_group& each) { return has(each.how); });
  };
  const bool rounds = any([](const packing& how) { return how.inputs != input_rounding::none; });
  const bool fixed = any([](const packing& how) { return how.inputs == input_rounding::tensor; });
  const bool floats = any([](const packing& how) { return how.type != code_type::integer; });
  const std::string source = packing_source(o);
  if (o.smoothed() && !rounds)
    throw usage_error(source +
                      " leaves the inputs of linears as they are, and SmoothQuant is for rounding them: use W8A8, " +
                      "W8A8_STATIC, FP8, FP8_DYNAMIC or FP8_BLOCK, or another program");
  if (o.calibrated() && !o.smoothed() && (rounds || floats))
    throw usage_error(source + " is " + (floats ? "of fp8" : "of rounded inputs") + ", which " + o.how_found.title +
                      " is not for; smoothquant_mistral rounds inputs, smoothed or not");
  if (!o.calibrated() && fixed)
    throw usage_error(source + " has scales of inputs, which are found on a calibration text and not by --method " +
                      o.how_found.word + "; smoothquant_mistral does it");
  if (o.solved() && floats)
    throw usage_error(source + " is of fp8, and GPTQ chooses integers here: use --method smoothquant");
}

/// The method that a recipe asks for. Scales of inputs are found as SmoothQuant finds them, be it without smoothing.
/// @throws error where it is another program's.
method offered(const pass_options& o, const recipe& r) {
  const bool smooth = r.smooth || (!r.awq && (r.has_input_scales() || (r.gptq && r.rounds_inputs())));
  const method asked = smooth && r.gptq  ? methods::smoothquant_gptq
                       : smooth          ? methods::smoothquant
                       : r.awq && r.gptq ? methods::awq_gptq
                       : r.awq           ? methods::awq
                       : r.gptq          ? methods::gptq
                                         : methods::rtn;
  for (const method& each : o.offered)
    if (std::string(each.word) == asked.word) return each;
  throw error(o.recipe + " asks for " + (smooth && !r.smooth ? "rounded inputs" : asked.title) + ", which " +
              o.program + " does not do; " +
              (smooth   ? "smoothquant_mistral"
               : r.gptq ? "gptq_mistral"
                        : "awq_mistral") +
              " does");
}

std::vector<std::string> follow_recipe(pass_options& o) {
  recipe r = read_recipe(o.recipe);
  o.how_found = offered(o, r);
  if (r.gptq)
    o.damping = static_cast<float>(r.dampening),
    o.order = value_of(order_choices, r.actorder == "group" ? "descending" : r.actorder);
  if (o.smoothed()) {
    if (!r.smooth) o.strength = {false, {}};
    if (r.strength) o.strength = {true, static_cast<float>(*r.strength)};
    o.smoothed_inputs = r.smooth_v ? smoothing::all : r.smooth_up ? smoothing::down : smoothing::norms;
  }
  o.duo = value_of(duo_choices, r.duo_scaling);
  o.grid = r.grid;
  o.ignore = r.ignore;
  o.cache_rounded = o.cache_rounded || r.rounds_cache;
  for (packing_group& group : r.groups) group.how.format = o.format;
  o.how = quantization(r.groups, r.ignore, o.recipe);
  if (o.how.of("lm_head"))
    throw error(o.recipe + " targets lm_head, and the head is not quantized here: add lm_head to ignore");
  if (o.how.targets_embedding())
    throw error(o.recipe +
                " targets model.embed_tokens, and the embedding is not quantized here: "
                "add model.embed_tokens to ignore");
  if (r.without_effect.empty()) return {};
  std::string keys;
  for (const std::string& key : r.without_effect) keys += (keys.empty() ? "" : ", ") + key;
  return {o.recipe + ": without effect here: " + keys};
}

}  // namespace

void tell(const pass_options& o, const std::string& note) {
  std::fprintf(stderr, "%s: note: %s\n", o.program.c_str(), note.c_str());
}

smoothing_strength parse_strength(const std::string& text) {
  if (text == "auto") return {};
  if (text == "none") return {false, {}};
  char* end = nullptr;
  const bool decimal = text.find_first_not_of("0123456789.eE+-") == text.npos;
  const float number = decimal ? std::strtof(text.c_str(), &end) : -1.0f;
  if (end == nullptr || end == text.c_str() || *end != '\0' || !(number >= 0.0f && number <= 1.0f))
    throw usage_error("--smoothing-strength " + text + " is not auto, none, or a number from 0 to 1");
  return {true, number};
}

std::string to_string(const smoothing_strength& strength) {
  if (!strength.any()) return "none";
  if (strength.searched()) return "auto";
  char text[32];
  std::snprintf(text, sizeof(text), "%g", static_cast<double>(*strength.fixed));
  return text;
}

std::vector<std::string> check(pass_options& o) {
  std::vector<std::string> notes;
  if (o.recipe.empty()) {
    o.how = quantization::uniform(named_packing(o), o.ignore, "--ignore");
    if (std::find(o.ignore.begin(), o.ignore.end(), "lm_head") == o.ignore.end())
      throw usage_error("--ignore must name lm_head: the head is not quantized");
    if (o.grid > 1 && o.grid < 4)
      throw usage_error("--n-grid " + std::to_string(o.grid) + " is neither 1 (no search) nor at least 4");
  } else {
    notes = follow_recipe(o);
  }
  check_format(o);
  check_method(o);
  check_order(o);
  check_cache(o);
  note_readers(o, notes);
  if (o.solved() && o.propagate == propagation::original) {
    if (o.drift_given)
      throw usage_error(
          "--drift and --residual-drift make up for what quantized layers do: use them with --propagate quantized");
    o.drift = o.residual_drift = 0;
  }
  if (o.drift_samples > 0 && !o.drift_followed())
    throw usage_error("--drift-samples is about drift, which is not made up for here; leave it out");
  check_precision(o, notes);
  if (!o.report.empty() && !o.json.empty() && same_file(o.report, o.json))
    throw usage_error("--report and --json are both to be written to " + o.report + "; name two files");
  if (o.max_regression >= 0 && o.evaluate.empty())
    throw usage_error("--max-regression compares perplexities: give it a text with --evaluate");
  if (!o.baseline.empty() && o.evaluate.empty())
    throw usage_error("--baseline-results compares figures of one text: give that text with --evaluate");
  if (o.allow_overlap && o.evaluate.empty())
    throw usage_error("--allow-overlap is about the text to evaluate: give one with --evaluate");
  return notes;
}

}  // namespace nibble::mistral
