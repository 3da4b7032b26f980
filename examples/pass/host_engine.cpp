// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "mistral/rows.hpp"
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
    if (j_.o.drift_followed()) copy_rows(x().rows_at(0, original().rows), original());
  }
  void set(std::vector<float> x) override { data_ = std::move(x); }
  const std::vector<float>& get() override { return data_; }
  void forward(index_t layer) override { forward(j_.load_layer(layer), layer_part::whole); }
  void forward(const layer_weights& w, layer_part part) override {
    const stopwatch watch(times_, phase::forward);
    const auto sequences = static_cast<index_t>(tokens_.starts.size()) - 1;
    if (kept_ > 0) {
      const index_t width = mistral::width(j_.model, last_input(part));
      finish_half(j_.model, w, part, matrix<const float>(made_.data(), tokens_of(kept_), width),
                  x().rows_at(0, tokens_of(kept_)));
    }
    if (kept_ < sequences)
      forward_layer(j_.model, w, x_of(kept_, sequences), starts_of(kept_, sequences), nullptr, part);
    kept_ = 0;
  }

  void gather(index_t layer, const layer_weights& w, bool keep) override {
    begin_gathering(layer, layer_part::whole, half_inputs::both);
    phase_times here{};
    {
      const stopwatch watch(here, phase::forward);
      if (j_.o.cache_rounded) cached_ = mistral::largest_cached(j_.model, w, x(), tokens_.starts);
      std::vector<float> copy;
      if (keep) copy = data_;
      const matrix<float> all(keep ? copy.data() : data_.data(), tokens_.tokens(), j_.model.hidden);
      forward_layer(j_.model, w, all, tokens_.starts, observing(here));
    }
    end_gathering(layer_part::whole, half_inputs::both, here);
  }
  void gather_half(index_t layer, layer_weights& w, layer_part half, half_inputs seen, index_t room) override {
    begin_gathering(layer, half, seen);
    const bool last = seen == half_inputs::last;
    if (!last) remember(w, half);
    kept_ = last ? sequences_in(room, half) : 0;
    phase_times here{};
    {
      const stopwatch watch(here, phase::forward);
      if (j_.o.cache_rounded && half == layer_part::attention && last)
        cached_ = mistral::largest_cached(j_.model, w, x(), tokens_.starts);
      const observer observe = keeping(observing(here), half);
      const half_inputs compared = last ? half_inputs::last : half_inputs::first;
      if (j_.o.drift_followed()) gather_drift(w, half, compared, here, observe);
      const auto all = static_cast<index_t>(tokens_.starts.size()) - 1;
      const auto followed = static_cast<index_t>(j_.followed);
      if (followed < all)
        observe_half(j_.model, w, half, x_of(followed, all), starts_of(followed, all), observe, compared);
      if (seen == half_inputs::both) observe_half(j_.model, w, half, x(), tokens_.starts, observe, half_inputs::last);
    }
    if (last) original_ = {};
    end_gathering(half, seen, here);
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

  const cache_maxima& largest_cached() const override { return cached_; }
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
  void begin_gathering(index_t layer, layer_part part, half_inputs seen);
  observer observing(phase_times& here);
  observer keeping(observer tell, layer_part half);
  void end_gathering(layer_part part, half_inputs seen, const phase_times& here);
  void remember(const layer_weights& w, layer_part half);
  void exchange_with_original(layer_weights& w);
  void gather_drift(layer_weights& w, layer_part half, half_inputs seen, phase_times& here, const observer& observe);
  /// How many of the first sequences there is room for of what the last linear of a half reads.
  index_t sequences_in(index_t room, layer_part half) const {
    const index_t most = room / (index_t{sizeof(float)} * width(j_.model, last_input(half)));
    const auto& starts = tokens_.starts;
    return static_cast<index_t>(std::upper_bound(starts.begin(), starts.end(), most) - starts.begin()) - 1;
  }
  index_t tokens_of(index_t sequences) const { return tokens_.starts[static_cast<size_t>(sequences)]; }
  /// Of sequences [first, last): x's rows, and where each starts in them.
  matrix<float> x_of(index_t first, index_t last) {
    return x().rows_at(tokens_of(first), tokens_of(last) - tokens_of(first));
  }
  std::vector<index_t> starts_of(index_t first, index_t last) const {
    std::vector<index_t> starts;
    for (index_t i = first; i <= last; ++i) starts.push_back(tokens_of(i) - tokens_of(first));
    return starts;
  }
  matrix<const float> held(projection p) const { return w_->at(j_.model, p); }
  const host::second_moment& moment(projection p) const { return inputs_[static_cast<size_t>(input_of(p))]; }
  void run_block(bool attention, size_t sequence, std::vector<float>& out) const;

  const job& j_;
  batch tokens_;
  std::vector<float> data_;  ///< of x, then of original
  /// What of a half will change before its last linear is quantized, as the checkpoint has it; linears that will not are empty.
  layer_weights original_;
  row_buffer made_;   ///< what the last linear of the half that was gathered last reads
  index_t kept_ = 0;  ///< of so many sequences
  std::array<host::second_moment, 4> inputs_;
  cache_maxima cached_;
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

void host_arithmetic::begin_gathering(index_t layer, layer_part part, half_inputs seen) {
  solver_.begin(layer);
  unfinite_ = 0;
  inputs_ = {};
  for (const layer_input input : layer_inputs)
    if (belongs(input, part) && belongs(input, seen))
      inputs_[static_cast<size_t>(input)] = host::second_moment(
          width(j_.model, input), j_.o.correlations_seen() ? tokens_.tokens() : 0, j_.o.shrinkage, j_.precision);
  if (j_.o.smoothed()) rounding_.begin(max(index_t(1), tokens_.tokens() / smoothing_tokens));
}

/// Adds what it is told to the statistics. @param here  outlives it; where their time goes
observer host_arithmetic::observing(phase_times& here) {
  return [this, &here](layer_input input, matrix<const float> activations) {
    const stopwatch watch(here, phase::statistics);
    if (j_.o.correlations_seen())
      inputs_[static_cast<size_t>(input)].add(activations);
    else
      unfinite_ += host::count_non_finite(activations);
    if (j_.o.smoothed()) rounding_.take(input, activations);
    if (is_last(input)) return;
    auto& sample = input == layer_input::attention ? attention_sample_ : mlp_sample_;
    const index_t hidden = j_.model.hidden;
    const auto missing = static_cast<index_t>(static_cast<size_t>(sample_starts_.back() * hidden) - sample.size());
    for (index_t row = 0; row < min(activations.rows, missing / hidden); ++row)
      sample.insert(sample.end(), activations.row(row), activations.row(row) + hidden);
  };
}

/// Copies what the last linear of a half reads of the first kept_ sequences, besides.
observer host_arithmetic::keeping(observer tell, layer_part half) {
  if (kept_ == 0) return tell;
  const matrix<float> room = view(made_, tokens_of(kept_), width(j_.model, last_input(half)));
  return [room, at = index_t(0), tell = std::move(tell)](layer_input input, matrix<const float> activations) mutable {
    tell(input, activations);
    const index_t rows = min(room.rows - at, activations.rows);
    copy_rows(activations.rows_at(0, rows), room.rows_at(at, rows));
    at += rows;
  };
}

/// @param here  of a forward pass and the statistics that were seen on its way.
void host_arithmetic::end_gathering(layer_part part, half_inputs seen, const phase_times& here) {
  const double observed = here[static_cast<size_t>(phase::statistics)];
  times_[static_cast<size_t>(phase::forward)] += here[static_cast<size_t>(phase::forward)] - observed;
  times_[static_cast<size_t>(phase::statistics)] += observed;
  const stopwatch watch(times_, phase::statistics);
  if (!j_.o.correlations_seen()) look_at_samples();
  for (const layer_input input : layer_inputs)
    if (belongs(input, part) && belongs(input, seen)) inputs_[static_cast<size_t>(input)].finish();
}

/// Copies what the original model's activations are still to go through when w has changed: scales change all of a half.
void host_arithmetic::remember(const layer_weights& w, layer_part half) {
  original_ = {};
  if (!j_.o.drift_followed()) return;
  for (const projection p : projections)
    if (belongs(input_of(p), half) && (j_.o.scaled() || p != last_linear(half)))
      original_.w[static_cast<size_t>(p)] = w.w[static_cast<size_t>(p)];
  original_.input_norm = w.input_norm, original_.post_norm = w.post_norm, original_.rounded = w.rounded;
}

void host_arithmetic::exchange_with_original(layer_weights& w) {
  for (size_t p = 0; p < w.w.size(); ++p)
    if (!original_.w[p].empty()) std::swap(w.w[p], original_.w[p]);
  std::swap(w.input_norm, original_.input_norm);
  std::swap(w.post_norm, original_.post_norm);
  std::swap(w.rounded, original_.rounded);
}

/// Of sequences on which the original model is followed, a chunk at a time: what linears of a half of it read is kept to be compared with
/// what those of w read, as is the residual stream that the half adds to. @param seen  first or last @param observe  told of the second
void host_arithmetic::gather_drift(layer_weights& w, layer_part half, half_inputs seen, phase_times& here,
                                   const observer& observe) {
  constexpr index_t chunk_bytes = index_t(16) << 20;  // of what is kept: the allocator has such buffers again at once
  const config& c = j_.model;
  const bool through = seen == half_inputs::last;
  const layer_input compared = through ? last_input(half) : first_input(half);
  const index_t cols = width(c, compared), chunk_tokens = chunk_bytes / (4 * (cols + c.hidden));
  const auto followed = static_cast<index_t>(j_.followed);
  row_buffer kept_data, residual_data;
  for (index_t first = 0, last; first < followed; first = last) {
    for (last = first + 1; last < followed && tokens_of(last + 1) - tokens_of(first) <= chunk_tokens;) ++last;
    const std::vector<index_t> chunk = starts_of(first, last);
    const auto before = original().rows_at(tokens_of(first), chunk.back()), now = x_of(first, last);
    const auto kept = view(kept_data, before.rows, cols), residual = view(residual_data, before.rows, c.hidden);
    copy_rows(before, residual);
    index_t at = 0;
    const observer keep = [&](layer_input input, matrix<const float> activations) {
      if (input != compared) return;
      copy_rows(activations, kept.rows_at(at, activations.rows));
      at += activations.rows;
    };
    if (through) {
      exchange_with_original(w);
      forward_layer(c, w, before, chunk, keep, half);
      exchange_with_original(w);
    } else {
      observe_half(c, w, half, before, chunk, keep, seen);
    }
    at = 0;
    const auto compare = [&](layer_input input, matrix<const float> activations) {
      observe(input, activations);
      const stopwatch watch(here, phase::statistics);
      const index_t rows = activations.rows;
      solver_.drift_of(input, c).add(kept.rows_at(at, rows), activations, residual.rows_at(at, rows),
                                     now.rows_at(at, rows));
      at += rows;
    };
    observe_half(c, w, half, now, chunk, compare, seen);
  }
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
