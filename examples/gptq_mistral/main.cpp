// SPDX-License-Identifier: Apache-2.0
/// @file
/// gptq_mistral: a Mistral (or Llama) checkpoint in, one quantized with GPTQ out, in the formats that awq_mistral writes.
#include "nibble/gptq.hpp"
#include "pass/program.hpp"

using namespace nibble::mistral;

int main(int argc, char** argv) {
  pass_options defaults;
  defaults.propagate = propagation::quantized;
  defaults.order = nibble::activation_order::static_groups;
  pass_program program("gptq_mistral", "Quantizes the linear layers of a Mistral or Llama checkpoint with GPTQ.",
                       defaults);
  program.offer_methods({methods::gptq, methods::awq_gptq, methods::rtn},
                        "GPTQ; the same for weights that AWQ's scales were folded into, chosen by what GPTQ loses with "
                        "them; or round to nearest with min-max ranges, which needs no calibration");
  program.add_solver();
  program.add_clip();
  program.add_sweeps();
  program.add_shrinkage();
  program.add_propagation();
  program.add_scale_search();
  return program.run(argc, argv);
}
