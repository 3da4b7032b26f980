// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "nibble/host/awq.hpp"
#include "pass/engine.hpp"
#include "pass/host_rounding.hpp"
#include "pass/host_solver.hpp"
#include "pass/job.hpp"
#include "pass/judged_rows.hpp"

namespace nibble::mistral {
namespace {

template <class F>
void with_range_method(clip_search clip, F&& f) {
  if (clip == clip_search::none)
    f(minmax{});
  else
    f(ends_search{});
}

/// How much of the min-max ranges of w the codes' ranges are.
range_kept compare_to_whole(matrix<const float> w, const quantized_linear& q, const packed& as) {
  std::vector<params> whole(q.parameters.size());
  std::vector<float> sorted;
  if (!q.group_of.empty()) {
    std::vector<index_t> column(q.group_of.size());
    std::iota(column.begin(), column.end(), index_t(0));
    std::stable_sort(column.begin(), column.end(), [&](index_t a, index_t b) {
      return q.group_of[static_cast<size_t>(a)] < q.group_of[static_cast<size_t>(b)];
    });
    sorted = columns_in_order(w, column);
    w = {sorted.data(), w.rows, w.cols};
  }
  const matrix<params> p(whole.data(), q.n, q.groups);
  host::fit(w, p, per_group(as.group), as.scheme, minmax{});
  return compare_ranges(q.param_matrix(), matrix<const params>(p));
}

class host_arithmetic : public engine {
 public:
  explicit host_arithmetic(const job& j) : j_(j), tokens_(j.tokens()), solver_(j.o, j.precision), rounding_(j.model) {
    const auto first = tokens_.starts.begin();
    sample_starts_.assign(first, first + 1 + (j.o.blocks_judged() ? block_loss_sequences(tokens_.starts) : 0));
  }

  std::string name() const override {
    return std::to_string(host::pool().size()) + (host::pool().size() == 1 ? " thread" : " threads");
  }

  bool on_gpu() const override { return false; }
  phase_times times() const override { return times_; }

  void embed() override {
    data_.resize(j_.activations());
    mistral::embed(j_.files, j_.model, tokens_, x());
    if (j_.o.drift_followed()) std::copy_n(x().data, original().size(), original().data);
  }
  void set(std::vector<float> x) override { data_ = std::move(x); }
  const std::vector<float>& get() override { return data_; }
  void forward(index_t layer) override { forward(j_.load_layer(layer), layer_part::whole); }
  void forward(const layer_weights& w, layer_part part) override {
    const stopwatch watch(times_, phase::forward);
    forward_layer(j_.model, w, x(), tokens_.starts, nullptr, part);
  }

  void gather(index_t layer, const layer_weights& w, layer_part part, bool keep) override {
    const auto& c = j_.model;
    solver_.begin(layer);
    unfinite_ = 0;
    inputs_ = {};
    for (const layer_input input : layer_inputs)
      if (belongs(input, part))
        inputs_[static_cast<size_t>(input)] = host::second_moment(
            width(c, input), j_.o.correlations_seen() ? tokens_.tokens() : 0, j_.o.shrinkage, j_.precision);
    const index_t sampled = sample_starts_.back();
    if (j_.o.smoothed()) rounding_.begin(max(index_t(1), tokens_.tokens() / smoothing_tokens));
    phase_times here{};
    const auto observe = [&](layer_input input, matrix<const float> activations) {
      const stopwatch watch(here, phase::statistics);
      if (j_.o.correlations_seen())
        inputs_[static_cast<size_t>(input)].add(activations);
      else
        unfinite_ += host::count_non_finite(activations);
      if (j_.o.smoothed()) rounding_.take(input, activations);
      if (input != layer_input::attention && input != layer_input::mlp) return;
      auto& sample = input == layer_input::attention ? attention_sample_ : mlp_sample_;
      const auto missing = static_cast<index_t>(static_cast<size_t>(sampled * c.hidden) - sample.size());
      for (index_t row = 0; row < min(activations.rows, missing / c.hidden); ++row)
        sample.insert(sample.end(), activations.row(row), activations.row(row) + c.hidden);
    };
    {
      const stopwatch watch(here, phase::forward);
      if (j_.o.cache_rounded && has_attention(part)) cached_ = mistral::largest_cached(c, w, x(), tokens_.starts);
      if (j_.o.drift_followed()) {
        gather_both(w, part, here, observe);
      } else if (part != layer_part::whole) {
        observe_half(c, w, part, x(), tokens_.starts, observe);
      } else {
        std::vector<float> copy;
        if (keep) copy = data_;
        const matrix<float> all(keep ? copy.data() : data_.data(), tokens_.tokens(), c.hidden);
        forward_layer(c, w, all, tokens_.starts, observe);
      }
    }
    const double observed = here[static_cast<size_t>(phase::statistics)];
    times_[static_cast<size_t>(phase::forward)] += here[static_cast<size_t>(phase::forward)] - observed;
    times_[static_cast<size_t>(phase::statistics)] += observed;
    const stopwatch watch(times_, phase::statistics);
    if (!j_.o.correlations_seen()) look_at_samples();
    for (const layer_input input : layer_inputs)
      if (belongs(input, part)) inputs_[static_cast<size_t>(input)].finish();
  }
  index_t non_finite() const override {
    index_t count = unfinite_;
    for (const auto& moment : inputs_) count += moment.non_finite();
    return count;
  }
  void forget() override {
    inputs_ = {};
    solver_.begin(0);
    rounding_.forget();
    for (auto* sample : {&attention_sample_, &mlp_sample_}) *sample = {};
    for (auto* outputs : {&wanted_attention_, &wanted_mlp_}) *outputs = {};
  }
  const std::vector<float>& absolute_mean(layer_input input) const override {
    return inputs_[static_cast<size_t>(input)].absolute_mean();
  }

