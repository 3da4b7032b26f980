// SPDX-License-Identifier: Apache-2.0
/// @file
/// Statistics of activations X (m, k), m tokens of k channels, that calibration gathers chunk by chunk:
///     absolute mean      x̄_j = (1/m) Σ_i |x_ij|        AWQ's salience (arXiv 2306.00978, section 3.2)
///     absolute maximum   max_i |x_ij|                   SmoothQuant (arXiv 2211.10438, eq. 4)
///     Gram matrix        G = (1/m) Xᵀ X                 E‖ΔW·x‖² = tr(ΔW·G·ΔWᵀ), GPTQ's Hessian up to a factor
/// NaN and ±inf are activations no linear can be judged on: they count as 0, in every column of the grid.
///
/// A Gram matrix of few tokens carries correlations that are chance. It is shrunk towards its diagonal,
///     G' = (1 − λ)·G + λ·diag(G),  0 <= λ <= 1,
/// which keeps every channel's energy. Source: Ledoit and Wolf, J. Multivariate Analysis 88 (2004), with another target.
#pragma once

#include "nibble/core.hpp"
#include "nibble/math.hpp"

NIBBLE_NAMESPACE_BEGIN

/// What the statistics see of activation `x`. By a mask: written as a choice it becomes a branch, and loops stay scalar.
NIBBLE_HOST_DEVICE constexpr float observed(float x) noexcept {
  const uint32_t mask = 0u - static_cast<uint32_t>(is_finite(x));
  return bit_cast<float>(bit_cast<uint32_t>(x) & mask);
}

/// Element (i, j) of the shrunk Gram matrix. @pre 0 <= shrinkage <= 1.
NIBBLE_HOST_DEVICE constexpr float shrink(float g, index_t i, index_t j, float shrinkage) noexcept {
  return i == j ? g : (1.0f - shrinkage) * g;
}

NIBBLE_NAMESPACE_END
