// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rotary position embedding: pairs (i, i + d/2) of a head turned by position · theta^(−2i/d), i < d/2, in the half-split
/// layout of Hugging Face. Source: Su et al., arXiv 2104.09864.
#pragma once

#include <cmath>
#include <vector>

#include "nibble/core.hpp"
#include "nibble/math.hpp"

namespace nibble::mistral {

class rotary_table {
 public:
  rotary_table(index_t head_dim, double theta, index_t positions) : half_(head_dim / 2), theta_(theta) {
    reach(positions);
  }

  bool turns(index_t head_dim, double theta) const { return half_ == head_dim / 2 && theta_ == theta; }
  /// Makes positions [0, positions) known.
  void reach(index_t positions) {
    for (auto* table : {&cosine_, &sine_}) table->reserve(static_cast<size_t>(max(positions, known_) * half_));
    for (; known_ < positions; ++known_)
      for (index_t i = 0; i < half_; ++i) {
        const double angle =
            static_cast<double>(known_) * std::pow(theta_, -static_cast<double>(i) / static_cast<double>(half_));
        cosine_.push_back(static_cast<float>(std::cos(angle)));
        sine_.push_back(static_cast<float>(std::sin(angle)));
      }
  }
  /// Turns head (d) at a known position.
  void rotate(float* head, index_t position) const {
    const float* c = cosine_.data() + position * half_;
    const float* s = sine_.data() + position * half_;
    for (index_t i = 0; i < half_; ++i) {
      const float a = head[i], b = head[i + half_];
      head[i] = a * c[i] - b * s[i];
      head[i + half_] = b * c[i] + a * s[i];
    }
  }
  /// (known positions, d/2)
  const std::vector<float>& cosine() const { return cosine_; }
  const std::vector<float>& sine() const { return sine_; }

 private:
  index_t half_, known_ = 0;
  double theta_;
  std::vector<float> cosine_, sine_;
};

}  // namespace nibble::mistral
