// SPDX-License-Identifier: Apache-2.0
#include "vector_math.hpp"

namespace nibble::mistral {

NIBBLE_VECTORISED void swiglu(float* gate, const float* up, index_t n) {
  for (index_t i = 0; i < n; ++i) gate[i] = gate[i] / (1.0f + fast_exp(-gate[i])) * up[i];
}

NIBBLE_VECTORISED float softmax_numerators(float* s, index_t first, index_t last, index_t n) {
  const auto larger = [](float a, float b) { return a > b ? a : b; };
  float lanes[16];
  for (float& lane : lanes) lane = s[first];
  index_t j = first;
  for (; j + 16 <= last; j += 16)
    for (index_t lane = 0; lane < 16; ++lane) lanes[lane] = larger(s[j + lane], lanes[lane]);
  float largest = lanes[0];
  for (const float lane : lanes) largest = larger(lane, largest);
  for (; j < last; ++j) largest = larger(s[j], largest);
  for (float& lane : lanes) lane = 0;
  j = first;
  for (; j + 16 <= last; j += 16)
    for (index_t lane = 0; lane < 16; ++lane) {
      const float e = fast_exp(s[j + lane] - largest);
      s[j + lane] = e;
      lanes[lane] += e;
    }
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  for (; j < last; ++j) sum += s[j] = fast_exp(s[j] - largest);
  for (j = 0; j < first; ++j) s[j] = 0;
  for (j = last; j < n; ++j) s[j] = 0;
  return 1.0f / sum;
}

}  // namespace nibble::mistral
