// SPDX-License-Identifier: Apache-2.0
#include "pass/factoring.hpp"

#include <cstdio>
#include <string>

namespace nibble::mistral {

void tell(const pass_options& o, index_t layer, layer_input input, const factoring& of) {
  char text[96] = "";
  if (!of.usable)
    std::snprintf(text, sizeof(text), "the inputs' Hessian is not finite, so codes are the nearest");
  else if (of.floored)
    std::snprintf(text, sizeof(text), "the inputs' Hessian has a factor only with its diagonal raised");
  else if (of.damping > static_cast<double>(o.damping))
    std::snprintf(text, sizeof(text), "the inputs' Hessian has a factor only when dampened by %.3g", of.damping);
  if (text[0] == '\0') return;
  std::string names;
  for (const projection p : projections)
    if (input_of(p) == input) names += (names.empty() ? "" : ", ") + projection_name(layer, p);
  tell(o, names + ": " + text);
}

}  // namespace nibble::mistral
