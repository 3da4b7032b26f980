// SPDX-License-Identifier: Apache-2.0
#include "decode.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.hpp"
#include "nibble/host/parallel.hpp"
#include "rounding.hpp"
#include "rows.hpp"
#include "vector_math.hpp"
#include "weights.hpp"

namespace nibble::mistral {

namespace {

/// Tokens that go through the layers together: enough to spread the reading of weights over, few enough that their
/// activations stay in cache.
constexpr index_t chunk_tokens = 128;
constexpr index_t decoded_tile = 16;

/// scores[j] = scale · q · key j, for `count` keys (count, d).
NIBBLE_VECTORISED void key_scores(const float* q, const float* keys, index_t count, index_t d, float scale,
                                  float* scores) {
  for (index_t j = 0; j < count; ++j) {
    const float* key = keys + j * d;
    float lanes[16] = {};
    index_t i = 0;
    for (; i + 16 <= d; i += 16)
      for (index_t lane = 0; lane < 16; ++lane) lanes[lane] += q[i + lane] * key[i + lane];
    float sum = 0;
    for (const float lane : lanes) sum += lane;
    for (; i < d; ++i) sum += q[i] * key[i];
    scores[j] = sum * scale;
  }
}

/// out (d) = factor · Σ weights[j] · value j.
NIBBLE_VECTORISED void weighted_sum(const float* weights, const float* values, index_t count, index_t d, float factor,
                                    float* out) {
  for (index_t i = 0; i < d; ++i) out[i] = 0;
  for (index_t j = 0; j < count; ++j)
    for (index_t i = 0; i < d; ++i) out[i] += weights[j] * values[j * d + i];
  for (index_t i = 0; i < d; ++i) out[i] *= factor;
}

resident_linear load(const checkpoint& from, const config& c, const std::string& name, index_t n, index_t k) {
  const auto stored = open_linear(from, c, name, n, k);
  resident_linear w = stored->resident();
  stored->release();
  return w;
}

}  // namespace

decoder::decoder(const checkpoint& files, const config& settings, const std::function<layer_linears(index_t)>& linears)
    : files_(files), settings_(settings), rotary_(settings.head_dim, settings.rope_theta, 0) {
  const config& c = settings_;
  files_.at("model.embed_tokens.weight", {c.vocabulary, c.hidden});
  for (index_t index = 0; index < c.layers; ++index) {
    const std::string prefix = "model.layers." + std::to_string(index) + ".";
    layer l;
    l.input_norm = read_vector(files, prefix + "input_layernorm.weight", c.hidden);
    l.post_norm = read_vector(files, prefix + "post_attention_layernorm.weight", c.hidden);
    if (linears) l.w = linears(index);
    for (const projection p : projections)
      if (resident_linear& w = l.w[static_cast<size_t>(p)]; w.n == 0)
        w = load(files, c, projection_name(index, p), outputs(c, p), inputs(c, p));
    l.cache = read_cache_scales(files, c, index);
    layers_.push_back(std::move(l));
  }
  norm_ = read_vector(files, "model.norm.weight", c.hidden);
  head_ = load(files, c, c.tied_embeddings ? "model.embed_tokens" : "lm_head", c.vocabulary, c.hidden);
}

index_t decoder::weight_bytes() const {
  index_t bytes = head_.bytes();
  for (const layer& l : layers_)
    for (const resident_linear& w : l.w) bytes += w.bytes();
  return bytes;
}

decoder::head_cache& decoder::cache(index_t sequence, size_t layer, index_t head) {
  return caches_[static_cast<size_t>(sequence)]
                [layer * static_cast<size_t>(settings_.kv_heads) + static_cast<size_t>(head)];
}

void decoder::check(const batch& b) const {
  for (index_t s = 0; s < b.sequences(); ++s) {
    const index_t length = b.starts[static_cast<size_t>(s) + 1] - b.starts[static_cast<size_t>(s)];
    if (length == 0) throw error("a prompt must have at least one token");
    if (length > settings_.context)
      throw error("a prompt of " + std::to_string(length) + " tokens does not fit the model's context of " +
                  std::to_string(settings_.context) + "; shorten it");
  }
  check_ids(files_, settings_, b.ids);
}

matrix<const float> decoder::prefill(const batch& prompts) {
  check(prompts);
  const auto count = static_cast<size_t>(prompts.sequences());
  caches_.assign(count, std::vector<head_cache>(static_cast<size_t>(settings_.layers * settings_.kv_heads)));
  lengths_.assign(count, 0);
  std::vector<row> rows;
  for (index_t s = 0; s < prompts.sequences(); ++s) {
    auto& length = lengths_[static_cast<size_t>(s)];
    for (index_t at = prompts.starts[static_cast<size_t>(s)]; at < prompts.starts[static_cast<size_t>(s) + 1]; ++at)
      rows.push_back({s, length++});
  }
  advance(prompts.ids, rows);
  return logits();
}

matrix<const float> decoder::step(const std::vector<int32_t>& ids) {
  std::vector<row> rows;
  for (index_t s = 0; s < sequences(); ++s) rows.push_back({s, lengths_[static_cast<size_t>(s)]++});
  advance(ids, rows);
  return logits();
}

void decoder::keep(const std::vector<index_t>& sequences) {
  size_t to = 0;
  for (const index_t from : sequences) {
    if (static_cast<size_t>(from) != to) caches_[to] = std::move(caches_[static_cast<size_t>(from)]);
    lengths_[to++] = lengths_[static_cast<size_t>(from)];
  }
  caches_.resize(to);
  lengths_.resize(to);
}

void decoder::advance(const std::vector<int32_t>& ids, const std::vector<row>& rows) {
  rotary_.reach(lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end()));
  last_.resize(std::max(last_.size(), static_cast<size_t>(sequences() * settings_.hidden)));
  const matrix<float> last(last_.data(), sequences(), settings_.hidden);
  const auto all = static_cast<index_t>(rows.size());
  for (index_t first = 0; first < all; first += chunk_tokens) {
    const index_t count = min(chunk_tokens, all - first);
    const auto x = view(scratch_.x, count, settings_.hidden);
    const tensor& table = files_.at("model.embed_tokens.weight");
    for (index_t i = 0; i < count; ++i)
      read_floats(table, ids[static_cast<size_t>(first + i)] * settings_.hidden, settings_.hidden, x.row(i));
    through_layers(x, rows.data() + first);
    for (index_t i = 0; i < count; ++i) {
      const auto [sequence, position] = rows[static_cast<size_t>(first + i)];
      if (position + 1 == lengths_[static_cast<size_t>(sequence)])
        std::copy_n(x.row(i), settings_.hidden, last.row(sequence));
    }
  }
}

