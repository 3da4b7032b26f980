// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "report_parts.hpp"
#include "svg.hpp"

namespace nibble::mistral::page {

namespace {

/// The keys of layers[i][what], in the order in which they are first met.
std::vector<std::string> names_in(const json& layers, const char* what) {
  std::vector<std::string> names;
  for (const json& layer : layers)
    for (const auto& [name, ignored] : at(layer, what).items())
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  return names;
}

/// layers[i][what][name][key], where it is: (i, value).
std::vector<svg::point> by_layer(const json& layers, const char* what, const std::string& name, const char* key) {
  std::vector<svg::point> points;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    const double found = value(at(at(at(layers[layer], what), name), key));
    if (std::isfinite(found)) points.push_back({static_cast<double>(layer), found});
  }
  return points;
}

double sum(const std::vector<svg::point>& points) {
  double total = 0;
  for (const svg::point& p : points) total += p.y;
  return total;
}

std::string share_text(double share) {
  char out[32];
  std::snprintf(out, sizeof(out), "%.0f %%", 100 * share);
  return std::isfinite(share) ? out : "–";
}

int count(const json& layers) {
  return static_cast<int>(layers.size());
}

void add_line(svg::panel& plot, const std::vector<svg::point>& points, const char* style, const std::string& name,
              bool hollow) {
  plot.line(points, style);
  for (const svg::point& p : points)
    plot.dot(p, style, name + ", layer " + svg::number(p.x) + ": " + svg::number(p.y), hollow);
}

std::string from_to(const std::vector<svg::point>& points) {
  if (points.empty()) return "";
  const auto [low, high] =
      std::minmax_element(points.begin(), points.end(), [](const auto& a, const auto& b) { return a.y < b.y; });
  return "from " + svg::number(low->y) + " to " + svg::number(high->y);
}

std::string loss_panel(const json& run, const std::string& name, const std::vector<svg::point>& rounded,
                       const std::vector<svg::point>& own) {
  double low = INFINITY, high = 0;
  for (const auto* line : {&rounded, &own})
    for (const svg::point& p : *line)
      if (p.y > 0) low = std::min(low, p.y), high = std::max(high, p.y);
  svg::panel plot(svg::layer_axis(count(at(run, "layers"))), svg::log_axis(std::isfinite(low) ? low : 0, high, "loss"));
  add_line(plot, rounded, "b", "round to nearest", true);
  add_line(plot, own, "a", own_name(run), false);
  return figure(name, "leaves " + share_text(sum(own) / sum(rounded)),
                plot.str("loss-" + name, "Loss of " + name + " by layer",
                         "round to nearest " + from_to(rounded) + "; " + own_name(run) + " " + from_to(own)));
}

/// Who reads an input.
std::string readers(const std::string& input) {
  if (input == "attention") return "q, k, v";
  if (input == "mlp") return "gate, up";
  return input;
}

std::string input_title(const std::string& input) {
  return "input of " + readers(input);
}

std::string ratio_panel(const json& layers, const std::string& input) {
  svg::axis y{0, 1, false, "ratio", {0, 0.25, 0.5, 0.75, 1}, {}};
  svg::panel plot(svg::layer_axis(count(layers)), y, 272, 160);
  std::string words;
  for (const svg::point& p : by_layer(layers, "scales", input, "ratio")) {
    const json& found = at(at(layers[static_cast<size_t>(p.x)], "scales"), input);
    const bool duo = at(found, "duo") == true;
    const std::string name = std::string(duo        ? "activations and weights"
                                         : p.y == 0 ? "identity"
                                                    : "activations alone") +
                             ", ratio " + svg::number(p.y) + ", layer " + svg::number(p.x);
    plot.dot(p, "a", name, !duo);
    words += name + ". ";
  }
  return figure(input_title(input), "",
                plot.str("ratio-" + input, "Ratio chosen for the " + input_title(input), words));
}

/// Likewise SmoothQuant's strength; layers that were not smoothed have no dot.
std::string strength_panel(const json& layers, const std::string& input) {
  svg::axis y{0, 1, false, "strength", {0, 0.25, 0.5, 0.75, 1}, {}};
  svg::panel plot(svg::layer_axis(count(layers)), y, 272, 160);
  std::string words;
  for (const svg::point& p : by_layer(layers, "scales", input, "strength")) {
    const std::string name = "strength " + svg::number(p.y) + ", layer " + svg::number(p.x);
    plot.dot(p, "a", name);
    words += name + ". ";
  }
  return figure(input_title(input), "",
                plot.str("strength-" + input, "Strength chosen for the " + input_title(input), words));
}

std::string gain_panel(const json& layers, const std::string& input) {
  const auto before = by_layer(layers, "scales", input, "unscaled_loss");
  auto left = by_layer(layers, "scales", input, "loss");
  double low = 1;
  for (size_t i = 0; i < left.size(); ++i) {
    left[i].y = before[i].y > 0 ? left[i].y / before[i].y : 1;
    low = std::min(low, left[i].y);
  }
  svg::axis y = svg::linear_axis(std::min(low, 0.95), 1, "loss left");
  y.style = svg::tick_style::percent;
  svg::panel plot(svg::layer_axis(count(layers)), y, 272, 160);
  plot.line(left, "a");
  for (const svg::point& p : left) plot.dot(p, "a", "layer " + svg::number(p.x) + ": " + share_text(p.y));
  std::vector<svg::point> unscaled = before;
  return figure(
      input_title(input), "leaves " + share_text([&] {
                            double after = 0;
                            for (size_t i = 0; i < left.size(); ++i) after += left[i].y * unscaled[i].y;
                            return after / sum(unscaled);
                          }()),
      plot.str("gain-" + input, "Share of the loss that scaling leaves, " + input_title(input), from_to(left)));
}

std::string range_panel(const json& layers, const std::string& name, double low, double high) {
  svg::axis y = svg::linear_axis(low, high, "range kept");
  y.style = svg::tick_style::percent;
  svg::panel plot(svg::layer_axis(count(layers)), y);
  const double half = std::min(0.3, 7 / plot.unit_x());
  double mean = 0, found = 0;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    const json& range = at(at(at(layers[layer], "linears"), name), "range_kept");
    if (!range.is_object()) continue;
    const json& q = at(range, "quantiles");
    const double levels[5] = {value(at(q, "5%")), value(at(q, "25%")), value(at(q, "50%")), value(at(q, "75%")),
                              value(at(q, "95%"))};
    plot.box(static_cast<double>(layer), half, levels,
             "layer " + std::to_string(layer) + ": half of the groups keep " + share_text(levels[1]) + " to " +
                 share_text(levels[3]) + ", median " + share_text(levels[2]));
    mean += value(at(range, "mean")), found += 1;
  }
  return figure(name, "mean " + share_text(mean / found),
                plot.str("range-" + name, "Range kept by the groups of " + name + ", by layer",
                         "mean over the layers " + share_text(mean / found)));
}

