// SPDX-License-Identifier: Apache-2.0
/// @file
/// What an error in one tensor does to a model's predictions, measured on the model itself in one pass over a few hundred tokens. Every
/// tensor gets noise of the same size. What a linear's noise does to the output of its block, attention or MLP, is taken where the block
/// adds it to the residual stream, x, and compared with noise that a second stream, x̃, has at that place, which comes from noisy
/// embeddings and goes on to the end, where it has a divergence:
///     KL(tensor) = KL(x̃) · mean over tokens of |block(noisy tensor) − block|² / |x̃ − x|² behind the block
/// So whatever the layers above do to noise, damp it or amplify it, they are taken to do to both. The embedding has KL(x̃), the output
/// matrix a divergence of its own, of noisy logits. Where noise is small, divergence is proportional to its square, and that of independent
/// errors adds up.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "mistral/forward.hpp"

namespace nibble::mistral {

/// A weight w gets ±noise_size times the root mean square of its group's weights, 32 to a row's group, the sign by a hash of its place. The
/// relative squared error is noise_size².
inline constexpr float noise_size = 0.1f;
inline constexpr index_t noise_group = 32;

/// Adds noise to rows (count, k) of which the first is row `first` of its tensor.
void add_noise(matrix<float> rows, index_t first);

/// KL(model ‖ model with a noisy tensor), nats a token, by the tensor's name in a GGUF file: embedding, linears, output matrix. Where the
/// embedding is the output matrix too it has the sum of both.
/// @param sample  texts of two tokens or more. @param told  called as layers are done, with how many.
/// @throws error as embed does, and where activations are NaN or infinite.
std::map<std::string, double> measure_sensitivity(const checkpoint& files, const config& c, const batch& sample,
                                                  const std::function<void(index_t)>& told);

}  // namespace nibble::mistral
