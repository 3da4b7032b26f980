// SPDX-License-Identifier: Apache-2.0
/// @file
/// The forward pass of a Mistral model in fp32, a layer at a time, over all tokens of many sequences: RMSNorm, rotary
/// embedding, causal grouped-query attention with an optional sliding window, SwiGLU; and the head's scores.
/// A chunk of whole sequences goes through the layer at a time, so scratch memory is bounded whatever the batch.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "config.hpp"
#include "nibble/host/matmul.hpp"
#include "nibble/matrix.hpp"
#include "quantization.hpp"
#include "safetensors.hpp"
#include "weights.hpp"

namespace nibble::mistral {

/// The seven linears of a layer, in the order a token meets them.
enum class projection { q, k, v, o, gate, up, down };
inline constexpr std::array<projection, 7> projections = {
    projection::q, projection::k, projection::v, projection::o, projection::gate, projection::up, projection::down};
/// "self_attn.q_proj", …
const char* to_string(projection p);
/// "model.layers.3.self_attn.q_proj"
std::string projection_name(index_t layer, projection p);
index_t outputs(const config& c, projection p);
index_t inputs(const config& c, projection p);

/// The four activations that linears read; projections that share one share its statistics and its AWQ scale.
enum class layer_input { attention, o, mlp, down };
inline constexpr std::array<layer_input, 4> layer_inputs = {layer_input::attention, layer_input::o, layer_input::mlp,
                                                            layer_input::down};
layer_input input_of(projection p);

/// What keys, turned to their positions, and values of a layer are divided by before they become fp8; 0: they stay as they are.
struct cache_scales {
  float k = 0, v = 0;
};

/// One decoder layer, dense fp32.
struct layer_weights {
  std::vector<float> input_norm, post_norm;  ///< (hidden)
  std::array<std::vector<float>, 7> w;       ///< (outputs, inputs) row-major, by projection
  std::array<rounded_inputs, 7> rounded;     ///< by projection
  cache_scales cache;
  host::matmul_precision precision = host::matmul_precision::float32;  ///< of the products with them and of attention

  matrix<float> at(const config& c, projection p) {
    return {w[static_cast<size_t>(p)].data(), outputs(c, p), inputs(c, p)};
  }
  matrix<const float> at(const config& c, projection p) const {
    return {w[static_cast<size_t>(p)].data(), outputs(c, p), inputs(c, p)};
  }
};

/// Reads layer `index` of a dense or packed checkpoint and lets its mapped pages go.
layer_weights load_layer(const checkpoint& from, const config& c, index_t index);

/// Layer `index`'s scales of keys and values, where quantization_config has a kv_cache_scheme.
cache_scales read_cache_scales(const checkpoint& from, const config& c, index_t index);

/// Sequences end to end: sequence i is tokens [starts[i], starts[i + 1]).
struct batch {
  std::vector<int32_t> ids;
  std::vector<index_t> starts = {0};

