// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "mistral/progress.hpp"
#include "mistral/provenance.hpp"
#include "nibble/version.hpp"
#include "pass/pass.hpp"

namespace nibble::mistral {
namespace {

template <class... Args>
std::string format(const char* pattern, Args... args) {
  char text[256];
  std::snprintf(text, sizeof(text), pattern, args...);
  return text;
}

/// "W4A16_ASYM, groups of 128", or what a recipe's groups are.
std::string packings_text(const pass_options& o) {
  if (o.recipe.empty() && is_coded(o.how.groups().front().how))
    return o.scheme + ", " + to_string(o.how.groups().front().how);
  if (o.recipe.empty())
    return o.scheme + ", " + (o.group_size < 0 ? "one group an output" : "groups of " + std::to_string(o.group_size));
  std::vector<std::string> all;
  for (const packing_group& group : o.how.groups())
    if (const std::string text = to_string(group.how); std::find(all.begin(), all.end(), text) == all.end())
      all.push_back(text);
  std::string text;
  for (const std::string& each : all) text += (text.empty() ? "" : "; ") + each;
  return text;
}

/// One line of the table: a model and its figures.
struct row {
  std::string name;
  std::uint64_t bytes = 0;
  double bits = 0, seconds = -1;
  const evaluation* figures = nullptr;
  bool original = false;
  const answer_figures* answers = nullptr;  ///< where questions were asked
};

std::vector<row> rows_of(const pass_options& o, const pass_result& r) {
  const auto figures = [&](size_t at) { return r.evaluations.empty() ? nullptr : &r.evaluations[at]; };
  std::vector<row> rows = {{"original", r.original_bytes, 0, -1, figures(0), true}};
  if (o.calibrated() && !r.evaluations.empty())
    rows.push_back({methods::rtn.title, r.output_bytes, r.bits_per_weight, r.rtn_seconds, figures(1), false});
  rows.push_back({o.how_found.title, r.output_bytes, r.bits_per_weight, r.seconds.quantization(),
                  r.evaluations.empty() ? nullptr : &r.evaluations.back(), false});
  for (size_t i = 0; i < r.answered.size(); ++i) rows[i].answers = &r.answered[i].figures;
  return rows;
}

/// What the last model's entry in "models" says.
model_results own_results(const nlohmann::ordered_json& models, const pass_result& r) {
  return model_results::read(models.back(), "this run's figures", !r.questions.empty());
}

nlohmann::ordered_json models_json(const pass_options& o, const pass_result& r) {
  auto models = nlohmann::ordered_json::array();
  for (const row& each : rows_of(o, r)) {
    nlohmann::ordered_json model = {{"name", each.name}, {"bytes", each.bytes}};
    if (!each.original) model["bits_per_weight"] = each.bits;
    if (each.seconds >= 0) model["seconds"] = each.seconds;
    if (each.figures)
      model.update({{"perplexity", each.figures->perplexity}, {"standard_error", each.figures->standard_error}});
    if (each.figures && !each.original) {
      model.update(
          {{"increase", each.figures->increase}, {"increase_standard_error", each.figures->increase_standard_error}});
      add_shift(model, *each.figures);
    }
    if (each.answers) add_answers(model, *each.answers);
    models.push_back(model);
  }
  return models;
}

std::string answers_table(const pass_options& o, const pass_result& r) {
  std::vector<std::pair<std::string, const answer_figures*>> rows;
  for (const row& each : rows_of(o, r)) rows.emplace_back(each.name, each.answers);
  return "\n" + answers_table(rows);
}

}  // namespace

nlohmann::ordered_json options_json(const pass_options& o) {
  nlohmann::ordered_json options = {{"model", o.model},
                                    {"output", o.output},
                                    {"method", o.how_found.word},
                                    {"format", to_string(o.format)},
                                    {"ignore", o.ignore}};
  if (o.recipe.empty())
    options.update({{"scheme", o.scheme}, {"group_size", o.how.groups().front().how.group}});
  else
    options["recipe"] = o.recipe;
  for (const packing_group& group : o.how.groups()) {
    nlohmann::ordered_json each = {
        {"bits", group.how.bits}, {"symmetric", group.how.symmetric}, {"group_size", group.how.group}};
    if (is_coded(group.how)) each["how"] = to_string(group.how);
    each["targets"] = group.targets;
    options["groups"].push_back(std::move(each));
  }
  if (!o.calibrated()) return options;
  if (o.cache_rounded) options["kv_cache"] = "fp8";
  options.update(
      {{"calibration", o.calibration}, {"num_calibration_samples", o.samples}, {"max_seq_length", o.max_length}});
  if (o.scales_searched())
    options.update(
        {{"loss", word_of(loss_choices, o.loss)}, {"duo_scaling", word_of(duo_choices, o.duo)}, {"n_grid", o.grid}});
  if (o.smoothed())
    options.update({{"smoothing_strength", to_string(o.strength)},
                    {"smoothed_inputs", word_of(smoothing_choices, o.smoothed_inputs)}});
  options["matmul_precision"] = word_of(precision_choices, o.precision);
  options.update({{"clip", word_of(clip_choices, o.clip)},
                  {"sweeps", o.sweeps},
                  {"shrinkage", o.shrinkage},
                  {"propagate", word_of(propagation_choices, o.propagate)},
                  {"seed", o.seed}});
  if (o.solved())
    options.update({{"dampening_frac", o.damping},
                    {"actorder", word_of(order_choices, o.order)},
                    {"drift", o.drift},
                    {"residual_drift", o.residual_drift},
                    {"drift_samples", o.drift_samples}});
  return options;
}

nlohmann::ordered_json to_json(const pass_options& o, const pass_result& r) {
  auto options = options_json(o);
  if (o.calibrated()) {
    options["num_calibration_samples"] = r.calibration_sequences;
    std::string words;
    for (const std::string& word : r.precisions) words += (words.empty() ? "" : ", ") + word;
    options["matmul_precision"] = words;
    if (o.drift_followed()) options["drift_samples"] = r.followed_sequences;
    options["calibration_tokens"] = r.calibration_tokens;
  }
  nlohmann::ordered_json out = {{"nibble", NIBBLE_VERSION},
                                {"made", made_by(o.program)},
                                {"source", r.source},
                                {"packing", packings_text(o)},
                                {"options", options}};
  if (!r.calibration_sha256.empty())
    out["calibration"] = {{"file", o.calibration},
                          {"sha256", r.calibration_sha256},
                          {"sequences", r.calibration_sequences},
                          {"tokens", r.calibration_tokens}};
  out["seconds"] = {{"read", r.seconds.read},
                    {"forward", r.seconds.forward},
                    {"search", r.seconds.search},
                    {"write", r.seconds.write},
                    {"quantization", r.seconds.quantization()},
                    {"evaluate", r.seconds.evaluate}};
  if (!r.machine.empty()) out["machine"] = {{"name", r.machine}, {"seconds", nlohmann::ordered_json::object()}};
  if (r.gpu_bytes > 0) out["machine"]["gpu_bytes"] = r.gpu_bytes;
  for (const phase p : phases)
    if (!r.machine.empty()) out["machine"]["seconds"][to_string(p)] = r.phases[static_cast<size_t>(p)];
  out["peak_resident_bytes"] = r.peak_bytes;
  out["models"] = models_json(o, r);
  if (!r.evaluations.empty()) {
    nlohmann::ordered_json& on = out["evaluation"];
    on["text"] = o.evaluate;
    r.measured.add_to(on);
    if (o.calibrated()) on["words_shared_with_calibration"] = r.shared_with_calibration.share();
  }
  if (r.baseline) out["baseline"] = comparison_json(*r.baseline, own_results(out["models"], r));
  if (!r.questions.empty()) out["answers"] = answers_json(r.questions, r.answered);
  out["serving"] = r.serving;
  out["layers"] = r.layers;
  return out;
}

std::string table(const pass_options& o, const pass_result& r) {
  const bool evaluated = !r.evaluations.empty();
  std::string out = format("%-18s %9s %11s", "", "size", "bits/weight");
  if (evaluated) out += format(" %11s %18s %9s %9s %9s", "perplexity", "increase", "KL, nats", "KL, 99 %", "same top");
  out += format(" %12s\n", "time");
  for (const row& each : rows_of(o, r)) {
    const std::string bits = each.original ? "" : format("%.2f", each.bits);
    out +=
        format("%-18s %9s %11s", each.name.c_str(), size_text(static_cast<double>(each.bytes)).c_str(), bits.c_str());
    if (evaluated) {
      const evaluation& e = *each.figures;
      out += format(" %11.3f", e.perplexity);
      if (each.original)
        out += format(" %18s %9s %9s %9s", "", "", "", "");
      else
        out += format(" %+8.3f ± %-7.3f %9.4f %9.4f %8.1f%%", e.increase, e.increase_standard_error, e.shift.divergence,
                      e.shift.divergence_99, 100 * e.shift.agreement);
    }
    out += format(" %12s\n", each.seconds < 0 ? "" : duration_text(each.seconds).c_str());
  }
  if (!r.questions.empty()) out += answers_table(o, r);
  if (r.baseline) out += "\n" + comparison_table(*r.baseline, own_results(models_json(o, r), r));
  return out;
}

std::vector<std::string> regressions(const pass_options& o, const pass_result& r) {
  if (o.max_regression < 0) return {};
  const auto of = [&](size_t model) {
    return gated_figures{r.evaluations[model].perplexity,
                         r.answered.empty() ? 0 : r.answered[model].figures.accuracy()};
  };
  const gated_figures now = of(r.evaluations.size() - 1), original = of(0);
  std::vector<std::string> found = regressions(o.max_regression, original, now, "the original");
  if (r.baseline) {
    const model_results& then = r.baseline->model;
    for (std::string& each :
         regressions(o.max_regression, {then.at("perplexity"), then.at("accuracy")}, now, r.baseline->file))
      found.push_back(std::move(each));
  }
  return found;
}

}  // namespace nibble::mistral
