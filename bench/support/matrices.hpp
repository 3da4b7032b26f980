// SPDX-License-Identifier: Apache-2.0
/// @file
/// The matrix that benches run on: one projection of an 8-billion-parameter model, weights N(0, 0.02²).
#pragma once

#include <random>
#include <vector>

#include "nibble/half.hpp"
#include "nibble/matrix.hpp"

namespace bench {

constexpr nibble::index_t n = 4096, k = 14336;

/// n · k weights. A million different ones, repeated: drawing all takes longer than measuring.
template <class T>
std::vector<T> normal_weights() {
  std::mt19937 engine(1);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<T> weights(static_cast<std::size_t>(n * k));
  const std::size_t drawn = (1u << 20) + 7;
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = i < drawn ? T(normal(engine)) : weights[i - drawn];
  return weights;
}

}  // namespace bench