void decoder::through_layers(matrix<float> x, const row* rows) {
  const auto normed = view(scratch_.normed, x.rows, x.cols), out = view(scratch_.out, x.rows, x.cols);
  for (size_t index = 0; index < layers_.size(); ++index) {
    rms_norm(x, layers_[index].input_norm, settings_.rms_norm_eps, normed);
    attention(index, normed, rows, out);
    add<decoded_tile>(out, x);
    rms_norm(x, layers_[index].post_norm, settings_.rms_norm_eps, normed);
    mlp(index, normed, out);
    add<decoded_tile>(out, x);
  }
}

void decoder::attention(size_t index, matrix<const float> normed, const row* rows, matrix<float> out) {
  const layer& l = layers_[index];
  const index_t m = normed.rows, d = settings_.head_dim;
  const auto q = view(scratch_.q, m, settings_.q_width()), attended = view(scratch_.attended, m, settings_.q_width());
  const auto k = view(scratch_.k, m, settings_.kv_width()), v = view(scratch_.v, m, settings_.kv_width());
  l.at(projection::q).multiply(normed, q);
  l.at(projection::k).multiply(normed, k);
  l.at(projection::v).multiply(normed, v);
  over_rows<decoded_tile>(m, [&](index_t i) {
    for (index_t h = 0; h < settings_.heads; ++h) rotary_.rotate(q.row(i) + h * d, rows[i].position);
    for (index_t h = 0; h < settings_.kv_heads; ++h) rotary_.rotate(k.row(i) + h * d, rows[i].position);
  });
  remember(index, k, v, rows);
  attend(index, q, rows, attended);
  l.at(projection::o).multiply(attended, out);
}

void decoder::remember(size_t index, matrix<float> k, matrix<float> v, const row* rows) {
  const index_t d = settings_.head_dim;
  const cache_scales& scales = layers_[index].cache;
  if (scales.k > 0) round_inputs(k, {input_rounding::tensor, code_type::e4m3, scales.k});
  if (scales.v > 0) round_inputs(v, {input_rounding::tensor, code_type::e4m3, scales.v});
  for (index_t i = 0; i < k.rows; ++i)
    for (index_t h = 0; h < settings_.kv_heads; ++h) {
      head_cache& c = cache(rows[i].sequence, index, h);
      c.keys.insert(c.keys.end(), k.row(i) + h * d, k.row(i) + (h + 1) * d);
      c.values.insert(c.values.end(), v.row(i) + h * d, v.row(i) + (h + 1) * d);
    }
}

void decoder::attend(size_t index, matrix<const float> q, const row* rows, matrix<float> attended) {
  const index_t d = settings_.head_dim, window = settings_.sliding_window;
  const index_t shared = settings_.heads / settings_.kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  host::parallel_for(q.rows * settings_.kv_heads, [&](index_t tile) {
    thread_local row_buffer buffer;
    const index_t i = tile / settings_.kv_heads, kv = tile % settings_.kv_heads;
    const index_t end = rows[i].position + 1, begin = window > 0 ? max(index_t(0), end - window) : 0;
    const head_cache& c = cache(rows[i].sequence, index, kv);
    float* scores = view(buffer, 1, end - begin).data;
    for (index_t h = kv * shared; h < (kv + 1) * shared; ++h) {
      key_scores(q.row(i) + h * d, c.keys.data() + begin * d, end - begin, d, scale, scores);
      const float inverse = softmax_numerators(scores, 0, end - begin, end - begin);
      weighted_sum(scores, c.values.data() + begin * d, end - begin, d, inverse, attended.row(i) + h * d);
    }
  });
}

void decoder::mlp(size_t index, matrix<const float> normed, matrix<float> out) {
  const layer& l = layers_[index];
  const auto gate = view(scratch_.gate, normed.rows, settings_.intermediate);
  const auto up = view(scratch_.up, normed.rows, settings_.intermediate);
  l.at(projection::gate).multiply(normed, gate);
  l.at(projection::up).multiply(normed, up);
  over_rows<decoded_tile>(normed.rows, [&](index_t i) { swiglu(gate.row(i), up.row(i), settings_.intermediate); });
  l.at(projection::down).multiply(gate, out);
}

matrix<const float> decoder::logits() {
  const index_t count = sequences();
  const auto normed = view(scratch_.normed, count, settings_.hidden);
  const auto scores = view(logits_, count, settings_.vocabulary);
  rms_norm({last_.data(), count, settings_.hidden}, norm_, settings_.rms_norm_eps, normed);
  head_.multiply(normed, scores);
  return scores;
}

}  // namespace nibble::mistral
