// SPDX-License-Identifier: Apache-2.0
/// @file
/// smoothquant_mistral: a Mistral (or Llama) checkpoint in, one whose linears and their inputs have 8 bits out, smoothed by
/// SmoothQuant, in the formats of llm-compressor that vLLM loads.
#include "pass/program.hpp"

using namespace nibble::mistral;

int main(int argc, char** argv) {
  pass_options defaults;
  defaults.scheme = "W8A8";
  defaults.clip = clip_search::mse;
  defaults.sweeps = 0;
  pass_program program(
      "smoothquant_mistral",
      "Quantizes the linear layers of a Mistral or Llama checkpoint and their inputs with SmoothQuant.", defaults);
  program.offer_methods({methods::smoothquant, methods::smoothquant_gptq, methods::rtn},
                        "SmoothQuant; the same with integer weights rounded by GPTQ; or round to nearest with min-max "
                        "ranges, which needs no calibration");
  program.add_smoothing();
  program.add_clip();
  program.add_sweeps();
  program.add_shrinkage();
  program.add_propagation();
  program.add_solver();
  return program.run(argc, argv);
}
