// SPDX-License-Identifier: Apache-2.0
/// @file
/// AWQ's scales under ggml's blocks. The columns of the linears that read one input are multiplied by s before they are encoded, and
/// 1/s goes into what makes the input, so that the model computes the same:
///     input       read by     1/s goes into
///     attention   q, k, v     the norm before
///     o           o           the rows of v; heads that share a key and value share s
///     mlp         gate, up    the norm before
///     down        down        the rows of up
/// s is the candidate of row `awq` under which the rounding that will be done loses least of the outputs,
///     tr(ΔW·G·ΔWᵀ),   ΔW = Q(W·diag(s)) · diag(s)⁻¹ − W,
/// Q being the type of each tensor by the plan, with columns of importance a/s²; s = 1 is the first candidate.
/// Source: Lin et al., arXiv 2306.00978.
#pragma once

#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gguf/calibrate.hpp"
#include "gguf/convert.hpp"
#include "nibble/awq.hpp"

namespace nibble::mistral {

/// Candidates for each input.
inline constexpr int scale_candidates = 20;

/// What was found for one input of a layer.
struct found_scale {
  index_t layer = 0;
  layer_input input = layer_input::attention;
  awq_ratio ratio;                     ///< identity: it stays as it was
  double identity_loss = 0, loss = 0;  ///< of all linears that read it
};

/// The scales of a whole model, and what is multiplied and divided by them: vectors, held for all layers.
class folded_gguf_scales {
 public:
  /// Searches the scales of layer `layer` for the plan's types, search and importance. Layers in any order, each once.
  /// @param seen  with correlations.
  void search(index_t layer, const config& c, const gguf_plan& plan, const layer_weights& w,
              const layer_statistics& seen);

  /// Has the plan's tensors of searched layers written scaled, under the importance of scaled columns. This object outlives the plan.
  void apply(gguf_plan& plan) const;

  const std::vector<found_scale>& found() const { return found_; }

 private:
  void keep(index_t layer, const config& c, const gguf_plan& plan, layer_input input, std::vector<float> s);

  std::map<std::string, std::vector<float>> columns_, rows_, importance_;  ///< by the tensor's name in the file
  std::vector<found_scale> found_;
};

/// Whether any linear of the plan is written in blocks, whose rounding scales can make less.
bool any_blocks(const gguf_plan& plan);

/// Layer, input, ratio, whether by weights too, losses.
nlohmann::ordered_json to_json(const std::vector<found_scale>& found);

/// One line: how many inputs are scaled, and how much of the output error is left.
std::string scales_line(const std::vector<found_scale>& found);

}  // namespace nibble::mistral