/// Histograms of one projection over all layers: shares of weights a bin, in percent.
struct pooled {
  std::vector<double> before, after;
  double first = 0, width = 1;
};

pooled pool(const json& layers, const std::string& name) {
  pooled p;
  for (const json& layer : layers) {
    const json& w = at(at(at(layer, "linears"), name), "weights");
    if (!w.is_object()) continue;
    p.first = value(at(w, "first_bin")), p.width = value(at(w, "bin_width"));
    for (auto [key, levels] : {std::pair("before", &p.before), std::pair("after", &p.after)}) {
      const json& counts = at(w, key);
      levels->resize(counts.size());
      for (size_t i = 0; i < counts.size(); ++i) (*levels)[i] += counts[i].get<double>();
    }
  }
  for (auto* levels : {&p.before, &p.after}) {
    double all = 0;
    for (const double each : *levels) all += each;
    for (double& each : *levels) each = all > 0 ? each / all : 0;
  }
  return p;
}

std::string weight_panel(const json& layers, const std::string& name) {
  const pooled p = pool(layers, name);
  double most = 0;
  for (const auto* levels : {&p.before, &p.after})
    for (const double each : *levels) most = std::max(most, each);
  svg::axis y = svg::linear_axis(0, most, "weights a bin");
  y.style = svg::tick_style::percent;
  const double last = p.first + p.width * static_cast<double>(p.before.size());
  svg::axis x{p.first, last, false, "weight / root mean square", {-4, -2, 0, 2, 4}, {}};
  svg::panel plot(x, y);
  plot.steps(p.first, p.width, p.before, "before");
  plot.steps(p.first, p.width, p.after, "after");
  const size_t zero = static_cast<size_t>(std::max(0.0, -p.first / p.width));
  const auto around = [&](const std::vector<double>& levels) {
    return zero < levels.size() && zero > 0 ? levels[zero] + levels[zero - 1] : 0.0;
  };
  return figure(name, "at zero " + share_text(around(p.before)) + " → " + share_text(around(p.after)),
                plot.str("weights-" + name, "Weights of " + name + " before and after, all layers",
                         "within an eighth of a root mean square of zero lie " + share_text(around(p.before)) +
                             " before and " + share_text(around(p.after)) + " after"));
}

