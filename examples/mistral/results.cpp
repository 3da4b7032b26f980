// SPDX-License-Identifier: Apache-2.0
#include "results.hpp"

#include <algorithm>
#include <cstdio>

#include "formatted.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace nibble::mistral {
namespace {

using nlohmann::ordered_json;

/// @throws error when run and earlier run differ in `key`.
template <class T>
void check_same(const ordered_json& then, const char* key, const T& now, const std::string& file, const char* what) {
  const T earlier = json_get<T>(then, key, file + ", \"evaluation\"");
  if (earlier == now) return;
  const auto shown = [](const T& value) {
    if constexpr (std::is_same_v<T, std::string>)
      return value.substr(0, 12) + "…";
    else
      return std::to_string(value);
  };
  throw error(file + " was measured on " + what + ": \"" + key + "\" is " + shown(earlier) + " there and " +
              shown(now) + " now, so the runs cannot be compared");
}

}  // namespace

measured_on::measured_on(const evaluation_text& text, const std::vector<mistral::window>& plan,
                         const window_options& options)
    : sha256(text.sha256),
      documents(static_cast<index_t>(text.documents.size())),
      questions(static_cast<index_t>(text.questions.size())),
      windows(static_cast<index_t>(plan.size())) {
  for (const auto& w : plan) {
    tokens += w.scored;
    window = std::max(window, w.length);
  }
  stride = std::min(options.stride, window);
}

void measured_on::add_to(ordered_json& out) const {
  out["text_sha256"] = sha256;
  if (!model.empty()) out["model_fingerprint"] = model;
  out["documents"] = documents;
  out["questions"] = questions;
  out["tokens"] = tokens;
  out["windows"] = windows;
  out["window"] = window;
  out["stride"] = stride;
}

std::string fingerprint(const checkpoint& files) {
  constexpr index_t looked_at = 4096;
  std::string all;
  for (const auto& [name, t] : files.tensors()) {
    all += mistral::sha256({reinterpret_cast<const char*>(t.data), static_cast<size_t>(std::min(t.bytes, looked_at))});
    all += name + " " + t.dtype;
    for (const index_t extent : t.shape) all += " " + std::to_string(extent);
    all += "\n";
    files.release(t);
  }
  return mistral::sha256(all);
}

model_results model_results::read(const ordered_json& model, const std::string& where, bool questions) {
  model_results out;
  out.name = json_get<std::string>(model, "name", where);
  for (const figure_kind& kind : figure_kinds)
    if (!kind.answers || questions) out.figures.emplace_back(&kind, json_get<double>(model, kind.key, where));
  return out;
}

double model_results::at(const char* key) const {
  for (const auto& [kind, value] : figures)
    if (std::string_view(kind->key) == key) return value;
  return 0;
}

earlier_run read_earlier_run(const std::filesystem::path& file, const measured_on& now) {
  const std::string where = file.string();
  const ordered_json all = read_json(file);
  const auto child = [&](const char* key) -> const ordered_json& {
    const auto found = all.is_object() ? all.find(key) : all.end();
    if (found == all.end())
      throw error(where + ": the key \"" + key + "\" is missing; give what --json wrote of a run with --evaluate");
    return *found;
  };
  const ordered_json& on = child("evaluation");
  check_same(on, "text_sha256", now.sha256, where, "another text");
  check_same(on, "model_fingerprint", now.model, where, "another model");
  check_same(on, "documents", now.documents, where, "other documents");
  check_same(on, "questions", now.questions, where, "other questions");
  check_same(on, "window", now.window, where, "other windows");
  check_same(on, "stride", now.stride, where, "other windows");
  check_same(on, "windows", now.windows, where, "other windows");
  check_same(on, "tokens", now.tokens, where, "other tokens");
  const ordered_json& models = child("models");
  if (!models.is_array() || models.empty()) throw error(where + ": \"models\" must be an array with the run's models");
  return {where, model_results::read(models.back(), where + ", the last of \"models\"", now.questions > 0)};
}

std::string comparison_table(const earlier_run& then, const model_results& now) {
  std::string out = formatted("%-22s %14s %14s %12s\n", "", "baseline", "this run", "difference");
  for (const auto& [kind, value] : now.figures) {
    const double before = then.model.at(kind->key) / kind->unit, after = value / kind->unit;
    out += formatted("%-22s %14.*f %14.*f %+12.*f\n", kind->label, kind->decimals, before, kind->decimals, after,
                     kind->decimals, after - before);
  }
  return out;
}

ordered_json comparison_json(const earlier_run& then, const model_results& now) {
  ordered_json out = {{"file", then.file}, {"name", then.model.name}};
  for (const auto& [kind, value] : now.figures) {
    const double before = then.model.at(kind->key);
    out[kind->key] = {{"then", before}, {"now", value}, {"difference", value - before}};
  }
  return out;
}

std::vector<std::string> regressions(double limit, const gated_figures& before, const gated_figures& now,
                                     const std::string& against) {
  std::vector<std::string> found;
  const auto compare = [&](const char* what, double share) {
    if (share > limit)
      found.push_back(formatted("%s by %.2f %% against ", what, 100 * share) + against +
                      formatted(", more than --max-regression allows (%.2f %%)", 100 * limit));
  };
  compare("perplexity rose", (now.perplexity - before.perplexity) / before.perplexity);
  if (before.accuracy > 0) compare("accuracy fell", (before.accuracy - now.accuracy) / before.accuracy);
  return found;
}

}  // namespace nibble::mistral
