// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "progress.hpp"
#include "report_parts.hpp"
#include "svg.hpp"

namespace nibble::mistral::page {

namespace {

std::string cell(const json& number) {
  return "<td>" + data(number, svg::number(value(number), 4)) + "</td>";
}

std::string head(const std::string& caption, const std::vector<std::string>& names) {
  std::string out = "<div class=\"scroll\"><table><caption>" + svg::escaped(caption) + "</caption><thead><tr>";
  for (const std::string& name : names) out += "<th scope=\"col\">" + svg::escaped(name) + "</th>";
  return out + "</tr></thead><tbody>\n";
}

std::string linears_table(const json& layers) {
  std::string out = head("Linears", {"linear", "layer", "loss, round to nearest", "loss", "range kept, mean", "5 %",
                                     "median", "95 %", "root mean square"});
  for (size_t layer = 0; layer < layers.size(); ++layer)
    for (const auto& [name, linear] : at(layers[layer], "linears").items()) {
      const json &range = at(linear, "range_kept"), &quantiles = at(range, "quantiles");
      out += "<tr><th scope=\"row\">" + svg::escaped(name) + "</th><td>" + std::to_string(layer) + "</td>" +
             cell(at(linear, "round_to_nearest_loss")) + cell(at(linear, "loss")) + cell(at(range, "mean")) +
             cell(at(quantiles, "5%")) + cell(at(quantiles, "50%")) + cell(at(quantiles, "95%")) +
             cell(at(at(linear, "weights"), "root_mean_square")) + "</tr>\n";
    }
  return out + "</tbody></table></div>\n";
}

std::string inputs_table(const json& layers) {
  std::string out = head(
      "Inputs", {"input", "layer", "ratio", "from", "loss unscaled", "loss scaled", "loudest channel", "× median"});
  bool any = false;
  for (size_t layer = 0; layer < layers.size(); ++layer)
    for (const auto& [name, activation] : at(layers[layer], "activations").items()) {
      const json &scale = at(at(layers[layer], "scales"), name), &salient = at(activation, "salient");
      const json& loudest = salient.is_array() && !salient.empty() ? salient.front() : salient;
      const json& duo = at(scale, "duo");
      const json& ratio = at(scale, at(scale, "strength").is_null() ? "ratio" : "strength");
      any = true;
      out += "<tr><th scope=\"row\">" + svg::escaped(name) + "</th><td>" + std::to_string(layer) + "</td>" +
             cell(ratio) + "<td>" + (duo.is_boolean() ? duo.get<bool>() ? "both" : "activations" : "") + "</td>" +
             cell(at(scale, "unscaled_loss")) + cell(at(scale, "loss")) + "<td>" +
             data(at(loudest, "channel"), at(loudest, "channel").dump()) + "</td>" + cell(at(loudest, "times_median")) +
             "</tr>\n";
    }
  return any ? out + "</tbody></table></div>\n" : "";
}

/// An option's value as a person would type it; of paths only the last part, which is nobody's business elsewhere.
std::string shown(const std::string& name, const json& option) {
  for (const char* path : {"model", "output", "calibration", "evaluate", "recipe", "baseline_results"})
    if (name == path && option.is_string()) return file_name(option);
  if (option.is_string()) return text(option);
  if (option.is_number_float()) return svg::number(value(option), 6);
  if (!option.is_array()) return option.dump();
  std::string out;
  for (const json& each : option) out += (out.empty() ? "" : ", ") + (each.is_string() ? text(each) : each.dump());
  return out;
}

struct definitions {
  std::string html;

  void add(const std::string& name, const std::string& words) {
    if (!words.empty()) html += "<dt>" + svg::escaped(name) + "</dt><dd>" + svg::escaped(words) + "</dd>\n";
  }
  void code(const std::string& name, const json& words) {
    if (words.is_string())
      html += "<dt>" + svg::escaped(name) + "</dt><dd><code>" + svg::escaped(text(words)) + "</code></dd>\n";
  }
};

std::string seconds_text(const json& seconds) {
  std::string out;
  for (const auto& [phase, spent] : seconds.items())
    if (value(spent) > 0) out += (out.empty() ? "" : "; ") + phase + " " + duration_text(value(spent));
  return out;
}

}  // namespace

std::string earlier(const json& run) {
  const json& baseline = at(run, "baseline");
  if (!baseline.is_object()) return "";
  std::string rows;
  for (const auto& [key, figure] : baseline.items()) {
    if (!at(figure, "then").is_number()) continue;
    std::string name = key;
    std::replace(name.begin(), name.end(), '_', ' ');
    rows += "<tr><th scope=\"row\">" + svg::escaped(name) + "</th>" + cell(at(figure, "then")) +
            cell(at(figure, "now")) + cell(at(figure, "difference")) + "</tr>\n";
  }
  return section(
      "earlier", "Beside an earlier run",
      "The same text, as " + file_name(at(baseline, "file")) + " has it (" + text(at(baseline, "name")) +
          ") and as this run measured it.",
      head("Figures of both runs", {"", "earlier", "now", "difference"}) + rows + "</tbody></table></div>\n");
}

std::string figures_by_layer(const json& run) {
  const json& layers = at(run, "layers");
  if (!layers.is_array() || layers.empty()) return "";
  return section("figures", "Figures behind the plots",
                 "What the plots are drawn from, a row a linear and a row an input.",
                 "<details><summary>Show all " + std::to_string(layers.size()) + " layers</summary>\n" +
                     linears_table(layers) + inputs_table(layers) + "</details>\n");
}

std::string made(const json& run) {
  const json &made_by = at(run, "made"), &machine = at(made_by, "machine"), &options = at(run, "options");
  definitions by;
  by.add("program", (at(made_by, "program").is_string() ? text(at(made_by, "program")) + ", " : "") + "nibble " +
                        text(at(run, "nibble")));
  by.code("commit", at(made_by, "commit"));
  if (at(made_by, "commit_changed") == true) by.add("changed", "the sources differed from that commit");
  if (at(made_by, "compiler").is_string()) by.add("compiler", text(at(made_by, "compiler")));
  if (at(made_by, "finished").is_string()) by.add("finished", text(at(made_by, "finished")));
  if (at(machine, "processor").is_string())
    by.add("machine", text(at(machine, "processor")) + ", " + at(machine, "logical_processors").dump() + " logical, " +
                          at(machine, "threads").dump() + " threads used, " +
                          size_text(value(at(machine, "memory_bytes"))) + " of memory, " + text(at(machine, "system")));
  by.add("time", seconds_text(at(run, "seconds")));
  if (value(at(run, "peak_resident_bytes")) > 0)
    by.add("peak memory", size_text(value(at(run, "peak_resident_bytes"))) + " resident, evaluation aside");
  by.code("calibration, SHA-256", at(at(run, "calibration"), "sha256"));
  by.code("evaluation, SHA-256", at(at(run, "evaluation"), "text_sha256"));
  definitions told;
  told.add("linears", text(at(run, "packing")));
  for (const auto& [name, option] : options.items())
    if (!option.is_null() && name != "groups") told.add(name, shown(name, option));
  return section("made", "What made it", "Enough to make it again.",
                 "<dl>\n" + by.html + "</dl>\n<h3>Options</h3>\n<dl class=\"options\">\n" + told.html + "</dl>\n");
}

}  // namespace nibble::mistral::page
