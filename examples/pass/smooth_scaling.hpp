// SPDX-License-Identifier: Apache-2.0
/// @file
/// SmoothQuant's scales (docs/smooth.md), their strength judged by what rounding linears and their inputs together does.
#pragma once

#include <optional>
#include <vector>

#include "pass/rounded_output.hpp"
#include "pass/scaling.hpp"

namespace nibble::mistral {

/// What was found for a group.
struct smooth_result {
  std::vector<float> scale;
  std::optional<float> strength;  ///< α; empty: no smoothing
  double identity_loss = 0, loss = 0;
};

/// Whether a group's input is to be smoothed: those that norms make, and others where the options say so.
bool is_smoothed(const pass_options& o, const scale_group& group);

/// Scales of the strength that is asked for; or, of those of a grid and none, the scales that lose least, so that they never
/// lose more than no smoothing does. @param judge of the group's linears, w as it was.
smooth_result search_smooth_scale(const layer_task& t, const scale_group& group, const layer_weights& w,
                                  const rounding_judge& judge);

}  // namespace nibble::mistral
