// SPDX-License-Identifier: Apache-2.0
#include "report_page.hpp"

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>

#include "progress.hpp"
#include "report_parts.hpp"
#include "svg.hpp"

namespace nibble::mistral {

namespace page {

const json& at(const json& object, const std::string& key) {
  static const json none;
  if (!object.is_object()) return none;
  const auto found = object.find(key);
  return found == object.end() ? none : *found;
}

double value(const json& number) {
  return number.is_number() ? number.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

std::string text(const json& string) {
  return string.is_string() ? string.get<std::string>() : "?";
}

std::string file_name(const json& path) {
  std::filesystem::path p(text(path));
  if (!p.has_filename()) p = p.parent_path();
  return p.filename().string();
}

std::string data(const json& number, const std::string& shown) {
  if (!std::isfinite(value(number))) return "–";
  return "<data value=\"" + number.dump() + "\">" + svg::escaped(shown) + "</data>";
}

std::string section(const std::string& id, const std::string& title, const std::string& lead, const std::string& body) {
  return "<section id=\"" + id + "\">\n<h2>" + svg::escaped(title) + "</h2>\n<p class=\"lead\">" + svg::escaped(lead) +
         "</p>\n" + body + "</section>\n";
}

std::string left_out(const std::string& id, const std::string& title, const std::string& why) {
  return "<section id=\"" + id + "\">\n<h2>" + svg::escaped(title) +
         "</h2>\n<p class=\"none\">Left out: " + svg::escaped(why) + "</p>\n</section>\n";
}

std::string figure(const std::string& title, const std::string& note, const std::string& svg) {
  return "<figure><figcaption><b>" + svg::escaped(title) + "</b> <span>" + svg::escaped(note) +
         "</span></figcaption>\n" + svg + "</figure>\n";
}

std::string grid(const std::vector<std::string>& figures) {
  std::string out = "<div class=\"grid\">\n";
  for (const std::string& each : figures) out += each;
  return out + "</div>\n";
}

std::string key(const std::string& style, const std::string& words) {
  return "<span><svg aria-hidden=\"true\" viewBox=\"0 0 14 12\"><circle class=\"" + style +
         "\" cx=\"7\" cy=\"6\" r=\"3.6\"/></svg>" + svg::escaped(words) + "</span>";
}

std::string own_name(const json& run) {
  const json& models = at(run, "models");
  return models.is_array() && !models.empty() ? text(at(models.back(), "name")) : "this";
}

namespace {

std::string signed_number(const json& n) {
  const double x = value(n);
  return (x >= 0 ? "+" : "−") + [&] {
    char out[32];
    std::snprintf(out, sizeof(out), "%.3f", std::fabs(x));
    return std::string(out);
  }();
}

std::string fixed(const json& n, int digits) {
  char out[40];
  std::snprintf(out, sizeof(out), "%.*f", digits, value(n));
  return out;
}

std::string percent(const json& n, int digits = 1) {
  return fixed(json(100 * value(n)), digits) + " %";
}

/// What is made of what, in a sentence.
std::string finding(const json& run) {
  const json& models = at(run, "models");
  const json &original = models.front(), &own = models.back();
  std::string out = "Weights went from " + data(at(original, "bytes"), size_text(value(at(original, "bytes")))) +
                    " to " + data(at(own, "bytes"), size_text(value(at(own, "bytes"))));
  if (at(own, "perplexity").is_number()) {
    const double share = value(at(own, "increase")) / value(at(original, "perplexity"));
    out += ", perplexity from " + data(at(original, "perplexity"), fixed(at(original, "perplexity"), 3)) + " to " +
           data(at(own, "perplexity"), fixed(at(own, "perplexity"), 3)) + " (" + (share >= 0 ? "+" : "−") +
           fixed(json(100 * std::fabs(share)), 2) + " %)";
    if (models.size() > 2)
      out += "; rounding to nearest raises it by " +
             data(at(models[1], "increase"), fixed(at(models[1], "increase"), 3)) + ", " + svg::escaped(own_name(run)) +
             " by " + data(at(own, "increase"), fixed(at(own, "increase"), 3));
  }
  return "<p class=\"finding\">" + out + ".</p>\n";
}

/// The model's name, and what became of it.
std::string title(const json& run) {
  const json& name = at(at(run, "source"), "name");
  return (name.is_string() ? text(name) : file_name(at(at(run, "options"), "model"))) + ", " + text(at(run, "packing"));
}

std::string header(const json& run) {
  const json &options = at(run, "options"), &made_by = at(run, "made");
  std::string by = own_name(run) + ", " + text(at(options, "format")) + " format; by " +
                   (at(made_by, "program").is_string() ? text(at(made_by, "program")) + " of " : "") + "nibble " +
                   text(at(run, "nibble"));
  if (at(made_by, "finished").is_string()) by += ", " + text(at(made_by, "finished")).substr(0, 10);
  return "<header>\n<h1>" + svg::escaped(title(run)) + "</h1>\n<p class=\"by\">" + svg::escaped(by) + "</p>\n" +
         finding(run) + "</header>\n";
}

std::string compare_row(const json& models, const std::string& name, const char* key,
                        const std::function<std::string(const json&)>& shown) {
  std::string cells;
  bool any = false;
  for (const json& each : models) {
    const bool has = at(each, key).is_number();
    any = any || has;
    cells += "<td>" + (has ? shown(each) : "") + "</td>";
  }
  return any ? "<tr><th scope=\"row\">" + svg::escaped(name) + "</th>" + cells + "</tr>\n" : "";
}

std::string compare_table(const json& run) {
  const json& models = at(run, "models");
  std::string out = "<div class=\"scroll\"><table class=\"compare\"><thead><tr><td></td>";
  for (const json& each : models) out += "<th scope=\"col\">" + svg::escaped(text(at(each, "name"))) + "</th>";
  out += "</tr></thead><tbody>\n";
  const auto row = [&](const char* name, const char* key, auto&& shown) {
    out += compare_row(models, name, key, [&](const json& each) { return data(at(each, key), shown(at(each, key))); });
  };
  row("weight files", "bytes", [](const json& n) { return size_text(value(n)); });
  row("bits a weight", "bits_per_weight", [](const json& n) { return fixed(n, 2); });
  row("perplexity", "perplexity", [](const json& n) { return fixed(n, 3); });
  out += compare_row(models, "increase", "increase", [](const json& each) {
    const json& error = at(each, "increase_standard_error");
    return data(at(each, "increase"), signed_number(at(each, "increase"))) +
           (std::isfinite(value(error)) ? " ± " + data(error, fixed(error, 3)) : "");
  });
  row("KL divergence, nats", "kl_divergence", [](const json& n) { return fixed(n, 4); });
  row("its 99 % quantile", "kl_divergence_99", [](const json& n) { return fixed(n, 4); });
  row("same top token", "top_token_agreement", [](const json& n) { return percent(n); });
  row("answers right", "accuracy", [](const json& n) { return percent(n); });
  row("answers exact", "exact_match", [](const json& n) { return percent(n); });
  row("abstained", "abstained", [](const json& n) { return percent(n); });
  row("time", "seconds", [](const json& n) { return duration_text(value(n)); });
  return out + "</tbody></table></div>\n";
}

/// Increases with their intervals, where they were measured.
std::string increases(const json& models) {
  double low = 0, high = 0;
  for (const json& each : models) {
    const double middle = value(at(each, "increase")), error = value(at(each, "increase_standard_error"));
    if (!std::isfinite(middle)) continue;
    const double reach = std::isfinite(error) ? 1.96 * error : 0;
    low = std::min(low, middle - reach), high = std::max(high, middle + reach);
  }
  std::vector<const json*> shown;
  for (const json& each : models)
    if (std::isfinite(value(at(each, "increase")))) shown.push_back(&each);
  const auto rows = static_cast<double>(shown.size());
  svg::axis y{0, rows, false, "", {}, {}};
  const svg::axis x = svg::linear_axis(low, high, "increase of perplexity over the original");
  svg::panel plot(x, y, 300, 56 + 44 * static_cast<int>(shown.size()));
  plot.vertical(0, "zero");
  std::string words;
  for (size_t i = 0; i < shown.size(); ++i) {
    const json& each = *shown[i];
    const double height = rows - static_cast<double>(i) - 0.62;
    const double middle = value(at(each, "increase")), error = value(at(each, "increase_standard_error"));
    const char* style = &each == &models.back() ? "a" : "b";
    const std::string name = text(at(each, "name")) + " " + signed_number(at(each, "increase"));
    if (std::isfinite(error)) plot.whisker(middle - 1.96 * error, middle + 1.96 * error, height, style);
    plot.dot({middle, height}, style, name);
    plot.text({x.low + 0.015 * (x.high - x.low), height + 0.36}, name, "name");
    words += name + ". ";
  }
  return figure("Increase of perplexity", "bars: 95 % interval, paired by window",
                plot.str("increase", "Increase of perplexity", words));
}

/// Ticks for a window: whole tokens, at most every quarter.
std::vector<double> quarters(double last) {
  std::vector<double> ticks = {0};
  for (const double each : {last / 4, last / 2, 3 * last / 4, last})
    if (std::floor(each) > ticks.back()) ticks.push_back(std::floor(each));
  return ticks;
}

}  // namespace

std::string results(const json& run) {
  const json &models = at(run, "models"), &evaluation = at(run, "evaluation");
  if (!evaluation.is_object())
    return section("results", "Result", "Nothing was evaluated: --evaluate FILE measures what the weights lost.",
                   compare_table(run));
  std::string lead = "Perplexity of " + file_name(at(evaluation, "text")) + ", " + at(evaluation, "tokens").dump() +
                     " tokens in " + at(evaluation, "windows").dump() + " windows of " +
                     at(evaluation, "window").dump() + ", stride " + at(evaluation, "stride").dump() +
                     "; ± is one standard error. KL divergence is that of the predictions from the original's.";
  if (value(at(evaluation, "questions")) > 0)
    lead += " " + at(evaluation, "questions").dump() +
            " prompts were asked: an answer is right when it contains an accepted one, exact when it is one.";
  return section("results", "Result", lead,
                 "<div class=\"two\"><div>" + compare_table(run) + "</div>" + increases(models) + "</div>\n");
}

std::string shift_by_position(const json& run) {
  const char* const title = "Predictions by position in the window";
  const json& models = at(run, "models");
  const json& parts = at(models.back(), "kl_by_position");
  if (!parts.is_array() || parts.empty())
    return left_out("positions", title,
                    at(run, "evaluation").is_object() ? "there are no figures by position."
                                                      : "nothing was evaluated (--evaluate FILE).");
  struct plotted {
    const char *key, *title, *y;
    bool share;
  };
  constexpr plotted all[] = {{"kl_divergence", "mean KL divergence", "nats", false},
                             {"kl_divergence_99", "99 % quantile of the KL divergence", "nats", false},
                             {"top_token_agreement", "same top token", "share of positions", true}};
  std::vector<std::string> figures;
  for (const plotted& each : all) {
    double low = each.share ? 1 : 0, high = each.share ? 1 : 0;
    for (const json& model : models)
      for (const json& part : at(model, "kl_by_position")) {
        low = std::min(low, value(at(part, each.key)));
        high = std::max(high, value(at(part, each.key)));
      }
    svg::axis y = svg::linear_axis(low, high, each.y);
    if (each.share) y.style = svg::tick_style::percent;
    const double last = value(at(parts.back(), "last"));
    svg::panel plot({0, last, false, "tokens read in the window", quarters(last), {}}, y);
    plot.spacing(last / static_cast<double>(parts.size()));
    std::string words;
    for (const json& model : models) {
      const char* style = &model == &models.back() ? "a" : "b";
      std::vector<svg::point> line;
      for (const json& part : at(model, "kl_by_position")) {
        const svg::point p{(value(at(part, "first")) + value(at(part, "last"))) / 2, value(at(part, each.key))};
        plot.dot(p, style,
                 text(at(model, "name")) + ", " + at(part, "first").dump() + "–" + at(part, "last").dump() + ": " +
                     (each.share ? percent(at(part, each.key)) : svg::number(p.y)),
                 std::string(style) == "b");
        line.push_back(p);
      }
      if (line.empty()) continue;
      plot.line(line, style);
      words +=
          text(at(model, "name")) + " from " + svg::number(line.front().y) + " to " + svg::number(line.back().y) + ". ";
    }
    figures.push_back(figure(each.title, "", plot.str(std::string("position-") + each.key, each.title, words)));
  }
  std::string legend = "<p class=\"legend\">";
  if (models.size() > 2) legend += key("b hollow", text(at(models[1], "name")));
  legend += key("a", own_name(run));
  return section("positions", title,
                 "How far next-token distributions moved from the original's, by how much was read.",
                 legend + "</p>\n" + grid(figures));
}

}  // namespace page

std::string report_html(const nlohmann::ordered_json& run) {
  using namespace page;
  return "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>" +
         svg::escaped(title(run)) + "</title>\n<style>" + style + "</style>\n</head>\n<body>\n<main>\n" + header(run) +
         results(run) + earlier(run) + shift_by_position(run) + losses(run) + ratios(run) + ranges(run) + weights(run) +
         activations(run) + figures_by_layer(run) + made(run) + "</main>\n</body>\n</html>\n";
}

}  // namespace nibble::mistral
