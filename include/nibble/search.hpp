// SPDX-License-Identifier: Apache-2.0
/// @file
/// Ways of choosing the range of a group before it becomes (scale, zero): the words `fit` is told its method in.
/// Whatever the method, NaN and ±inf are left out of ranges and errors, and a group that has nothing else has range 0.
#pragma once

#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN

/// The least and the greatest weight.
struct minmax {};

/// Both ends shrunk together by 1 − i / grid, i = 0 … ⌊max_shrink · grid⌋ − 1; the first least Σ |x' − x|^norm wins,
/// summed in the compute dtype's precision as the packages do (see fit.hpp).
struct mse_search {
  int grid = 100;           ///< steps from 1 to 0
  double max_shrink = 0.2;  ///< share of `grid` that is searched; double, for the number of steps is truncated
  float norm = 2.4f;
  int patience = 5;  ///< stop after so many steps in a row in which no group of the *matrix* improved; 0: never
};

inline constexpr mse_search llm_compressor_grid{100, 0.2, 2.4f, 5};
inline constexpr mse_search gptq_grid{100, 0.8, 2.4f, 0};
inline constexpr mse_search autoawq_grid{20, 0.5, 2.0f, 0};

/// Low and high end shrunk each by itself: a grid of (steps + 1)² ranges, then a fine search around the best and least
/// squares for the scale; symmetric schemes have one end. Least Σ importance · (x' − x)²; never worse than minmax.
struct ends_search {
  int steps = 5;            ///< ends tried are 1, 1 − max_shrink / steps, …, 1 − max_shrink of the minmax ones
  float max_shrink = 0.5f;  ///< in [0, 1)
  int refinements = 3;      ///< rounds of fine search
};

/// From the (100 − p)-th to the p-th percentile, interpolated linearly; symmetric schemes take the p-th of |x|.
struct percentile {
  float p = 99.9f;  ///< in [50, 100]
};

NIBBLE_NAMESPACE_END