std::string channel_panel(const json& layers, const std::string& input) {
  double low = INFINITY, high = 0, loudest = 0, last = 1;
  size_t where = 0;
  std::vector<std::vector<svg::point>> lines(layers.size());
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    const json& activation = at(at(layers[layer], "activations"), input);
    const double median = value(at(activation, "median_magnitude"));
    if (!(median > 0)) continue;
    for (const json& point : at(activation, "magnitude_by_rank")) {
      const svg::point p{value(point[0]), value(point[1]) / median};
      lines[layer].push_back(p);
      last = std::max(last, p.x), high = std::max(high, p.y);
      if (p.y > 0) low = std::min(low, p.y);
      if (p.y > loudest) loudest = p.y, where = layer;
    }
  }
  svg::axis x = svg::log_axis(1, std::max(last, 2.0), "channels, loudest first");
  x.high = std::max(last, 2.0);
  while (!x.ticks.empty() && x.ticks.back() > x.high) x.ticks.pop_back();
  svg::panel plot(x, svg::log_axis(std::isfinite(low) ? low : 0, high, "mean magnitude / median"));
  for (size_t layer = 0; layer < lines.size(); ++layer)
    plot.line(lines[layer], "d" + std::to_string(layers.size() < 2 ? 7 : 7 * layer / (layers.size() - 1)));
  return figure(input_title(input), "loudest: ×" + svg::number(loudest) + ", layer " + std::to_string(where),
                plot.str("channels-" + input, "Channels of the " + input_title(input) + " by magnitude, a line a layer",
                         "the loudest channel has " + svg::number(loudest) + " times the median, in layer " +
                             std::to_string(where)));
}

/// The loudest channels of all layers and inputs.
std::string loudest_table(const json& layers) {
  struct entry {
    size_t layer;
    std::string input;
    const json* channel;
  };
  std::vector<entry> all;
  for (size_t layer = 0; layer < layers.size(); ++layer)
    for (const auto& [input, activation] : at(layers[layer], "activations").items())
      for (const json& channel : at(activation, "salient")) all.push_back({layer, input, &channel});
  const auto times = [](const entry& e) {
    const double found = value(at(*e.channel, "times_median"));
    return std::isfinite(found) ? found : 0.0;
  };
  std::stable_sort(all.begin(), all.end(), [&](const entry& a, const entry& b) { return times(a) > times(b); });
  all.resize(std::min<size_t>(all.size(), 12));
  std::string out =
      "<div class=\"scroll\"><table><caption>The loudest channels of all</caption><thead><tr><th "
      "scope=\"col\">input of</th>"
      "<th scope=\"col\">layer</th><th scope=\"col\">channel</th><th scope=\"col\">× median</th><th "
      "scope=\"col\">share of "
      "all</th><th scope=\"col\">mean magnitude</th></tr></thead><tbody>\n";
  for (const entry& e : all) {
    const json& c = *e.channel;
    out += "<tr><td>" + svg::escaped(readers(e.input)) + "</td><td>" + std::to_string(e.layer) + "</td><td>" +
           data(at(c, "channel"), at(c, "channel").dump()) + "</td><td>" +
           data(at(c, "times_median"), svg::number(times(e))) + "</td><td>" +
           data(at(c, "share"), svg::number(100 * value(at(c, "share"))) + " %") + "</td><td>" +
           data(at(c, "mean_magnitude"), svg::number(value(at(c, "mean_magnitude")))) + "</td></tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

/// Whether some layer has `what` with `key` in it.
bool has(const json& layers, const char* what, const char* key) {
  return std::any_of(layers.begin(), layers.end(), [&](const json& layer) {
    const json& entries = at(layer, what);
    return std::any_of(entries.begin(), entries.end(),
                       [&](const json& each) { return at(each, key).is_structured() || at(each, key).is_number(); });
  });
}

constexpr const char* uncalibrated = "rounding to nearest looks at no activations.";

}  // namespace

std::string losses(const json& run) {
  const char* const title = "Loss by layer";
  const json& layers = at(run, "layers");
  if (!has(layers, "linears", "loss")) return left_out("loss", title, uncalibrated);
  std::vector<std::string> figures;
  std::vector<svg::point> all_rounded, all_own;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    double rounded = 0, own = 0;
    for (const json& linear : at(layers[layer], "linears")) {
      rounded += value(at(linear, "round_to_nearest_loss"));
      own += value(at(linear, "loss"));
    }
    if (!std::isfinite(rounded) || !std::isfinite(own)) continue;
    all_rounded.push_back({static_cast<double>(layer), rounded});
    all_own.push_back({static_cast<double>(layer), own});
  }
  figures.push_back(loss_panel(run, "all linears", all_rounded, all_own));
  for (const std::string& name : names_in(layers, "linears"))
    figures.push_back(loss_panel(run, name, by_layer(layers, "linears", name, "round_to_nearest_loss"),
                                 by_layer(layers, "linears", name, "loss")));
  const bool sampled = at(at(run, "options"), "smoothing_strength").is_string();
  const std::string error =
      sampled ? "Mean squared error of each linear's output on tokens of the calibration text, its inputs rounded too"
              : "Mean squared error of each linear's output on the calibration text, under its shrunk Gram matrix";
  return section(
      "loss", title,
      error + "; every plot has a scale of its own, and says what is left of the loss that rounding to nearest causes.",
      "<p class=\"legend\">" + key("b hollow", "round to nearest") + key("a", own_name(run)) + "</p>\n" +
          grid(figures));
}

