// SPDX-License-Identifier: Apache-2.0
#include "gguf/choose.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

namespace nibble::mistral {
namespace {

/// An option that no other of its tensor beats in both bytes and error.
struct step {
  size_t option;
  std::uint64_t extra;  ///< bytes beyond the tensor's smallest option
  double error;         ///< weighted
};

/// Bytes strictly up, errors strictly down.
std::vector<step> undominated(const tensor_options& row) {
  std::vector<size_t> order(row.options.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const type_option &x = row.options[a], &y = row.options[b];
    return x.bytes != y.bytes ? x.bytes < y.bytes : x.error < y.error;
  });
  std::vector<step> steps;
  const std::uint64_t least = row.options[order.front()].bytes;
  for (const size_t option : order) {
    const double error = row.weight * row.options[option].error;
    if (steps.empty() || error < steps.back().error)
      steps.push_back({option, row.options[option].bytes - least, error});
  }
  return steps;
}

using steps_by_tensor = std::vector<std::vector<step>>;

steps_by_tensor undominated(const std::vector<tensor_options>& table) {
  steps_by_tensor all;
  for (const tensor_options& row : table) all.push_back(undominated(row));
  return all;
}

/// What bytes are counted in: what all differences have in common, or the least power of 2 that makes few enough of `range`.
std::uint64_t unit_of(const steps_by_tensor& all, std::uint64_t range, std::uint64_t units) {
  std::uint64_t common = 0;
  for (const auto& steps : all)
    for (const step& s : steps) common = std::gcd(common, s.extra);
  std::uint64_t unit = std::max(common, std::uint64_t(1));
  if (range / unit <= units) return unit;
  for (unit = 1; range / unit > units;) unit *= 2;
  return unit;
}

}  // namespace

byte_range bytes_of_choices(const std::vector<tensor_options>& table) {
  byte_range range;
  for (size_t i = 0; i < table.size(); ++i) {
    const std::vector<step> steps = undominated(table[i]);
    const std::uint64_t least = table[i].options[steps.front().option].bytes;
    range.least += least;
    range.most += least + steps.back().extra;
  }
  return range;
}

chosen_types choose_types(const std::vector<tensor_options>& table, std::uint64_t budget, std::uint64_t units) {
  const steps_by_tensor all = undominated(table);
  const byte_range range = bytes_of_choices(table);
  const std::uint64_t unit = unit_of(all, range.most - range.least, units);
  const auto cost = [&](const step& s) { return static_cast<size_t>((s.extra + unit - 1) / unit); };
  // A tensor's rounding adds less than a unit, so no choice costs more than this many.
  const std::uint64_t ends = (range.most - range.least) / unit + table.size();
  const auto last = static_cast<size_t>(std::min((budget - range.least) / unit, ends));

  // best[s]: the least error of the tensors so far within s units; taken[i][s]: the step that tensor i makes for it.
  std::vector<double> best(last + 1, 0.0), next(last + 1);
  std::vector<std::vector<std::uint8_t>> taken(all.size(), std::vector<std::uint8_t>(last + 1));
  for (size_t i = 0; i < all.size(); ++i) {
    std::fill(next.begin(), next.end(), std::numeric_limits<double>::infinity());
    for (size_t k = 0; k < all[i].size(); ++k) {
      const size_t first = cost(all[i][k]);
      const double error = all[i][k].error;
      for (size_t s = first; s <= last; ++s) {
        const double sum = best[s - first] + error;
        if (sum < next[s]) next[s] = sum, taken[i][s] = static_cast<std::uint8_t>(k);
      }
    }
    best.swap(next);
  }
  // As many units as the least error needs, and no more.
  auto left = static_cast<size_t>(std::find(best.begin(), best.end(), best[last]) - best.begin());
  chosen_types out;
  out.options.resize(all.size());
  for (size_t i = all.size(); i-- > 0;) {
    const step& s = all[i][taken[i][left]];
    left -= cost(s);
    out.options[i] = s.option;
    out.bytes += table[i].options[s.option].bytes;
  }
  for (size_t i = 0; i < all.size(); ++i) out.error += table[i].weight * table[i].options[out.options[i]].error;
  return out;
}

}  // namespace nibble::mistral
