// SPDX-License-Identifier: Apache-2.0
/// @file
/// Ways of choosing the range of a group before it becomes (scale, zero): the words `fit` is told its method in.
/// Every error is summed in one order, so that vectors and threads change no bit of it: float terms in 16 interleaved
/// partial sums over 1024 elements (element i into sum i mod 16, row after row), folded 16 → 8 → 4 → 2 → 1, folds added
/// up in double. Whatever the method, NaN and ±inf are left out of ranges and errors, and a group that has nothing else
/// has range 0; an importance that is not a finite positive number counts as 0.
#pragma once

#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN

/// The least and the greatest weight.
struct minmax {};

/// Both ends shrunk together by 1 − i / grid, i = 0 … ⌊max_shrink · grid⌋ − 1; the first with the least
/// Σ importance · |x' − x|^norm wins. As in the packages, every operation is rounded to the compute dtype, and so are
/// the norm itself and the sum's result.
struct mse_search {
  int grid = 100;           ///< steps from 1 to 0; at least 1
  double max_shrink = 0.2;  ///< share of `grid` searched, in [0, 1]; double, for the number of steps is truncated
  float norm = 2.4f;        ///< above 0
  int patience = 5;         ///< stop after so many steps in a row in which no group of the *matrix* improved; 0: never
};

inline constexpr mse_search llm_compressor_grid{100, 0.2, 2.4f, 5};
inline constexpr mse_search gptq_grid{100, 0.8, 2.4f, 0};
inline constexpr mse_search autoawq_grid{20, 0.5, 2.0f, 0};

/// Ours: each end of the range shrunk by itself. Squared errors, weighted by importance; never worse than minmax.
/// 1. The range, widened to 0 in every convention, has its low end times 1 − i·d and its high end times 1 − j·d,
///    d = max_shrink / steps, i and j = 0 … steps. An end that is 0 stays. Symmetric schemes have one end, and
///    2·steps steps of d / 2.
/// 2. `refinements` rounds try scale · (1 − e) and scale · (1 + e) around the best, its zero point kept; e begins as
///    half of what step 1 went by, and halves each round.
/// docs/fit.md says how close the defaults come to an exhaustive search, and what they cost.
struct ends_search {
  int steps = 4;            ///< at least 1
  float max_shrink = 0.5f;  ///< in [0, 1)
  int refinements = 4;
};

/// From the (100 − p)-th to the p-th percentile, interpolated linearly; symmetric schemes take the p-th of |x|.
struct percentile {
  float p = 99.9f;  ///< in [50, 100]
};

NIBBLE_NAMESPACE_END