std::string ratios(const json& run) {
  const char* const title = "Scales chosen";
  const json& layers = at(run, "layers");
  const bool smoothed = has(layers, "scales", "loss") && !has(layers, "scales", "ratio");
  if (!has(layers, "scales", "loss"))
    return left_out("scales", title,
                    at(at(run, "options"), "method") == "rtn" ? uncalibrated : "no scales were searched.");
  std::vector<std::string> chosen, left;
  for (const std::string& input : names_in(layers, "scales")) {
    chosen.push_back(smoothed ? strength_panel(layers, input) : ratio_panel(layers, input));
    left.push_back(gain_panel(layers, input));
  }
  if (smoothed)
    return section(
        "scales", title,
        "The strength says how far the scale of a channel follows its activations: at 1 they end as loud in every "
        "channel, at 0 the weights do; without a dot nothing is scaled. Below, the share that is left of what "
        "rounding weights and inputs does to outputs.",
        grid(chosen) + grid(left));
  return section("scales", title,
                 "The ratio says how far the scale of a channel follows its activations; at 0, from activations alone, "
                 "nothing is scaled. Below, the share of the loss that scaling leaves, ranges and codes aside.",
                 "<p class=\"legend\">" + key("a", "from activations and weights") +
                     key("a hollow", "from activations alone") + "</p>\n" + grid(chosen) + grid(left));
}

std::string ranges(const json& run) {
  const char* const title = "Ranges kept";
  const json& layers = at(run, "layers");
  if (!has(layers, "linears", "range_kept"))
    return left_out("ranges", title, "rounding to nearest keeps every group's whole range.");
  double low = 1, high = 1;
  const auto names = names_in(layers, "linears");
  for (const json& layer : layers)
    for (const json& linear : at(layer, "linears"))
      for (const json& q : at(at(linear, "range_kept"), "quantiles"))
        low = std::min(low, value(q)), high = std::max(high, value(q));
  std::vector<std::string> figures;
  for (const std::string& name : names) figures.push_back(range_panel(layers, name, low, high));
  return section(
      "ranges", title,
      "Each group's step relative to that of its whole range (min-max): below 100 %, weights at the ends were "
      "clipped to round the others finer. Box: the middle half of the groups and their median; stem: 5 % to 95 %.",
      grid(figures));
}

std::string weights(const json& run) {
  const json& layers = at(run, "layers");
  std::vector<std::string> figures;
  for (const std::string& name : names_in(layers, "linears")) figures.push_back(weight_panel(layers, name));
  if (figures.empty()) return left_out("weights", "Weights before and after", "no linear was quantized.");
  return section("weights", "Weights before and after",
                 "All layers together, in units of each linear's root mean square, scales undone; bins of an eighth.",
                 "<p class=\"legend\"><span><svg aria-hidden=\"true\" viewBox=\"0 0 14 12\"><path class=\"before\" "
                 "d=\"M1 1h12v10H1z\"/></svg>before</span><span><svg aria-hidden=\"true\" viewBox=\"0 0 14 12\"><path "
                 "class=\"after\" d=\"M1 6h12\"/></svg>after</span></p>\n" +
                     grid(figures));
}

std::string activations(const json& run) {
  const char* const title = "Salient channels";
  const json& layers = at(run, "layers");
  if (!has(layers, "activations", "salient")) return left_out("channels", title, uncalibrated);
  std::vector<std::string> figures;
  for (const std::string& input : names_in(layers, "activations")) figures.push_back(channel_panel(layers, input));
  return section(
      "channels", title,
      "Mean magnitude of every channel of the activations that linears read, over the calibration text, as a "
      "multiple of the median channel's. A few loud channels are what activation-aware scales protect.",
      "<p class=\"legend\"><span>layer 0<span class=\"ramp\"></span>layer " + std::to_string(layers.size() - 1) +
          "</span></p>\n" + grid(figures) + loudest_table(layers));
}

}  // namespace nibble::mistral::page
