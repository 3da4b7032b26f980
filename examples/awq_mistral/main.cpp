// SPDX-License-Identifier: Apache-2.0
/// @file
/// awq_mistral: a Mistral (or Llama) checkpoint in, a quantized one out that vLLM, transformers and AutoAWQ load.
#include "pass/program.hpp"

using namespace nibble::mistral;

int main(int argc, char** argv) {
  pass_program program("awq_mistral", "Quantizes the linear layers of a Mistral or Llama checkpoint with AWQ.");
  program.offer_methods({methods::awq, methods::rtn},
                        "AWQ, or round to nearest with min-max ranges, which needs no calibration");
  program.add_scale_search();
  program.add_clip();
  program.add_sweeps();
  program.add_shrinkage();
  program.add_propagation();
  return program.run(argc, argv);
}
