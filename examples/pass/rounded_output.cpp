// SPDX-License-Identifier: Apache-2.0
#include "pass/rounded_output.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "mistral/rounding.hpp"
#include "nibble/host/parallel.hpp"
#include "pass/input_scale.hpp"

namespace nibble::mistral {

bool scale_in_checkpoint(const layer_packing& how, const std::vector<projection>& linears) {
  return std::any_of(linears.begin(), linears.end(),
                     [&](projection p) { return how[static_cast<size_t>(p)]->inputs == input_rounding::tensor; });
}

std::vector<double> column_energies(const std::vector<matrix<const float>>& linears) {
  constexpr index_t at_once = 128;
  const index_t k = linears.front().cols;
  std::vector<double> sums(static_cast<size_t>(k), 0.0);
  host::parallel_for(ceil_div(k, at_once), [&](index_t tile) {
    const index_t first = tile * at_once, last = min(k, first + at_once);
    for (const auto& w : linears)
      for (index_t row = 0; row < w.rows; ++row)
        for (index_t j = first; j < last; ++j)
          sums[static_cast<size_t>(j)] += static_cast<double>(w(row, j)) * static_cast<double>(w(row, j));
  });
  return sums;
}

float input_scale_of(const layer_task& t, layer_input input, const std::vector<float>& s,
                     const std::vector<double>& energies, code_type type, bool whole) {
  const input_sample& sample = t.on.sample(input);
  std::vector<float> largest(s.size());
  for (size_t j = 0; j < s.size(); ++j) largest[j] = sample.largest[j] / s[j];
  if (whole) return input_scale(*std::max_element(largest.begin(), largest.end()), type, t.stored);
  return choose_input_scale(
      {sample.kept, std::move(largest), sample.tokens, energies}, type, t.stored,
      [&](const std::vector<float>& scales) { return t.on.input_costs(input, s, energies, type, scales); });
}

rounding_judge::rounding_judge(const layer_task& t, layer_input input, const std::vector<projection>& linears,
                               layer_weights& w)
    : t_(t), input_(input), linears_(linears) {
  t.on.hold(w, linears);
  std::vector<matrix<const float>> views;
  for (const projection p : linears) views.push_back(std::as_const(w).at(t.c, p));
  if (scale_in_checkpoint(t.how, linears)) energies_ = column_energies(views);
}

std::vector<double> rounding_judge::losses(const std::vector<float>& s, bool whole) const {
  std::vector<double> energies = energies_;
  for (size_t j = 0; j < energies.size(); ++j) energies[j] *= static_cast<double>(s[j]) * static_cast<double>(s[j]);
  std::vector<rounded_inputs> inputs;
  for (const projection p : linears_) {
    const packing& how = *t_.how[static_cast<size_t>(p)];
    rounded_inputs next = {how.inputs, how.type, 0};
    if (how.inputs == input_rounding::tensor) {
      const bool known = !inputs.empty() && inputs.back().how == how.inputs && inputs.back().type == how.type;
      next.scale = known ? inputs.back().scale : input_scale_of(t_, input_, s, energies, how.type, whole);
    }
    inputs.push_back(next);
  }
  return t_.on.rounded_losses(t_.how, s, inputs);
}

double rounding_judge::loss(const std::vector<float>& s) const {
  const auto all = losses(s);
  return std::accumulate(all.begin(), all.end(), 0.0);
}

}  // namespace nibble::mistral
