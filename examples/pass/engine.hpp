// SPDX-License-Identifier: Apache-2.0
/// @file
/// Who does a pass's arithmetic: the host's processors, or a GPU. An engine holds the calibration tokens on their way through
/// the layers and the statistics of the layer they are in, and judges that layer's linears under them; layer.cpp and
/// pass.cpp say what is done in which order, for all engines alike.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mistral/forward.hpp"
#include "mistral/gpu.hpp"
#include "mistral/packed_writer.hpp"
#include "mistral/summary.hpp"
#include "pass/phases.hpp"

namespace nibble::mistral {

/// Steps by which clip_search::gram takes each end of a range in.
inline constexpr int clip_steps = 6;

/// Tokens, spread over all of them, that SmoothQuant judges linears on: as many at least, where there are, and less than twice as many.
inline constexpr index_t smoothing_tokens = 1024;

/// Tokens, for each channel of the widest input, on which drift is seen unless the user says how many samples: more of them gave no
/// better codes that could be told from chance (docs/gptq.md).
inline constexpr index_t drift_tokens_per_channel = 40;

/// Bytes for what o or down reads: of as many sequences as they hold the host computes it once.
inline constexpr index_t kept_bytes = index_t(256) << 20;

/// Tokens of the first sequences that a block's loss is measured on.
inline constexpr index_t block_loss_tokens = 4096;

/// How many of the first sequences that is: those that end within as many tokens, and one at least. @param starts as batch::starts
inline index_t block_loss_sequences(const std::vector<index_t>& starts) {
  const auto beyond = std::upper_bound(starts.begin(), starts.end(), block_loss_tokens);
  return max(index_t(1), static_cast<index_t>(beyond - starts.begin()) - 1);
}

/// Channels of an input.
inline index_t width(const config& c, layer_input input) {
  return input == layer_input::down ? c.intermediate : input == layer_input::o ? c.q_width() : c.hidden;
}

/// How each projection of a layer is packed; empty where it is left as it was.
using layer_packing = std::array<std::optional<packing>, 7>;

inline bool is_packed(const layer_packing& how, projection p) {
  return how[static_cast<size_t>(p)].has_value();
}

/// A projection's groups, and its scheme. @pre is_packed(how, p).
struct packed {
  index_t group;
  any_scheme scheme;

  packed(const layer_packing& how, projection p, dtype stored)
      : group(how[static_cast<size_t>(p)]->group), scheme(scheme_of(*how[static_cast<size_t>(p)], stored)) {}
};

/// A linear's codes, and what became of it.
struct chosen_codes {
  quantized_linear q;
  double loss = 0;   ///< tr(ΔW·G'·ΔWᵀ), scales undone
  range_kept range;  ///< against min-max ranges of the same weights
};

/// What was seen of an input of linears, and how many tokens stand for all.
struct input_sample {
  index_t tokens = 0;          ///< that were seen
  index_t kept = 0;            ///< every so many-th of them
  std::vector<float> largest;  ///< (k): max |x| over all of them
};

class engine {
 public:
  virtual ~engine() = default;

  /// "2 threads", "NVIDIA H200".
  virtual std::string name() const = 0;
  virtual bool on_gpu() const = 0;
  /// Where it spent its time.
  virtual phase_times times() const = 0;

  /// Activations of the calibration tokens: those before the first layer …
  virtual void embed() = 0;
  /// … or what get() gave once.
  virtual void set(std::vector<float> x) = 0;
  /// x (tokens, hidden), and as much again where the original model's activations are followed too; valid until the next call.
  virtual const std::vector<float>& get() = 0;
  /// Through a layer of the checkpoint, or through w or a half of it, which was gathered last.
  virtual void forward(index_t layer) = 0;
  virtual void forward(const layer_weights& w, layer_part part) = 0;

