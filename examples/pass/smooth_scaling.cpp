// SPDX-License-Identifier: Apache-2.0
#include "pass/smooth_scaling.hpp"

#include "nibble/host/observe.hpp"
#include "nibble/smooth.hpp"

namespace nibble::mistral {
namespace {

/// Strengths of the grid, i / grid for i from 0 to grid; then those halfway to the best one's neighbours.
constexpr int grid = 10;

}  // namespace

bool is_smoothed(const pass_options& o, const scale_group& group) {
  return group.norm != nullptr || o.smoothed_inputs == smoothing::all ||
         (group.input == layer_input::down && o.smoothed_inputs == smoothing::down);
}

smooth_result search_smooth_scale(const layer_task& t, const scale_group& group, const layer_weights& w,
                                  const rounding_judge& judge) {
  const std::vector<float>& activation = t.on.sample(group.input).largest;
  std::vector<float> weight(activation.size(), 0.0f);
  for (const projection p : group.linears) host::absolute_maximum(w.at(t.c, p), weight.data());
  smooth_result best;
  best.scale.assign(activation.size(), 1.0f);
  best.identity_loss = best.loss = judge.loss(best.scale);
  const auto consider = [&](float strength) {
    std::vector<float> s(activation.size());
    for (size_t j = 0; j < s.size(); ++j) s[j] = smooth_scale(activation[j], weight[j], strength);
    round_to_fold(group, w, t.stored, s);
    const double loss = judge.loss(s);
    if (!t.o.strength.searched() || loss < best.loss)
      best.scale = std::move(s), best.strength = strength, best.loss = loss;
  };
  if (!t.o.strength.searched()) {
    consider(*t.o.strength.fixed);
    return best;
  }
  for (int i = 0; i <= grid; ++i) consider(static_cast<float>(i) / grid);
  if (!best.strength) return best;
  const float middle = *best.strength, half = 0.5f / grid;
  if (middle > half) consider(middle - half);
  if (middle < 1.0f - half) consider(middle + half);
  return best;
}

}  // namespace nibble::mistral
