// SPDX-License-Identifier: Apache-2.0
#include "forward.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "coded_linear.hpp"
#include "error.hpp"
#include "nibble/host/matmul.hpp"
#include "nibble/host/observe.hpp"
#include "rotary.hpp"
#include "rounding.hpp"
#include "rows.hpp"
#include "vector_math.hpp"

namespace nibble::mistral {

namespace {

/// Rows an element-wise step hands a thread at a time.
constexpr index_t forward_tile = 64;
/// Queries whose scores are held at a time, and tokens and vocabulary entries of a tile of logits.
constexpr index_t query_tile = 128, token_tile = 256, vocabulary_tile = 512;
/// Scratch of a chunk, bytes, or what that many tokens take, as weights and sums of statistics go by once for each chunk; a single longer
/// sequence takes what it takes.
constexpr index_t chunk_bytes = index_t(16) << 20, least_chunk_tokens = 512;

NIBBLE_VECTORISED float sum_of_squares(const float* x, index_t n) {
  float lanes[16] = {};
  index_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (index_t lane = 0; lane < 16; ++lane) lanes[lane] += x[i + lane] * x[i + lane];
  double sum = 0;
  for (const float lane : lanes) sum += static_cast<double>(lane);
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return static_cast<float>(sum);
}

index_t longest(const std::vector<index_t>& starts) {
  index_t most = 0;
  for (size_t i = 0; i + 1 < starts.size(); ++i) most = max(most, starts[i + 1] - starts[i]);
  return most;
}

/// A table that this thread keeps, as one pass over a layer follows another. The next call changes it.
const rotary_table& rotary_of(const config& c, index_t positions) {
  thread_local rotary_table table(0, 1, 0);
  if (!table.turns(c.head_dim, c.rope_theta)) table = rotary_table(c.head_dim, c.rope_theta, 0);
  table.reach(positions);
  return table;
}

/// One query tile of one head: out rows = softmax(q kᵀ / √d) v over the keys each query may see.
void attend(matrix<const float> q, matrix<const float> k, matrix<const float> v, index_t first_query, index_t window,
            matrix<float> out, host::matmul_precision precision) {
  thread_local row_buffer buffer;
  const index_t keys = first_query + q.rows;
  const index_t first_key = window > 0 ? max(index_t(0), first_query + 1 - window) : 0;
  const index_t span = keys - first_key;
  const auto scores = view(buffer, q.rows, span);
  host::detail::multiply_nt(q, k.rows_at(first_key, span), scores, precision);
  const float scale = 1.0f / std::sqrt(static_cast<float>(q.cols));
  float inverse[query_tile];
  for (index_t i = 0; i < q.rows; ++i) {
    float* row = scores.row(i);
    const index_t position = first_query + i;
    const index_t low = (window > 0 ? max(index_t(0), position + 1 - window) : 0) - first_key;
    const index_t high = position + 1 - first_key;
    for (index_t j = low; j < high; ++j) row[j] *= scale;
    inverse[i] = softmax_numerators(row, low, high, span);
  }
  host::detail::multiply_nn(matrix<const float>(scores), v.rows_at(first_key, span), out, precision);
  for (index_t i = 0; i < q.rows; ++i)
    for (index_t j = 0; j < out.cols; ++j) out(i, j) *= inverse[i];
}

struct scratch {
  row_buffer normed, q, k, v, attended, gate, up, out, rounded;
  host::packed_factor packed;
};

/// Linears that read the same x one after another; x is rounded again only for one that wants it another way.
class rounding_reader {
 public:
  rounding_reader(const config& c, const layer_weights& w, matrix<const float> x, scratch& s)
      : c_(c), w_(w), x_(x), s_(s) {}