  /// Statistics of what the linears of a layer of the checkpoint read, whose weights w are. The activations become its output, unless `keep`.
  virtual void gather(index_t layer, const layer_weights& w, bool keep) = 0;
  /// Of what the linears of a half of w read, whose activations stay. Where a layer is quantized half by half, in this order: `first`, or
  /// `both` where scales are to be found, of the half as the checkpoint has it; `last`, once the linears that read the first input are
  /// quantized; forward(); attention, then mlp. The original model's activations, where they are followed, go through the half as the
  /// checkpoint has it by `last`; drift is seen of the first input by `first` and `both`, of the last by `last`.
  /// @param w  is as it was on return.
  /// @param room  bytes that may be taken to keep what the last linear reads for forward(), by `last`: what comes before it in the half must
  /// not change any more.
  virtual void gather_half(index_t layer, layer_weights& w, layer_part half, half_inputs seen, index_t room) = 0;
  /// NaN and ±inf among what was gathered, each counted as 0 otherwise.
  virtual index_t non_finite() const = 0;
  /// Lets the statistics go.
  virtual void forget() = 0;
  /// x̄ of an input's channels.
  virtual const std::vector<float>& absolute_mean(layer_input input) const = 0;
  /// Of the keys and values that the layer, or its attention by `last`, made when it was gathered. @pre the options ask for it.
  virtual const cache_maxima& largest_cached() const = 0;
  /// What SmoothQuant looks at. @pre the options ask for it, as for what is told of samples below.
  virtual const input_sample& sample(layer_input input) const = 0;

  /// What the next calls are about: these linears of w as they are now, until w changes or hold() is called again.
  virtual void hold(layer_weights& w, const std::vector<projection>& linears) = 0;
  /// Output error of rounding to nearest with min-max ranges.
  virtual double unscaled_loss(projection p, const packed& as) = 0;
  /// sum (inputs) += how much each weight of a column is of its group's largest.
  virtual void add_importance(projection p, const packed& as, double* sum) = 0;
  /// Output error of rounding w · diag(s), ranges found as the codes' will be but for the Gram matrix; where GPTQ chooses the codes, of
  /// what it chooses for judged_rows, and loss_elsewhere().
  virtual double scaled_loss(projection p, const packed& as, const float* s) = 0;
  /// Mean squared error of the attention's or the MLP's output on some tokens when what reads `input` is rounded.
  virtual double block_loss(layer_input input, const layer_packing& how, const float* s) = 0;

  /// Output error over the sample, of each held linear, of rounding W·diag(s) in whole ranges as `how` says, and x/s as `inputs`, one a
  /// linear, say: the mean over its tokens of ‖x'·W'ᵀ − x·Wᵀ‖².
  virtual std::vector<double> rounded_losses(const layer_packing& how, const std::vector<float>& s,
                                             const std::vector<rounded_inputs>& inputs) = 0;
  /// The same of w's linear p, whose columns are scaled by s already, once it is what q stands for; w needs not be held, and of_row is
  /// as below.
  virtual double rounded_loss(const layer_weights& w, projection p, const packing& how, const quantized_linear& q,
                              const std::vector<float>& s, const rounded_inputs& inputs, const float* of_row) = 0;
  /// Σ_j importance_j·(x_j/s_j − rounded)² of each token of the sample, all of them under one scale: (scales, kept tokens).
  virtual std::vector<double> input_costs(layer_input input, const std::vector<float>& s,
                                          const std::vector<double>& importance, code_type type,
                                          const std::vector<float>& scales) = 0;

  /// Codes of w's linear p, whose columns are scaled by s (inputs) already; w needs not be held. @param of_row (outputs) what rows were
  /// divided by, null for 1.
  virtual chosen_codes choose_codes(const layer_weights& w, projection p, const packed& as, const std::vector<float>& s,
                                    const float* of_row) = 0;
};

struct job;

/// `j` outlives it.
std::unique_ptr<engine> host_engine(const job& j);
/// @throws error when the GPU has too little memory.
std::unique_ptr<engine> gpu_engine(const job& j, const gpu& on);
/// Device memory that gpu_engine takes, bytes. @throws as it.
std::uint64_t gpu_memory(const job& j, const gpu& on);

}  // namespace nibble::mistral
