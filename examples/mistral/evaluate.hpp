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
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "config.hpp"
#include "forward.hpp"
#include "safetensors.hpp"
#include "tokenizer.hpp"

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

/// A text's ids with BOS in front. @throws error naming the file when it cannot be read, is not UTF-8, or is empty, and
/// when the tokenizer has no BOS.
std::vector<int32_t> read_text_ids(const std::filesystem::path& file, const tokenizer& tok);

/// A model to evaluate. Referenced objects outlive it.
struct evaluated_model {
  const checkpoint& files;
  const config& settings;
  /// Its layers; load_layer(files, settings, index) unless set. For weights that are not on disk.
  std::function<layer_weights(index_t)> layer;
};

/// Sums over the windows and what follows from them.
struct evaluation {
  index_t windows = 0, tokens = 0;  ///< tokens: those scored
  double perplexity = 0;
  double standard_error = 0;  ///< of perplexity; NaN for a single window
  // Against the first model; that model's own are zero, one and zero.
  double increase = 0;                 ///< perplexity − the first model's
  double increase_standard_error = 0;  ///< paired
  double divergence = 0;               ///< mean KL(first ‖ this), nats
  double agreement = 1;                ///< share of positions with the first's most probable token
};

/// Told after each layer of each model: steps done, steps in all.
using evaluation_progress = std::function<void(index_t, index_t)>;

/// Evaluates every model on the same windows; the first is what the others are compared with. Windows go through in
/// batches, so that activations take at most `activation_bytes` a model (or one window), whatever the text.
/// @throws error when the models do not share a vocabulary, or an id is beyond it.
std::vector<evaluation> evaluate(const std::vector<evaluated_model>& models, const std::vector<int32_t>& ids,
                                 const std::vector<window>& windows, const evaluation_progress& progress = nullptr,
                                 index_t activation_bytes = index_t(1) << 30);

}  // namespace nibble::mistral
