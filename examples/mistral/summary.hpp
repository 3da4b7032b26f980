// SPDX-License-Identifier: Apache-2.0
/// @file
/// A few hundred numbers that tell of a layer what a report draws: how weights are distributed before and after, how much
/// of its range each group kept, and how unequal the channels of an activation are. None of them grows with the layer.
#pragma once

#include <array>
#include <nlohmann/json.hpp>
#include <vector>

#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"

namespace nibble::mistral {

/// Weights in units of a root mean square: counts of [−4, 4) in bins of 1/8; what lies beyond is in the outermost bins.
struct weight_histogram {
  static constexpr int bins = 64;
  static constexpr double low = -4.0, width = 0.125;
  double unit = 0;      ///< the root mean square
  index_t counted = 0;  ///< weights looked at
  std::array<index_t, bins> counts{};
};

/// Of about a million weights of w (n, k) at most, in rows that lie evenly apart. The weight counted is w(i, j) · rows[i]
/// / cols[j]; null means 1. @param unit the root mean square to count in; 0: w's own. @pre w is finite.
weight_histogram count_weights(matrix<const float> w, double unit = 0, const float* rows = nullptr,
                               const float* cols = nullptr);

/// Shares of the min-max range that the groups of a linear kept: step sizes (scales) chosen / those of the whole range.
struct range_kept {
  static constexpr std::array<double, 5> levels = {0.05, 0.25, 0.5, 0.75, 0.95};
  double mean = 1;
  std::array<double, 5> quantiles{};  ///< by nearest rank, at `levels`
};

/// @pre chosen and whole have the same shape, not empty; whole's scales are positive.
range_kept compare_ranges(matrix<const params> chosen, matrix<const params> whole);

/// How unequal an activation's channels are, by mean magnitude.
struct channel_profile {
  struct point {
    index_t rank;  ///< 1: the loudest
    double magnitude;
  };
  struct channel {
    index_t index;
    double magnitude, share;  ///< share: of the sum over all channels
  };
  double median = 0;
  std::vector<point> profile;    ///< at ranks about √2 apart, the first and the last included
  std::vector<channel> salient;  ///< the loudest, at most eight, in order
};

/// @param magnitude mean |x| of each channel; not empty.
channel_profile rank_channels(const std::vector<float>& magnitude);

nlohmann::ordered_json to_json(const weight_histogram& before, const weight_histogram& after);
nlohmann::ordered_json to_json(const range_kept& r);
nlohmann::ordered_json to_json(const channel_profile& p);

/// JSON to be read by people as well: two spaces a level, lists of numbers on one line.
std::string readable(const nlohmann::ordered_json& json);

}  // namespace nibble::mistral