  cache_scales largest_cached() const override { return cached_; }
  const input_sample& sample(layer_input input) const override { return rounding_.sample(input); }

  void hold(layer_weights& w, const std::vector<projection>& linears) override {
    w_ = &w;
    held_ = linears;
    if (!j_.o.smoothed()) return;
    const stopwatch watch(times_, phase::scales);
    rounding_.hold(w, linears);
  }
  double unscaled_loss(projection p, const packed& as) override {
    const stopwatch watch(times_, phase::scales);
    const std::vector<float> ones(static_cast<size_t>(inputs(j_.model, p)), 1.0f);
    return host::scaled_loss(held(p), ones.data(), moment(p), as.group, as.scheme, minmax{});
  }
  void add_importance(projection p, const packed& as, double* sum) override {
    const stopwatch watch(times_, phase::scales);
    host::weight_importance(held(p), as.group, sum);
  }
  double scaled_loss(projection p, const packed& as, const float* s) override {
    const stopwatch watch(times_, phase::scales);
    if (j_.o.solved()) {
      const judged_rows rows(held(p), s);
      return rows.times * solver_.judge(p, rows.scaled(), {s, s + rows.cols}, moment(p), as);
    }
    double loss = 0;
    with_range_method(
        j_.o.clip, [&](auto method) { loss = host::scaled_loss(held(p), s, moment(p), as.group, as.scheme, method); });
    return loss;
  }
  double block_loss(layer_input input, const layer_packing& how, const float* s) override;
  std::vector<double> rounded_losses(const layer_packing& how, const std::vector<float>& s,
                                     const std::vector<rounded_inputs>& inputs) override {
    const stopwatch watch(times_, phase::scales);
    return rounding_.losses(how, j_.stored, s, inputs);
  }
  double rounded_loss(const layer_weights& w, projection p, const packing& how, const quantized_linear& q,
                      const std::vector<float>& s, const rounded_inputs& inputs, const float* of_row) override {
    const stopwatch watch(times_, phase::scales);
    return rounding_.loss(w, p, how, j_.stored, q, s, inputs, of_row);
  }
  std::vector<double> input_costs(layer_input input, const std::vector<float>& s, const std::vector<double>& importance,
                                  code_type type, const std::vector<float>& scales) override {
    const stopwatch watch(times_, phase::scales);
    return rounding_.costs(input, s, importance, type, scales);
  }
  chosen_codes choose_codes(const layer_weights& w, projection p, const packed& as, const std::vector<float>& s,
                            const float* of_row) override;

