// SPDX-License-Identifier: Apache-2.0
/// @file
/// gguf_mistral: a Mistral (or Llama) checkpoint in, dense or packed by this project's programs, one GGUF file out that
/// llama.cpp and Ollama load.
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "gguf/calibrate.hpp"
#include "gguf/carry.hpp"
#include "gguf/convert.hpp"
#include "gguf/measure.hpp"
#include "gguf/modelfile.hpp"
#include "gguf/options.hpp"
#include "gguf/report.hpp"
#include "gguf/scales.hpp"
#include "gguf/sensitivity.hpp"
#include "mistral/calibration_check.hpp"
#include "mistral/chat.hpp"
#include "mistral/gguf_model.hpp"
#include "mistral/json.hpp"
#include "mistral/precision.hpp"
#include "mistral/program.hpp"
#include "mistral/progress.hpp"
#include "mistral/tokenizer_files.hpp"
#include "mistral/utf8.hpp"
#include "nibble/host/parallel.hpp"
#include "pass/options.hpp"

using namespace nibble::mistral;
namespace fs = std::filesystem;

namespace {

std::string modelfile_for(const gguf_options& o, gguf_plan& plan) {
  std::unique_ptr<chat_template> chat;
  try {
    chat = open_chat_template(o.model);
  } catch (const error& unknown) {
    plan.notes.push_back(std::string("the Modelfile takes prompts as they are: ") + unknown.what());
  }
  const std::string bos = read_tokenizer_settings(o.model).bos.value_or("");
  std::vector<std::string> spaced;
  if (chat) spaced = spaced_tokens(plan.metadata, *open_tokenizer(o.model));
  return modelfile_text(o.output, chat.get(), bos, spaced, plan.notes);
}

/// The samples to calibrate on, and what is odd about them; nothing where nothing is calibrated.
std::optional<calibration_set> open_samples(const gguf_options& o, nibble::index_t context,
                                            std::vector<std::string>& notes) {
  if (!o.calibrated()) return std::nullopt;
  calibration_set samples = open_calibration(o.calibration, o.model, o.samples);
  const auto found = check_calibration(samples, *open_tokenizer(o.model), context, nullptr, false);
  notes.insert(notes.end(), found.warnings.begin(), found.warnings.end());
  return samples;
}

/// What --imatrix asks for: an empty one, a file's, or one that calibration will fill.
std::optional<importance_matrix> open_importance(const gguf_options& o, const checkpoint& files, const config& settings,
                                                 const std::optional<calibration_set>& samples) {
  if (o.importance.empty()) return std::nullopt;
  return o.own_importance() ? blank_importance(files, settings, o.calibration, *samples)
                            : read_importance(o.importance);
}

/// Runs the text through the model: fills the importance that the plan's tensors refer to where `own` is it, and where
/// scales are given finds AWQ's, which the plan's tensors refer to from then on.
void calibrate_plan(const gguf_options& o, const checkpoint& files, const config& settings,
                    const calibration_set& samples, nibble::host::matmul_precision precision, importance_matrix* own,
                    folded_gguf_scales* scales, gguf_plan& plan) {
  importance_sums sums = {fs::path(o.calibration).filename().string(),
                          static_cast<nibble::index_t>(samples.sequences.size()),
                          samples.longest(),
                          samples.tokens(),
                          {}};
  const auto fill = [&](importance_sums part) {
    if (!own) return;
    for (auto& [name, weights] : importance_of(part).weights) own->weights.at(name) = std::move(weights);
    sums.of.merge(part.of);
  };
  progress bar("calibrating", settings.layers);
  calibration_listener told;
  told.correlations = scales != nullptr;
  told.layer = [&](nibble::index_t layer, const layer_weights& w, const layer_statistics& seen) {
    importance_sums part = {"", 0, 0, sums.tokens, {}};
    add_layer(part, layer, seen);
    fill(std::move(part));
    if (scales) scales->search(layer, settings, plan, w, seen);
    bar.at(layer + 1);
  };
  told.head = [&](const std::vector<double>& squares) {
    fill({"", 0, 0, sums.tokens, {{head_name(settings), squares}}});
  };
  calibrate(files, settings, samples, precision, told);
  if (own && !o.importance_output.empty() && !o.dry_run) write_importance(o.importance_output, sums);
  if (scales) scales->apply(plan);
}

/// @throws error for a model that --awq cannot scale.
void check_scalable(const gguf_options& o, const config& settings, const gguf_plan& plan) {
  if (!o.awq) return;
  if (settings.json.contains("quantization_config"))
    throw error((fs::path(o.model) / "config.json").string() +
                " has a quantization_config: --awq scales weights before they are rounded, and these are already; give "
                "the original, or leave --awq out");
  if (!any_blocks(plan))
    throw usage_error("--awq lessens what rounding to blocks loses, and as " + o.type +
                      " no linear of this model gets blocks; leave it out");
}

/// Tokens of the calibration text that sensitivities are measured on.
constexpr nibble::index_t sample_tokens = 256;

batch sample_of(const gguf_options& o, const config& settings) {
  calibration_options wanted = o.samples;
  wanted.samples = 1, wanted.max_length = nibble::min(sample_tokens, settings.context);
  batch sample;
  for (const auto& ids : open_calibration(o.calibration, o.model, wanted).sequences)
    sample.append(ids.data(), static_cast<nibble::index_t>(ids.size()));
  return sample;
}

/// The best types within --target-bpw or --target-size, put into the plan.
target_choice choose(const gguf_options& o, gguf_plan& plan, const checkpoint& files, const config& settings) {
  const auto start = std::chrono::steady_clock::now();
  target_choice out;
  const batch sample = sample_of(o, settings);
  std::map<std::string, double> sensitivity;
  {
    progress bar("measuring sensitivity", settings.layers);
    sensitivity = measure_sensitivity(files, settings, sample, [&](nibble::index_t done) { bar.at(done); });
  }
  {
    progress bar("measuring errors", settings.layers);
    out.table = measure_types(plan, files, settings, sensitivity, [&](nibble::index_t done) { bar.at(done); });
  }
  out.chosen = apply_target(plan, out.table, o.target);
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return out;
}

int run(const gguf_options& o) {
  const auto start = std::chrono::steady_clock::now();
  // Blocks of 32 fit wherever any fit, so that nothing is said of tensors whose types are yet to be chosen.
  const std::string word = o.targeted() ? "Q8_0" : o.type;
  const mix* type = word == exact_mix().name ? &exact_mix() : find_mix(word);
  if (!type) throw usage_error("--type: " + o.type + " is not one of " + gguf_type_names());
  check_outputs(o);
  if (o.threads > 0) nibble::host::set_threads(o.threads);
  const config settings = read_config(o.model);
  const checkpoint files(o.model);
  std::vector<std::string> notes;
  const std::optional<calibration_set> samples = open_samples(o, settings.context, notes);
  const auto precision = calibration_precision(o.matmul_precision(), files);
  if (const std::string note = precision_note(precision); samples && !note.empty()) notes.push_back(note);
  std::optional<importance_matrix> importance = open_importance(o, files, settings, samples);
  const std::string name = utf8_repaired(o.name.empty() ? fs::canonical(o.model).filename().string() : o.name);
  gguf_plan plan = plan_gguf(files, settings, *type, importance ? &*importance : nullptr, name);
  plan.notes.insert(plan.notes.begin(), notes.begin(), notes.end());
  if (o.search == "exhaustive") plan.search = block_search_kind::exhaustive;
  check_scalable(o, settings, plan);
  folded_gguf_scales scales;
  const std::string modelfile = modelfile_for(o, plan);
  for (const std::string& note : plan.notes) std::fprintf(stderr, "gguf_mistral: note: %s\n", printable(note).c_str());
  const pending_file json(o.json);
  std::optional<target_choice> chosen;
  mix mixed = *type;
  importance_matrix* own = o.own_importance() ? &*importance : nullptr;
  if (o.targeted()) {
    if (own) calibrate_plan(o, files, settings, *samples, precision, own, nullptr, plan);
    own = nullptr;
    chosen = choose(o, plan, files, settings);
    mixed = nearest_mix(plan);
    mixed.name = "mixed";
  }
  std::uint64_t bytes = 0;
  if (!o.dry_run) {
    const pending_file beside(modelfile_of(o.output));
    check_room(o.output, plan);
    if (own || o.awq) calibrate_plan(o, files, settings, *samples, precision, own, o.awq ? &scales : nullptr, plan);
    progress bar("writing", settings.layers);
    bytes = write_gguf(o.output, plan, files, settings, [&](nibble::index_t done) { bar.at(done); });
    beside.finish(modelfile);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (!o.print_json || !o.json.empty()) {
    if (chosen && o.dry_run) std::fputs(choice_table(*chosen).c_str(), stdout);
    std::fputs(plan_table(plan, mixed, o.dry_run && !chosen).c_str(), stdout);
    if (chosen) std::fputs(choice_line(*chosen).c_str(), stdout);
    if (!scales.found().empty()) std::fputs(scales_line(scales.found()).c_str(), stdout);
  }
  if (!o.print_json) return 0;
  nlohmann::ordered_json out = {{"model", o.model}, {"output", o.output}};
  add_plan(out, plan, mixed);
  if (chosen) add_choice(out, *chosen, o.target);
  if (o.awq) out["awq"] = to_json(scales.found());
  if (samples) out["matmul_precision"] = word_of(precision_choices, {precision});
  out["bytes"] = bytes;
  out["seconds"] = seconds.count();
  const std::string text = json_text(out);
  if (o.json.empty())
    std::fputs(text.c_str(), stdout);
  else
    json.finish(text);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Writes a Mistral or Llama checkpoint as one GGUF file for llama.cpp and Ollama.", "gguf_mistral");
  app.footer("Exit status: 0 done, 1 bad input, 2 wrong option.");
  gguf_options o;
  add_options(app, o);
  return run_program(app, argc, argv, [&] {
    settle(app, o);
    return run(o);
  });
}