  /// y = rounded x · wᵀ
  void multiply(projection p, matrix<float> y) {
    const rounded_inputs& how = w_.rounded[static_cast<size_t>(p)];
    matrix<const float> x = x_;
    if (how.how != input_rounding::none) {
      const auto rounded = view(s_.rounded, x_.rows, x_.cols);
      if (!(how == held_)) {
        copy_rows(x_, rounded);
        round_inputs(rounded, how);
      }
      x = rounded;
    }
    if (w_.precision == host::matmul_precision::bfloat16) {
      if (!packed_ || !(how == held_)) s_.packed.pack(x);
      packed_ = true;
      host::matmul_nt(s_.packed, w_.at(c_, p), y);
    } else {
      host::matmul_nt(x, w_.at(c_, p), y);
    }
    held_ = how;
  }

 private:
  const config& c_;
  const layer_weights& w_;
  matrix<const float> x_;
  scratch& s_;
  rounded_inputs held_;  ///< how the last one wanted it
  bool packed_ = false;
};

/// Attention of whole sequences: q, k, v already projected (tokens, width); rotates q and k.
void attention(const config& c, const rotary_table& rotary, const layer_weights& w, const std::vector<index_t>& starts,
               matrix<float> q, matrix<float> k, matrix<float> v, matrix<float> out) {
  struct piece {
    index_t sequence, head, query;
  };
  std::vector<piece> pieces;
  for (size_t s = 0; s + 1 < starts.size(); ++s) {
    const index_t first = starts[s] - starts[0], length = starts[s + 1] - starts[s];
    over_rows<forward_tile>(length, [&](index_t position) {
      for (index_t h = 0; h < c.heads; ++h) rotary.rotate(q.row(first + position) + h * c.head_dim, position);
      for (index_t h = 0; h < c.kv_heads; ++h) rotary.rotate(k.row(first + position) + h * c.head_dim, position);
    });
    for (index_t head = 0; head < c.heads; ++head)
      for (index_t query = 0; query < length; query += query_tile)
        pieces.push_back({static_cast<index_t>(s), head, query});
  }
  if (w.cache.k > 0) round_inputs(k, {input_rounding::tensor, code_type::e4m3, w.cache.k});
  if (w.cache.v > 0) round_inputs(v, {input_rounding::tensor, code_type::e4m3, w.cache.v});
  host::detail::single_threaded_blas();
  host::parallel_for(static_cast<index_t>(pieces.size()), [&](index_t tile) {
    const auto [s, head, query] = pieces[static_cast<size_t>(tile)];
    const index_t first = starts[static_cast<size_t>(s)] - starts[0];
    const index_t length = starts[static_cast<size_t>(s) + 1] - starts[static_cast<size_t>(s)];
    const index_t kv = head / (c.heads / c.kv_heads);
    const index_t queries = min(query_tile, length - query);
    attend(q.rows_at(first + query, queries).cols_at(head * c.head_dim, c.head_dim),
           k.rows_at(first, length).cols_at(kv * c.head_dim, c.head_dim),
           v.rows_at(first, length).cols_at(kv * c.head_dim, c.head_dim), query, c.sliding_window,
           out.rows_at(first + query, queries).cols_at(head * c.head_dim, c.head_dim), w.precision);
  });
}

void attention_block(const config& c, const layer_weights& w, const rotary_table& rotary, matrix<const float> normed,
                     const std::vector<index_t>& starts, matrix<float> out, const observer& observe, scratch& s) {
  const index_t m = normed.rows;
  const auto q = view(s.q, m, c.q_width()), k = view(s.k, m, c.kv_width()), v = view(s.v, m, c.kv_width());
  const auto attended = view(s.attended, m, c.q_width());
  if (observe) observe(layer_input::attention, normed);
  rounding_reader input(c, w, normed, s);
  input.multiply(projection::q, q);
  input.multiply(projection::k, k);
  input.multiply(projection::v, v);
  attention(c, rotary, w, starts, q, k, v, attended);
  if (observe) observe(layer_input::o, attended);
  if (!out.empty()) rounding_reader(c, w, attended, s).multiply(projection::o, out);
}

void mlp_block(const config& c, const layer_weights& w, matrix<const float> normed, matrix<float> out,
               const observer& observe, scratch& s) {
  const auto gate = view(s.gate, normed.rows, c.intermediate), up = view(s.up, normed.rows, c.intermediate);
  if (observe) observe(layer_input::mlp, normed);
  rounding_reader input(c, w, normed, s);
  input.multiply(projection::gate, gate);
  input.multiply(projection::up, up);
  over_rows<forward_tile>(normed.rows, [&](index_t row) { swiglu(gate.row(row), up.row(row), c.intermediate); });
  if (observe) observe(layer_input::down, gate);
  if (!out.empty()) rounding_reader(c, w, gate, s).multiply(projection::down, out);
}

/// Sums of one row of logits over the vocabulary, tile after tile, relative to the largest logit so far.
struct running_softmax {
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  int32_t top = -1;