 private:
  matrix<float> x() { return {data_.data(), tokens_.tokens(), j_.model.hidden}; }
  /// Those of the original model, of the first tokens. @pre j.o.drift_followed()
  matrix<float> original() { return {data_.data() + x().size(), j_.followed_tokens(), j_.model.hidden}; }
  void look_at_samples();
  void gather_both(const layer_weights& w, layer_part half, phase_times& here, const observer& observe);
  matrix<const float> held(projection p) const { return w_->at(j_.model, p); }
  const host::second_moment& moment(projection p) const { return inputs_[static_cast<size_t>(input_of(p))]; }
  void run_block(bool attention, size_t sequence, std::vector<float>& out) const;

  const job& j_;
  batch tokens_;
  std::vector<float> data_;  ///< of x, then of original
  std::array<host::second_moment, 4> inputs_;
  cache_scales cached_;
  index_t unfinite_ = 0;  ///< NaN and ±inf among tokens that inputs_ did not see
  host_solver solver_;
  host_rounding rounding_;  ///< where SmoothQuant looks at samples
  phase_times times_{};
  layer_weights* w_ = nullptr;
  std::vector<projection> held_;
  std::vector<index_t> sample_starts_;                             ///< the sample's sequences
  std::vector<float> attention_sample_, mlp_sample_;               ///< (tokens, hidden), for block losses
  std::vector<std::vector<float>> wanted_attention_, wanted_mlp_;  ///< outputs of the blocks as they are, by sequence
};

/// What is known of the samples stands for all tokens; NaN and ±inf were counted before.
void host_arithmetic::look_at_samples() {
  for (const layer_input input : layer_inputs) {
    const matrix<const float> rows = rounding_.rows(input);
    auto& moment = inputs_[static_cast<size_t>(input)] =
        host::second_moment(rows.cols, rows.rows, j_.o.shrinkage, j_.precision);
    moment.add(rows);
  }
}

/// A chunk of sequences of the original model's activations through a half of w, then of the quantized one's, which stay: what linears
/// read of the first, and the residual stream that the half adds to, are kept to be compared with the second. Then the quantized one's of
/// sequences on which the original is not followed.
void host_arithmetic::gather_both(const layer_weights& w, layer_part half, phase_times& here, const observer& observe) {
  constexpr index_t chunk_bytes = index_t(16) << 20;  // of what is kept: the allocator has such buffers again at once
  const config& c = j_.model;
  index_t widths = c.hidden;
  for (const layer_input input : layer_inputs)
    if (belongs(input, half)) widths += width(c, input);
  const index_t chunk_tokens = chunk_bytes / (4 * widths);
  const auto& starts = tokens_.starts;
  const auto followed = static_cast<size_t>(j_.followed), sequences = starts.size() - 1;
  const auto sequences_of = [&](size_t first, size_t last) {
    std::vector<index_t> chunk;
    for (size_t i = first; i <= last; ++i) chunk.push_back(starts[i] - starts[first]);
    return chunk;
  };
  std::array<std::vector<float>, 4> kept;
  std::vector<float> residual;
  for (size_t first = 0, last; first < followed; first = last) {
    for (last = first + 1; last < followed && starts[last + 1] - starts[first] <= chunk_tokens;) ++last;
    const std::vector<index_t> chunk = sequences_of(first, last);
    const auto before = original().rows_at(starts[first], chunk.back()), now = x().rows_at(starts[first], chunk.back());
    residual.assign(before.data, before.data + before.size());
    for (auto& each : kept) each.clear();
    forward_layer(
        c, w, before, chunk,
        [&](layer_input input, matrix<const float> activations) {
          auto& to = kept[static_cast<size_t>(input)];
          for (index_t row = 0; row < activations.rows; ++row)
            to.insert(to.end(), activations.row(row), activations.row(row) + activations.cols);
        },
        half);
    std::array<index_t, 4> compared{};
    observe_half(c, w, half, now, chunk, [&](layer_input input, matrix<const float> activations) {
      observe(input, activations);
      const stopwatch watch(here, phase::statistics);
      index_t& at = compared[static_cast<size_t>(input)];
      const auto part = [&](const std::vector<float>& from, index_t cols) {
        return matrix<const float>(from.data() + at * cols, activations.rows, cols);
      };
      solver_.drift_of(input, c).add(part(kept[static_cast<size_t>(input)], activations.cols), activations,
                                     part(residual, c.hidden), now.rows_at(at, activations.rows));
      at += activations.rows;
    });
  }
  if (followed == sequences) return;
  const std::vector<index_t> rest = sequences_of(followed, sequences);
  observe_half(c, w, half, x().rows_at(starts[followed], rest.back()), rest, observe);
}

/// The attention's or the MLP's output on one sequence of its sample.
void host_arithmetic::run_block(bool attention, size_t sequence, std::vector<float>& out) const {
  const config& c = j_.model;
  const auto& sample = attention ? attention_sample_ : mlp_sample_;
  const index_t first = sample_starts_[sequence], tokens = sample_starts_[sequence + 1] - first;
  out.resize(static_cast<size_t>(tokens * c.hidden));
  const matrix<const float> x(sample.data() + first * c.hidden, tokens, c.hidden);
  const matrix<float> y(out.data(), tokens, c.hidden);
  if (attention)
    attention_block(c, *w_, x, {0, tokens}, y);
  else
    mlp_block(c, *w_, x, y);
}

/// A sequence at a time: the blocks' scratch for all of them would outgrow the layer.
double host_arithmetic::block_loss(layer_input input, const layer_packing& how, const float* s) {
  const stopwatch watch(times_, phase::scales);
  const bool attention = input == layer_input::attention;
  const size_t sequences = sample_starts_.size() - 1;
  auto& wanted = attention ? wanted_attention_ : wanted_mlp_;
  if (wanted.empty()) {
    wanted.resize(sequences);
    for (size_t i = 0; i < sequences; ++i) run_block(attention, i, wanted[i]);
  }
  std::vector<std::vector<float>> originals;
  for (const projection p : held_) {
    const packed as(how, p, j_.stored);
    originals.push_back(w_->w[static_cast<size_t>(p)]);
    with_range_method(j_.o.clip, [&](auto method) {
      host::round_scaled(w_->at(j_.model, p), s, moment(p), as.group, as.scheme, method);
    });
  }
  std::vector<float> got;
  double sum = 0, count = 0;
  for (size_t sequence = 0; sequence < sequences; ++sequence) {
    run_block(attention, sequence, got);
    for (size_t i = 0; i < got.size(); ++i) {
      const double difference = static_cast<double>(got[i]) - static_cast<double>(wanted[sequence][i]);
      sum += difference * difference;
    }
    count += static_cast<double>(got.size());
  }
  for (size_t i = 0; i < originals.size(); ++i) w_->w[static_cast<size_t>(held_[i])] = std::move(originals[i]);
  return sum / std::max(count, 1.0);
}

chosen_codes host_arithmetic::choose_codes(const layer_weights& all, projection which, const packed& as,
                                           const std::vector<float>& s, const float* of_row) {
  const matrix<const float> w = all.at(j_.model, which);
  const host::second_moment& x = moment(which);
  const group_shape g = per_group(as.group);
  chosen_codes out;
  quantized_linear& q = out.q = quantized_linear::blank(w.rows, w.cols, as.group);
  if (j_.o.solved()) {
    const stopwatch watch(times_, phase::codes);
    out.loss = solver_.choose(which, w, s, of_row, x, as, q);
    out.range = compare_to_whole(w, q, as);
    return out;
  }
  std::vector<float> importance(s.size());
  for (size_t j = 0; j < s.size(); ++j) importance[j] = x.diagonal()[j] / (s[j] * s[j]);
  {
    const stopwatch watch(times_, phase::ranges);
    with_range_method(j_.o.clip,
                      [&](auto range) { host::fit(w, q.param_matrix(), g, as.scheme, range, importance.data()); });
    if (j_.o.clip == clip_search::gram)
      host::clip_under_gram(w, s.data(), x, as.group, as.scheme, q.param_matrix(), clip_steps);
  }
  const stopwatch watch(times_, phase::codes);
  const matrix<const params> p = q.param_matrix();
  host::quantize(w, p, q.code_matrix(), g, as.scheme);
  if (j_.o.sweeps > 0) host::sweep(w, s.data(), x, p, as.group, as.scheme, j_.o.sweeps, q.code_matrix());
  out.loss = host::codes_loss(w, q.code_matrix(), p, s.data(), x, as.group, as.scheme, of_row);
  out.range = compare_to_whole(w, q, as);
  return out;
}

}  // namespace

std::unique_ptr<engine> host_engine(const job& j) {
  return std::make_unique<host_arithmetic>(j);
}

}  // namespace nibble::mistral