  void append(const int32_t* first, index_t count) {
    ids.insert(ids.end(), first, first + count);
    starts.push_back(static_cast<index_t>(ids.size()));
  }
  index_t tokens() const { return starts.back(); }
  index_t sequences() const { return static_cast<index_t>(starts.size()) - 1; }
};

/// @throws error for an id outside [0, vocabulary), which a tokenizer of another model gives.
void check_ids(const checkpoint& from, const config& c, const std::vector<int32_t>& ids);

/// Embeddings of the batch's ids into x (tokens, hidden). @throws error naming the tensor, and as check_ids does.
void embed(const checkpoint& from, const config& c, const batch& b, matrix<float> x);

/// Told of every activation a linear reads, chunk by chunk in token order: x (tokens of the chunk, inputs).
using observer = std::function<void(layer_input, matrix<const float>)>;

/// What tokens go through at a time: a layer, or the half of it up to where attention's output, or the MLP's, joins the residual stream.
enum class layer_part { whole, attention, mlp };
inline bool has_attention(layer_part part) {
  return part != layer_part::mlp;
}
inline bool has_mlp(layer_part part) {
  return part != layer_part::attention;
}
inline bool belongs(layer_input input, layer_part part) {
  return input == layer_input::attention || input == layer_input::o ? has_attention(part) : has_mlp(part);
}

/// Of a half's inputs: the first, which is the residual stream, normed; the last, which o or down reads; or both.
enum class half_inputs { both, first, last };
inline bool is_last(layer_input input) {
  return input == layer_input::o || input == layer_input::down;
}
inline bool belongs(layer_input input, half_inputs to) {
  return to == half_inputs::both || is_last(input) == (to == half_inputs::last);
}
inline layer_input first_input(layer_part half) {
  return half == layer_part::attention ? layer_input::attention : layer_input::mlp;
}
inline layer_input last_input(layer_part half) {
  return half == layer_part::attention ? layer_input::o : layer_input::down;
}
/// The linear that a half ends with: o or down.
inline projection last_linear(layer_part half) {
  return half == layer_part::attention ? projection::o : projection::down;
}

/// x (tokens, hidden) through one layer, or a half of it, in place.
void forward_layer(const config& c, const layer_weights& w, matrix<float> x, const std::vector<index_t>& starts,
                   const observer& observe = nullptr, layer_part part = layer_part::whole);

/// Tells what the linears of a half of a layer, or some of them, read on x (tokens, hidden), which stays. @param half attention or mlp.
void observe_half(const config& c, const layer_weights& w, layer_part half, matrix<const float> x,
                  const std::vector<index_t>& starts, const observer& observe, half_inputs told = half_inputs::both);

/// x (tokens, hidden) through the last linear of a half, which reads `made` (tokens, its inputs), in place.
void finish_half(const config& c, const layer_weights& w, layer_part half, matrix<const float> made, matrix<float> x);

/// The largest magnitudes of keys and values, by channel.
struct cache_maxima {
  std::vector<float> k, v;  ///< (kv_width)
};
/// Those of the keys, turned, and the values that a layer makes of x (tokens, hidden); NaN and ±inf count as 0.
cache_maxima largest_cached(const config& c, const layer_weights& w, matrix<const float> x,
                            const std::vector<index_t>& starts);

/// The parts of a layer, for passes that judge a block by its output.
/// out (tokens, hidden) = the attention block's output on normed x (tokens, hidden), before the residual is added; or nothing, where
/// only what linears read is of interest.
void attention_block(const config& c, const layer_weights& w, matrix<const float> normed,
                     const std::vector<index_t>& starts, matrix<float> out, const observer& observe = nullptr);
/// out (tokens, hidden) = down(silu(gate(normed)) · up(normed)).
void mlp_block(const config& c, const layer_weights& w, matrix<const float> normed, matrix<float> out,
               const observer& observe = nullptr);
/// y = x / rms(x) · weight, row by row. Source: Zhang and Sennrich, arXiv 1910.07467.
void rms_norm(matrix<const float> x, const std::vector<float>& weight, float epsilon, matrix<float> y);

/// What predicts: the last norm and the head.
struct lm_head {
  std::vector<float> norm;
  float epsilon;                            ///< rms_norm_eps
  std::unique_ptr<linear_weights> weights;  ///< (vocabulary, hidden)
};
lm_head load_head(const checkpoint& from, const config& c);

/// Consecutive rows of a batch.
struct row_range {
  index_t first, count;
};

/// How a model's prediction at one position fares.
struct token_score {
  double nll = 0;         ///< −ln p(target), nats
  double divergence = 0;  ///< KL(reference ‖ model), nats, when there is a reference
  bool same_top = true;   ///< its most probable token is the reference's
};

/// Scores predictions: row i of x (tokens, hidden; the last layer's output) predicts targets[i]. With a reference
/// model's head and activations, also how far the distribution moved. Logits are never held for more than a tile.
void score(const lm_head& head, matrix<const float> x, const int32_t* targets, token_score* scores,
           const lm_head* reference_head = nullptr, matrix<const float> reference_x = {});

}  // namespace nibble::mistral
