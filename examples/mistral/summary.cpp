// SPDX-License-Identifier: Apache-2.0
#include "summary.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble::mistral {

namespace {

/// Weights that a histogram looks at, about: enough for a share of 1 % to be known within 1 % of itself.
constexpr index_t weights_counted = index_t(1) << 20;
constexpr size_t salient_channels = 8;

/// The least value that at least `level` of all do not exceed; reorders `values`.
double quantile(std::vector<float>& values, double level) {
  const auto count = static_cast<double>(values.size());
  const auto rank = static_cast<std::ptrdiff_t>(std::max(std::ceil(level * count), 1.0)) - 1;
  std::nth_element(values.begin(), values.begin() + rank, values.end());
  return static_cast<double>(values[static_cast<size_t>(rank)]);
}

double root_mean_square(matrix<const float> w, index_t step) {
  double sum = 0, count = 0;
  for (index_t row = 0; row < w.rows; row += step) {
    for (index_t col = 0; col < w.cols; ++col)
      sum += static_cast<double>(w(row, col)) * static_cast<double>(w(row, col));
    count += static_cast<double>(w.cols);
  }
  return count > 0 ? std::sqrt(sum / count) : 0;
}

bool one_line(const nlohmann::ordered_json& list) {
  return std::none_of(list.begin(), list.end(), [](const auto& each) {
    return each.is_object() || (each.is_array() && std::any_of(each.begin(), each.end(), [](const auto& inner) {
                                  return inner.is_structured();
                                }));
  });
}

/// File names may be no UTF-8, which JSON has to be.
std::string text_of(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

void append(const nlohmann::ordered_json& json, const std::string& indent, std::string& out) {
  if (!json.is_structured() || json.empty() || (json.is_array() && one_line(json))) {
    out += text_of(json);
    return;
  }
  const std::string inner = indent + "  ";
  out += json.is_object() ? "{" : "[";
  bool first = true;
  for (const auto& [key, value] : json.items()) {
    out += (first ? "\n" : ",\n") + inner;
    if (json.is_object()) out += text_of(key) + ": ";
    append(value, inner, out);
    first = false;
  }
  out += "\n" + indent + (json.is_object() ? "}" : "]");
}

}  // namespace

weight_histogram count_weights(matrix<const float> w, double unit, const float* rows, const float* cols) {
  weight_histogram h;
  const index_t step = max(index_t(1), w.size() / weights_counted);
  h.unit = unit > 0 ? unit : root_mean_square(w, step);
  const auto factor = static_cast<float>(h.unit > 0 ? 1.0 / (h.unit * h.width) : 0.0);
  constexpr auto last = static_cast<float>(weight_histogram::bins - 1), shift = static_cast<float>(-h.low / h.width);
  for (index_t row = 0; row < w.rows; row += step) {
    const float by = factor * (rows ? rows[row] : 1.0f);
    for (index_t col = 0; col < w.cols; ++col) {
      const float at = w(row, col) * (cols ? by / cols[col] : by) + shift;
      ++h.counts[static_cast<size_t>(std::clamp(at, 0.0f, last))];
    }
    h.counted += w.cols;
  }
  return h;
}

range_kept compare_ranges(matrix<const params> chosen, matrix<const params> whole) {
  std::vector<float> shares;
  shares.reserve(static_cast<size_t>(chosen.size()));
  for (index_t row = 0; row < chosen.rows; ++row)
    for (index_t group = 0; group < chosen.cols; ++group)
      shares.push_back(chosen(row, group).scale / whole(row, group).scale);
  range_kept r;
  r.mean = std::accumulate(shares.begin(), shares.end(), 0.0) / static_cast<double>(shares.size());
  for (size_t i = 0; i < r.levels.size(); ++i) r.quantiles[i] = quantile(shares, r.levels[i]);
  return r;
}

channel_profile rank_channels(const std::vector<float>& magnitude) {
  std::vector<index_t> order(magnitude.size());
  std::iota(order.begin(), order.end(), index_t(0));
  const auto at = [&](index_t channel) { return magnitude[static_cast<size_t>(channel)]; };
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return at(a) > at(b); });
  const double sum = std::accumulate(magnitude.begin(), magnitude.end(), 0.0);
  channel_profile p;
  p.median = static_cast<double>(at(order[order.size() / 2]));
  for (double rank = 1;; rank *= std::sqrt(2.0)) {
    const size_t here = std::min(static_cast<size_t>(std::lround(rank)), order.size());
    if (p.profile.empty() || p.profile.back().rank != static_cast<index_t>(here))
      p.profile.push_back({static_cast<index_t>(here), static_cast<double>(at(order[here - 1]))});
    if (here == order.size()) break;
  }
  for (size_t i = 0; i < std::min(order.size(), salient_channels); ++i) {
    const auto loud = static_cast<double>(at(order[i]));
    p.salient.push_back({order[i], loud, sum > 0 ? loud / sum : 0});
  }
  return p;
}

nlohmann::ordered_json to_json(const weight_histogram& before, const weight_histogram& after) {
  return {{"root_mean_square", before.unit}, {"weights_counted", before.counted}, {"first_bin", before.low},
          {"bin_width", before.width},       {"before", before.counts},           {"after", after.counts}};
}

nlohmann::ordered_json to_json(const range_kept& r) {
  nlohmann::ordered_json quantiles;
  for (size_t i = 0; i < r.levels.size(); ++i)
    quantiles[std::to_string(std::lround(100 * r.levels[i])) + "%"] = r.quantiles[i];
  return {{"mean", r.mean}, {"quantiles", quantiles}};
}

nlohmann::ordered_json to_json(const channel_profile& p) {
  auto profile = nlohmann::ordered_json::array(), salient = nlohmann::ordered_json::array();
  for (const auto& point : p.profile) profile.push_back({point.rank, point.magnitude});
  for (const auto& each : p.salient)
    salient.push_back({{"channel", each.index},
                       {"mean_magnitude", each.magnitude},
                       {"share", each.share},
                       {"times_median", p.median > 0 ? nlohmann::ordered_json(each.magnitude / p.median) : nullptr}});
  return {{"median_magnitude", p.median}, {"magnitude_by_rank", profile}, {"salient", salient}};
}

std::string readable(const nlohmann::ordered_json& json) {
  std::string out;
  append(json, "", out);
  return out;
}

}  // namespace nibble::mistral
