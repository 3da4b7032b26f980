// SPDX-License-Identifier: Apache-2.0
/// @file
/// Perplexity of a text over sliding windows, its standard error, and how far one model's predictions moved from
/// another's on the same windows.
///
/// A text's ids x₀ … xₙ (BOS in front) are read by windows that start at 0, stride, 2·stride, …: each reads `window` ids,
/// predicts the `window` ids one further on, and scores those no earlier window scored.
///     perplexity = exp(Σ −ln p(xᵢ) / N)
/// Errors come from sums by window, since tokens of a window are not independent: with Σᵢ and Nᵢ those of window i, the
/// mean is a ratio ΣΣᵢ / ΣNᵢ, whose error by the linearised ratio estimator is √(W/(W−1) · Σ(Σᵢ − mean·Nᵢ)²) / N, and a
/// perplexity's is perplexity times that. The paired error of an increase takes both models' residuals, each times its
/// perplexity, window by window, before squaring: what is hard in a window is hard for both and cancels.
/// Source: Cochran, Sampling Techniques, 1977, section 2.11 (ratio estimators).
///
/// How far predictions moved is KL(first ‖ this) at every scored position: its mean; its 99 % quantile by nearest rank,
/// the least value that at least 99 % of the positions do not exceed; and the share of positions whose most probable
/// token stayed. The same by position in the window, since errors may add up along a context.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "config.hpp"
#include "forward.hpp"
#include "safetensors.hpp"

namespace nibble::mistral {

struct window_options {
  index_t window = 1024;    ///< ids read at once; never more than the model's context
  index_t stride = 512;     ///< ids from one window's start to the next; at most `window`
  index_t max_windows = 0;  ///< the first so many; 0: all
};

/// One window: reads ids [begin, begin + length), predicts the ids one further on, and scores the last `scored` of them.
struct window {
  index_t begin, length, scored;
};

/// The windows over `ids` ids, BOS counted. @throws error when there are fewer than two ids; usage_error for options that
/// make no windows, such as a stride beyond the window.
std::vector<window> plan_windows(index_t ids, index_t context, const window_options& options);

/// A model to evaluate. Referenced objects outlive it.
struct evaluated_model {
  const checkpoint& files;
  const config& settings;
  /// Its layers; load_layer(files, settings, index) unless set. For weights that are not on disk.
  std::function<layer_weights(index_t)> layer;
};

/// Takes batches of windows through models, and scores what they predict.
class batch_scorer {
 public:
  virtual ~batch_scorer() = default;
  /// Scores the predictions of these rows of the batch, in their order, a target and a score each.
  /// @param first  Whether the next models are compared with this one on the batch; the others' scores tell divergences from it.
  /// @param step  Called after each layer.
  virtual void score(const evaluated_model& m, const batch& tokens, const std::vector<row_range>& rows,
                     const int32_t* targets, token_score* scores, bool first, const std::function<void()>& step) = 0;
};

/// Parts of the window that predictions are compared by; fewer when the window reads fewer ids.
inline constexpr index_t position_bins = 16;

/// How far predictions moved from the first model's, at some positions.
struct prediction_shift {
  index_t tokens = 0;        ///< positions compared
  double divergence = 0;     ///< mean KL(first ‖ this), nats
  double divergence_99 = 0;  ///< its 99 % quantile, nats
  double agreement = 1;      ///< share of positions with the first's most probable token
};

/// The shift of predictions made after reading first + 1 … last ids of a window.
struct position_shift : prediction_shift {
  index_t first = 0, last = 0;  ///< positions [first, last)
};

/// Sums over the windows and what follows from them.
struct evaluation {
  index_t windows = 0, tokens = 0;  ///< tokens: those scored
  double perplexity = 0;
  double standard_error = 0;  ///< of perplexity; NaN for a single window
  // Against the first model; of that model itself there is nothing to say.
  double increase = 0;                      ///< perplexity − the first model's
  double increase_standard_error = 0;       ///< paired
  prediction_shift shift;                   ///< over all positions
  std::vector<position_shift> by_position;  ///< position_bins parts of the longest window, those with tokens
};

/// Adds an evaluation's shift to `out`: kl_divergence, kl_divergence_99, top_token_agreement, and kl_by_position, an
/// array of those with "first", "last" and "tokens".
void add_shift(nlohmann::ordered_json& out, const evaluation& e);

/// Told after each layer of each model: steps done, steps in all.
using evaluation_progress = std::function<void(index_t, index_t)>;

/// Evaluates every model on the same windows; the first is what the others are compared with. Windows go through in
/// batches, so that activations take at most `activation_bytes` a model (or one window), whatever the text.
/// @param scorer  null: the host.
/// @throws error when the models do not share a vocabulary, or an id is beyond it.
std::vector<evaluation> evaluate(const std::vector<evaluated_model>& models, const std::vector<int32_t>& ids,
                                 const std::vector<window>& windows, const evaluation_progress& progress = nullptr,
                                 index_t activation_bytes = index_t(1) << 30, batch_scorer* scorer = nullptr);

}  // namespace nibble::mistral
