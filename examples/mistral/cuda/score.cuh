// SPDX-License-Identifier: Apache-2.0
/// @file
/// How predictions fare, from tiles of logits on a GPU: −ln p of the target, the most probable token, and the divergence
/// from a reference model's, with running maxima and sums as `score` of forward.hpp.
#pragma once

#include <cmath>

#include "mistral/cuda/detail/score.cuh"
#include "mistral/cuda/rows.cuh"
#include "mistral/forward.hpp"

namespace nibble::mistral::cuda {

using detail::score_state;

/// Adds logits (tokens, entries) of the vocabulary from `entry` on to states (tokens), which the tile at entry 0 begins.
/// @param reference the reference model's logits of the same entries; without data: none.
/// @param targets (tokens) ids that came. @pre tiles come in rising order, each but the first after the one before.
/// @returns bad_shape, misaligned, too_large for an id beyond 31 bits, or what launch says.
inline status score_tile(matrix<const float> logits, matrix<const float> reference, index_t entry,
                         const int32_t* targets, score_state* states, cudaStream_t stream) {
  if (!well_formed(logits) || entry < 0) return status::bad_shape;
  if (reference.data != nullptr &&
      (!well_formed(reference) || reference.rows != logits.rows || reference.cols != logits.cols))
    return status::bad_shape;
  if (logits.empty()) return status::ok;
  if (targets == nullptr || states == nullptr) return status::bad_shape;
  if (!aligned(logits) || !aligned(reference) || !detail::aligned(targets) ||
      reinterpret_cast<std::size_t>(states) % alignof(score_state) != 0)
    return status::misaligned;
  if (logits.cols > 2147483647 - entry) return status::too_large;
  return dispatch(tuning::rows{}, [&](auto tuned) {
    return launch(detail::score_kernel<decltype(tuned)>, logits.rows, tuned.value.threads, 0, stream, logits, reference,
                  entry, targets, states);
  });
}

/// What the sums over the whole vocabulary say. @param compared whether there were a reference's logits.
inline token_score finish(const score_state& s, bool compared) {
  const auto log_sum = [](const detail::logit_sums& sums) { return double{sums.largest} + std::log(sums.sum); };
  token_score score;
  score.nll = log_sum(s.own) - double{s.target};
  if (!compared) return score;
  score.divergence = max(0.0, s.cross / s.reference.sum - log_sum(s.reference) + log_sum(s.own));
  score.same_top = s.own.top == s.reference.top;
  return score;
}

}  // namespace nibble::mistral::cuda
