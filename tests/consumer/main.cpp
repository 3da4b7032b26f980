// SPDX-License-Identifier: Apache-2.0
// Quantizes one group of weights to 4 bits and says how far they moved.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include <nibble/fit.hpp>
#include <nibble/quantize.hpp>

int main() {
  std::array<float, 128> weights;
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = 0.1f * std::sin(static_cast<float>(i * i));

  constexpr nibble::scheme<4> w4;  // asymmetric, as compressed-tensors has it
  const auto [low, high] = std::minmax_element(weights.begin(), weights.end());
  const nibble::params group = nibble::fit(*low, *high, w4);
  float worst = 0;
  for (const float weight : weights) {
    const auto code = nibble::quantize(weight, group, w4);
    worst = std::max(worst, std::abs(nibble::dequantize(code, group, w4) - weight));
  }
  std::printf("scale %.5f, zero point %d, largest error %.5f\n", group.scale, group.zero, worst);
  return worst <= group.scale ? 0 : 1;
}
