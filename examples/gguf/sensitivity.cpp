// SPDX-License-Identifier: Apache-2.0
#include "gguf/sensitivity.hpp"

#include <cmath>
#include <vector>

#include "mistral/error.hpp"
#include "mistral/finite.hpp"
#include "mistral/gguf_model.hpp"
#include "nibble/host/parallel.hpp"

namespace nibble::mistral {
namespace {

/// Rows that a thread takes at a time.
constexpr index_t noisy_at_once = 16;

/// The mixing function of SplitMix64. Source: Steele, Lea and Flood, OOPSLA 2014.
std::uint64_t mixed(std::uint64_t z) {
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

class activations {
 public:
  activations(index_t tokens, index_t width) : data_(static_cast<size_t>(tokens * width)), tokens_(tokens) {}
  matrix<float> view() { return {data_.data(), tokens_, static_cast<index_t>(data_.size()) / tokens_}; }
  matrix<const float> view() const { return {data_.data(), tokens_, static_cast<index_t>(data_.size()) / tokens_}; }
  void add(const activations& other) {
    for (size_t i = 0; i < data_.size(); ++i) data_[i] += other.data_[i];
  }

 private:
  std::vector<float> data_;
  index_t tokens_;
};

/// |a − b|² of each token.
std::vector<double> squared_distance(const activations& a, const activations& b) {
  const auto x = a.view(), y = b.view();
  std::vector<double> out(static_cast<size_t>(x.rows));
  for (index_t row = 0; row < x.rows; ++row)
    for (index_t i = 0; i < x.cols; ++i) {
      const double off = static_cast<double>(x(row, i)) - static_cast<double>(y(row, i));
      out[static_cast<size_t>(row)] += off * off;
    }
  return out;
}

/// Mean of a / b over the tokens where b is above 0: an embedding of zeros has no noise.
double mean_quotient(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  index_t counted = 0;
  for (size_t i = 0; i < a.size(); ++i)
    if (b[i] > 0) sum += a[i] / b[i], ++counted;
  return counted > 0 ? sum / static_cast<double>(counted) : 0;
}

/// A linear with noise.
class noisy_linear : public linear_weights {
 public:
  explicit noisy_linear(std::unique_ptr<linear_weights> of) : of_(std::move(of)) {}
  index_t outputs() const override { return of_->outputs(); }
  index_t inputs() const override { return of_->inputs(); }
  void rows(index_t first, index_t count, float* out) const override {
    of_->rows(first, count, out);
    add_noise({out, count, inputs()}, first);
  }
  resident_linear resident() const override { return of_->resident(); }
  void release() const override { of_->release(); }

 private:
  std::unique_ptr<linear_weights> of_;
};

/// One of a layer's two blocks: x (tokens, hidden) → what it adds to x.
struct block {
  const std::vector<float>& norm;
  std::vector<projection> linears;
  std::function<void(matrix<const float> normed, matrix<float> out)> run;
};

class measurement {
 public:
  measurement(const checkpoint& files, const config& c, const batch& sample)
      : files_(files),
        c_(c),
        sample_(sample),
        x_(sample.tokens(), c.hidden),
        noisy_(x_),
        normed_(x_),
        out_(x_),
        noisy_out_(x_) {}

  std::map<std::string, double> run(const std::function<void(index_t)>& told) {
    start();
    for (index_t layer = 0; layer < c_.layers; ++layer) {
      through(layer);
      told(layer + 1);
    }
    finish();
    return std::move(found_);
  }

 private:
  void start() {
    embed(files_, c_, sample_, x_.view());
    noisy_ = x_;
    for (index_t token = 0; token < sample_.tokens(); ++token)
      add_noise(noisy_.view().rows_at(token, 1), sample_.ids[static_cast<size_t>(token)]);
  }

  void through(index_t layer) {
    layer_weights w = load_layer(files_, c_, layer);
    through(layer, w,
            {w.input_norm, {projection::q, projection::k, projection::v, projection::o}, [&](auto normed, auto out) {
               attention_block(c_, w, normed, sample_.starts, out);
             }});
    through(layer, w, {w.post_norm, {projection::gate, projection::up, projection::down}, [&](auto normed, auto out) {
                         mlp_block(c_, w, normed, out);
                       }});
  }

  void through(index_t layer, layer_weights& w, const block& b) {
    rms_norm(noisy_.view(), b.norm, c_.rms_norm_eps, normed_.view());
    b.run(normed_.view(), out_.view());
    noisy_.add(out_);
    rms_norm(x_.view(), b.norm, c_.rms_norm_eps, normed_.view());
    b.run(normed_.view(), out_.view());
    x_.add(out_);
    const std::vector<double> stream = squared_distance(noisy_, x_);
    for (const projection p : b.linears) {
      auto& weights = w.w[static_cast<size_t>(p)];
      const std::vector<float> kept = weights;
      const matrix<float> rows = w.at(c_, p);
      host::parallel_for(ceil_div(rows.rows, noisy_at_once), [&](index_t tile) {
        const index_t first = tile * noisy_at_once;
        add_noise(rows.rows_at(first, min(noisy_at_once, rows.rows - first)), first);
      });
      b.run(normed_.view(), noisy_out_.view());
      weights = kept;
      found_[gguf_name(projection_name(layer, p) + ".weight")] =
          mean_quotient(squared_distance(noisy_out_, out_), stream);
    }
  }

  /// Mean KL(x under its head ‖ `x` under `head`).
  double divergence(const lm_head& head, const activations& x, const lm_head& own) const {
    std::vector<token_score> scores(static_cast<size_t>(sample_.tokens()));
    score(head, x.view(), sample_.ids.data(), scores.data(), &own, x_.view());
    double sum = 0;
    for (const token_score& each : scores) {
      if (!std::isfinite(each.nll))
        throw error(files_.directory().string() + " turns the calibration text into NaN or infinity: " +
                    cause_of_nan(files_) + "; check the checkpoint");
      sum += each.divergence;
    }
    return sum / static_cast<double>(scores.size());
  }

  void finish() {
    const lm_head head = load_head(files_, c_);
    lm_head noisy_head = load_head(files_, c_);
    noisy_head.weights = std::make_unique<noisy_linear>(std::move(noisy_head.weights));
    const double of_stream = divergence(head, noisy_, head), of_head = divergence(noisy_head, x_, head);
    head.weights->release();
    for (auto& [name, value] : found_) value *= of_stream;
    const std::string embedding = gguf_name("model.embed_tokens.weight");
    found_[embedding] = of_stream + (c_.tied_embeddings ? of_head : 0.0);
    if (!c_.tied_embeddings) found_[gguf_name("lm_head.weight")] = of_head;
  }

  const checkpoint& files_;
  const config& c_;
  const batch& sample_;
  activations x_, noisy_, normed_, out_, noisy_out_;  ///< (tokens, hidden)
  std::map<std::string, double> found_;
};

}  // namespace

void add_noise(matrix<float> rows, index_t first) {
  for (index_t row = 0; row < rows.rows; ++row)
    for (index_t begin = 0; begin < rows.cols; begin += noise_group) {
      float* const w = rows.row(row) + begin;
      const index_t count = min(noise_group, rows.cols - begin);
      float sum = 0;
      for (index_t i = 0; i < count; ++i) sum += w[i] * w[i];
      const float size = noise_size * std::sqrt(sum / static_cast<float>(count));
      const std::uint64_t place = static_cast<std::uint64_t>(first + row) * 0x9e3779b97f4a7c15u +
                                  static_cast<std::uint64_t>(begin / noise_group);
      const std::uint64_t signs = mixed(mixed(place) + 0x9e3779b97f4a7c15u);
      for (index_t i = 0; i < count; ++i) w[i] += (signs >> i & 1) ? size : -size;
    }
}

std::map<std::string, double> measure_sensitivity(const checkpoint& files, const config& c, const batch& sample,
                                                  const std::function<void(index_t)>& told) {
  return measurement(files, c, sample).run(told);
}

}  // namespace nibble::mistral