  double rescale(double candidate) {
    if (candidate <= largest) return 1.0;
    const double factor = std::exp(largest - candidate);
    largest = candidate;
    sum *= factor;
    return factor;
  }
  double log_sum() const { return largest + std::log(sum); }
};

struct row_top {
  float value;
  index_t at;
};
row_top find_top(const float* logits, index_t n) {
  row_top top{logits[0], 0};
  for (index_t j = 1; j < n; ++j)
    if (logits[j] > top.value) top = {logits[j], j};
  return top;
}

NIBBLE_VECTORISED float sum_exp(const float* logits, float largest, index_t n) {
  float lanes[16] = {};
  index_t j = 0;
  for (; j + 16 <= n; j += 16)
    for (index_t lane = 0; lane < 16; ++lane) lanes[lane] += fast_exp(logits[j + lane] - largest);
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  for (; j < n; ++j) sum += fast_exp(logits[j] - largest);
  return sum;
}

/// Σ exp(p − largest) · (p − q).
NIBBLE_VECTORISED float sum_exp_difference(const float* p, const float* q, float largest, index_t n) {
  float lanes[16] = {};
  index_t j = 0;
  for (; j + 16 <= n; j += 16)
    for (index_t lane = 0; lane < 16; ++lane)
      lanes[lane] += fast_exp(p[j + lane] - largest) * (p[j + lane] - q[j + lane]);
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  for (; j < n; ++j) sum += fast_exp(p[j] - largest) * (p[j] - q[j]);
  return sum;
}

}  // namespace

const char* to_string(projection p) {
  constexpr const char* names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                   "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
  return names[static_cast<size_t>(p)];
}

std::string projection_name(index_t layer, projection p) {
  return "model.layers." + std::to_string(layer) + "." + to_string(p);
}

index_t outputs(const config& c, projection p) {
  switch (p) {
    case projection::q:
      return c.q_width();
    case projection::k:
    case projection::v:
      return c.kv_width();
    case projection::gate:
    case projection::up:
      return c.intermediate;
    case projection::o:
    case projection::down:
      return c.hidden;
  }
  return 0;
}

index_t inputs(const config& c, projection p) {
  return p == projection::o ? c.q_width() : p == projection::down ? c.intermediate : c.hidden;
}

layer_input input_of(projection p) {
  switch (p) {
    case projection::o:
      return layer_input::o;
    case projection::gate:
    case projection::up:
      return layer_input::mlp;
    case projection::down:
      return layer_input::down;
    default:
      return layer_input::attention;
  }
}

layer_weights load_layer(const checkpoint& from, const config& c, index_t index) {
  const std::string prefix = "model.layers." + std::to_string(index) + ".";
  layer_weights layer;
  layer.input_norm = read_vector(from, prefix + "input_layernorm.weight", c.hidden);
  layer.post_norm = read_vector(from, prefix + "post_attention_layernorm.weight", c.hidden);
  for (const projection p : projections) {
    const index_t n = outputs(c, p), k = inputs(c, p);
    const auto linear = open_linear(from, c, projection_name(index, p), n, k);
    auto& w = layer.w[static_cast<size_t>(p)];
    w.resize(static_cast<size_t>(n * k));
    host::parallel_for(ceil_div(n, forward_tile), [&](index_t tile) {
      const index_t first = tile * forward_tile;
      linear->rows(first, min(forward_tile, n - first), w.data() + first * k);
    });
    layer.rounded[static_cast<size_t>(p)] = linear->rounded();
    linear->release();
  }
  layer.cache = read_cache_scales(from, c, index);
  return layer;
}

void check_ids(const checkpoint& from, const config& c, const std::vector<int32_t>& ids) {
  for (const int32_t id : ids)
    if (id < 0 || id >= c.vocabulary)
      throw error(from.directory().string() + ": the tokenizer gives the id " + std::to_string(id) +
                  ", but vocab_size is " + std::to_string(c.vocabulary) +
                  "; check that the tokenizer belongs to the model");
}

void embed(const checkpoint& from, const config& c, const batch& b, matrix<float> x) {
  check_ids(from, c, b.ids);
  const tensor& table = from.at("model.embed_tokens.weight", {c.vocabulary, c.hidden});
  over_rows<forward_tile>(x.rows, [&](index_t row) {
    read_floats(table, b.ids[static_cast<size_t>(row)] * c.hidden, c.hidden, x.row(row));
  });
  from.release(table);
}

void rms_norm(matrix<const float> x, const std::vector<float>& weight, float epsilon, matrix<float> y) {
  over_rows<forward_tile>(x.rows, [&](index_t row) {
    const float* in = x.row(row);
    const float inverse = 1.0f / std::sqrt(sum_of_squares(in, x.cols) / static_cast<float>(x.cols) + epsilon);
    for (index_t i = 0; i < x.cols; ++i) y(row, i) = in[i] * inverse * weight[static_cast<size_t>(i)];
  });
}

void attention_block(const config& c, const layer_weights& w, matrix<const float> normed,
                     const std::vector<index_t>& starts, matrix<float> out, const observer& observe) {
  scratch s;
  attention_block(c, w, rotary_of(c, longest(starts)), normed, starts, out, observe, s);
}

void mlp_block(const config& c, const layer_weights& w, matrix<const float> normed, matrix<float> out,
               const observer& observe) {
  scratch s;
  mlp_block(c, w, normed, out, observe, s);
}

namespace {

/// Told where in x a chunk is, to go through the layer.
using chunk_runner =
    std::function<void(const rotary_table&, const std::vector<index_t>& chunk, index_t tokens, scratch&)>;

void in_chunks(const config& c, const std::vector<index_t>& starts, const chunk_runner& run) {
  const rotary_table& rotary = rotary_of(c, longest(starts));
  const index_t widest = max(2 * c.intermediate, 2 * c.q_width() + 2 * c.kv_width()) + 2 * c.hidden;
  const index_t chunk_tokens = max(least_chunk_tokens, chunk_bytes / (4 * widest));
  scratch s;
  for (size_t first = 0, last; first + 1 < starts.size(); first = last) {
    for (last = first + 1; last + 1 < starts.size() && starts[last + 1] - starts[first] <= chunk_tokens;) ++last;
    const std::vector<index_t> chunk(starts.begin() + static_cast<std::ptrdiff_t>(first),
                                     starts.begin() + static_cast<std::ptrdiff_t>(last) + 1);
    run(rotary, chunk, chunk.back() - chunk.front(), s);
  }
}

}  // namespace

void forward_layer(const config& c, const layer_weights& w, matrix<float> x, const std::vector<index_t>& starts,
                   const observer& observe, layer_part part) {
  in_chunks(c, starts, [&](const rotary_table& rotary, const std::vector<index_t>& chunk, index_t tokens, scratch& s) {
    const auto rows = x.rows_at(chunk.front(), tokens);
    const auto normed = view(s.normed, tokens, c.hidden), out = view(s.out, tokens, c.hidden);
    if (has_attention(part)) {
      rms_norm(rows, w.input_norm, c.rms_norm_eps, normed);
      attention_block(c, w, rotary, normed, chunk, out, observe, s);
      add<forward_tile>(out, rows);
    }
    if (has_mlp(part)) {
      rms_norm(rows, w.post_norm, c.rms_norm_eps, normed);
      mlp_block(c, w, normed, out, observe, s);
      add<forward_tile>(out, rows);
    }
  });
}

void observe_half(const config& c, const layer_weights& w, layer_part half, matrix<const float> x,
                  const std::vector<index_t>& starts, const observer& observe, half_inputs told) {
  const bool attends = half == layer_part::attention;
  const observer tell = [&](layer_input input, matrix<const float> activations) {
    if (belongs(input, told)) observe(input, activations);
  };
  in_chunks(c, starts, [&](const rotary_table& rotary, const std::vector<index_t>& chunk, index_t tokens, scratch& s) {
    const auto normed = view(s.normed, tokens, c.hidden);
    rms_norm(x.rows_at(chunk.front(), tokens), attends ? w.input_norm : w.post_norm, c.rms_norm_eps, normed);
    if (told == half_inputs::first)
      observe(first_input(half), normed);
    else if (attends)
      attention_block(c, w, rotary, normed, chunk, {}, tell, s);
    else
      mlp_block(c, w, normed, {}, tell, s);
  });
}

void finish_half(const config& c, const layer_weights& w, layer_part half, matrix<const float> made, matrix<float> x) {
  const index_t chunk_tokens = max(least_chunk_tokens, chunk_bytes / (4 * (made.cols + 2 * c.hidden)));
  scratch s;
  for (index_t first = 0; first < x.rows; first += chunk_tokens) {
    const index_t tokens = min(chunk_tokens, x.rows - first);
    const auto out = view(s.out, tokens, c.hidden);
    rounding_reader(c, w, made.rows_at(first, tokens), s).multiply(last_linear(half), out);
    add<forward_tile>(out, x.rows_at(first, tokens));
  }
}

cache_scales read_cache_scales(const checkpoint& from, const config& c, index_t index) {
  const auto how = quantization::read(c, (from.directory() / "config.json").string());
  if (!how || !how->rounds_cache()) return {};
  const std::string prefix = "model.layers." + std::to_string(index) + ".self_attn.";
  return {read_single_scale(from, prefix + "k_scale"), read_single_scale(from, prefix + "v_scale")};
}

cache_maxima largest_cached(const config& c, const layer_weights& w, matrix<const float> x,
                            const std::vector<index_t>& starts) {
  const rotary_table& rotary = rotary_of(c, longest(starts));
  scratch buffers;
  std::vector<float> largest_k(static_cast<size_t>(c.kv_width())), largest_v = largest_k;
  for (size_t s = 0; s + 1 < starts.size(); ++s) {
    const index_t first = starts[s], length = starts[s + 1] - first;
    const auto normed = view(buffers.normed, length, c.hidden);
    const auto k = view(buffers.k, length, c.kv_width()), v = view(buffers.v, length, c.kv_width());
    rms_norm(x.rows_at(first, length), w.input_norm, c.rms_norm_eps, normed);
    rounding_reader input(c, w, normed, buffers);
    input.multiply(projection::k, k);
    input.multiply(projection::v, v);
    over_rows<forward_tile>(length, [&](index_t position) {
      for (index_t h = 0; h < c.kv_heads; ++h) rotary.rotate(k.row(position) + h * c.head_dim, position);
    });
    host::absolute_maximum(matrix<const float>(k), largest_k.data());
    host::absolute_maximum(matrix<const float>(v), largest_v.data());
  }
  return {std::move(largest_k), std::move(largest_v)};
}

lm_head load_head(const checkpoint& from, const config& c) {
  return {read_vector(from, "model.norm.weight", c.hidden), c.rms_norm_eps,
          open_linear(from, c, c.tied_embeddings ? "model.embed_tokens" : "lm_head", c.vocabulary, c.hidden)};
}

void score(const lm_head& head, matrix<const float> x, const int32_t* targets, token_score* scores,
           const lm_head* reference_head, matrix<const float> reference_x) {
  const index_t vocabulary = head.weights->outputs(), hidden = x.cols;
  const bool compare = reference_head != nullptr;
  host::detail::single_threaded_blas();
  host::parallel_for(ceil_div(x.rows, token_tile), [&](index_t tile) {
    const index_t first = tile * token_tile, tokens = min(token_tile, x.rows - first);
    row_buffer normed_data, reference_data, rows_data, logits_data, reference_logits_data;
    const auto normed = view(normed_data, tokens, hidden), rows = view(rows_data, vocabulary_tile, hidden);
    const auto logits = view(logits_data, tokens, vocabulary_tile);
    matrix<float> reference_normed, reference_logits;
    rms_norm(x.rows_at(first, tokens), head.norm, head.epsilon, normed);
    if (compare) {
      reference_normed = view(reference_data, tokens, hidden);
      reference_logits = view(reference_logits_data, tokens, vocabulary_tile);
      rms_norm(reference_x.rows_at(first, tokens), reference_head->norm, reference_head->epsilon, reference_normed);
    }
    std::vector<running_softmax> own(static_cast<size_t>(tokens)), reference(static_cast<size_t>(compare ? tokens : 0));
    std::vector<double> cross(reference.size(), 0.0), target(static_cast<size_t>(tokens), 0.0);
    for (index_t entry = 0; entry < vocabulary; entry += vocabulary_tile) {
      const index_t entries = min(vocabulary_tile, vocabulary - entry);
      head.weights->rows(entry, entries, rows.data);
      host::detail::sgemm(CblasNoTrans, CblasTrans, tokens, entries, hidden, normed, rows, 0.0f, logits);
      if (compare) {
        if (reference_head->weights.get() != head.weights.get())
          reference_head->weights->rows(entry, entries, rows.data);
        host::detail::sgemm(CblasNoTrans, CblasTrans, tokens, entries, hidden, reference_normed, rows, 0.0f,
                            reference_logits);
      }
      for (index_t i = 0; i < tokens; ++i) {
        const auto at = static_cast<size_t>(i);
        const auto accumulate = [&](running_softmax& sums, const float* row) {
          const row_top top = find_top(row, entries);
          const bool higher = static_cast<double>(top.value) > sums.largest;
          const double factor = sums.rescale(static_cast<double>(top.value));
          if (higher) sums.top = static_cast<int32_t>(entry + top.at);
          sums.sum += static_cast<double>(sum_exp(row, static_cast<float>(sums.largest), entries));
          return factor;
        };
        accumulate(own[at], logits.row(i));
        const index_t wanted = targets[first + i] - entry;
        if (wanted >= 0 && wanted < entries) target[at] = static_cast<double>(logits(i, wanted));
        if (!compare) continue;
        cross[at] *= accumulate(reference[at], reference_logits.row(i));
        cross[at] += static_cast<double>(sum_exp_difference(reference_logits.row(i), logits.row(i),
                                                            static_cast<float>(reference[at].largest), entries));
      }
    }
    for (index_t i = 0; i < tokens; ++i) {
      const auto at = static_cast<size_t>(i);
      token_score& out = scores[first + i];
      out.nll = own[at].log_sum() - target[at];
      if (!compare) continue;
      out.divergence = max(0.0, cross[at] / reference[at].sum - reference[at].log_sum() + own[at].log_sum());
      out.same_top = own[at].top == reference[at].top;
    }
  });
}

}  // namespace nibble::mistral
