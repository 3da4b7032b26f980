// SPDX-License-Identifier: Apache-2.0
/// @file
/// Linears and their inputs rounded as a packing says, integers and floats alike.
///     integer  scale = max(amax / 127, 2⁻¹²⁶), x' = clamp(round_even(x / scale), −127, 127) · scale     (row smooth; vLLM)
///     e4m3     scale = amax / 448, x' = e4m3(x / scale) · scale                                         (row quantize)
/// compressed-tensors takes amax / 127.5 for integers, and codes down to −128; the static scale is the checkpoint's for all.
#pragma once

#include "packed_writer.hpp"
#include "quantization.hpp"

namespace nibble::mistral {

/// Inputs of a token that share a scale under input_rounding::token_block, and the side of a block of fp8 weights.
inline constexpr index_t coded_block = 128;

/// The scale of inputs whose largest |x| is `amax`, in the dtype it is stored in.
float input_scale(float amax, code_type type, dtype stored);

/// A token's inputs x (k), rounded in place. @pre how.scale > 0 for input_rounding::tensor.
void round_row(float* x, index_t k, const rounded_inputs& how);

/// Inputs x (m, k), rounded in place, but for tokens that hold NaN or infinity: whoever reads outputs is to find those.
void round_inputs(matrix<float> x, const rounded_inputs& how);

/// Codes of w (n, k) in the whole range of each group.
quantized_linear round_weights(matrix<const float> w, const packing& how, dtype stored);

/// w (n, k) ← what q, of groups of columns as they lie, stands for.
void unround(const quantized_linear& q, const packing& how, dtype stored, matrix<float> w);
/// The same of any q.
void restore(const quantized_linear& q, const packing& how, dtype stored, matrix<float> w);

}  // namespace nibble::mistral
