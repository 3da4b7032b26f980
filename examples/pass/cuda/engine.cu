// SPDX-License-Identifier: Apache-2.0
/// @file
/// The engine of a GPU. Activations, statistics and Gram matrices stay on the device, in the stream of the forward pass; weights
/// come from the host, those that scales are searched for whole, those that codes are chosen for a tile of rows at a time. Where
/// GPTQ makes up for drift, the forward pass has two residual streams: the quantized model's, and the original's beside it.
#include "pass/engine.hpp"

#include <algorithm>
#include <numeric>

#include "mistral/cuda/forward.cuh"
#include "nibble/kernels/observe.cuh"
#include "nibble/kernels/target.cuh"
#include "pass/cuda/apart.cuh"
#include "pass/cuda/linears.cuh"
#include "pass/cuda/rounded.cuh"
#include "pass/cuda/solver.cuh"
#include "pass/input_scale.hpp"
#include "pass/job.hpp"
#include "pass/judged_rows.hpp"

namespace nibble::mistral {
namespace {

using cuda::check;
using cuda::device_memory;
using cuda::search_limits;

/// Tokens that are observed at a time.
constexpr index_t observed_tokens = 2048;
/// Columns of a Gram matrix in bf16 at a time: wider ones are rounded again for each loss, which costs a tenth of its product.
constexpr index_t gram_panel = 4096;
/// Weights that GPTQ solves at a time: each row of them is a warp's, and a linear of Mistral-7B is whole.
constexpr index_t solved_tile = index_t(1) << 26;

index_t widest(const config& c) {
  return max(max(c.intermediate, c.hidden), c.q_width());
}
index_t elements(const config& c, const std::vector<projection>& linears) {
  index_t sum = 0;
  for (const projection p : linears) sum += outputs(c, p) * inputs(c, p);
  return sum;
}
/// Weights that are held at once: those of the linears that share an input.
index_t held_elements(const config& c) {
  return max(
      max(elements(c, {projection::q, projection::k, projection::v}), elements(c, {projection::gate, projection::up})),
      max(elements(c, {projection::o}), elements(c, {projection::down})));
}
index_t largest_linear(const config& c) {
  index_t largest = 0;
  for (const projection p : projections) largest = max(largest, elements(c, {p}));
  return largest;
}
/// Weights whose differences are judged at once: AWQ takes the linears of an input together, SmoothQuant one after another.
index_t judged_elements(const job& j) {
  return j.o.smoothed() ? largest_linear(j.model) : held_elements(j.model);
}

/// Channels of the residual stream that down, which reads `input`, makes up for.
index_t joined(const job& j, layer_input input) {
  return j.o.residual_followed() && input == layer_input::down ? j.model.hidden : 0;
}

search_limits limits_of(const job& j) {
  const config& c = j.model;
  if (!j.o.solved()) return {judged_elements(j), widest(c), gram_panel};
  search_limits limits(judged_elements(j), widest(c), gram_panel, solved_tile);
  for (index_t layer = 0; layer < c.layers; ++layer) {
    const layer_packing how = j.packings(layer);
    for (const projection p : projections)
      if (is_packed(how, p))
        limits.workspace = max(limits.workspace, cuda::linear_solver::workspace_bytes(
                                                     j.o, limits.rows(outputs(c, p), inputs(c, p)), inputs(c, p),
                                                     packed(how, p, j.stored), j.o.drift_followed()));
  }
  return limits;
}

/// Whether the checkpoint's linears are numbers of bf16, as which they then are held.
bool exact_in_bf16(const job& j) {
  for (index_t layer = 0; layer < j.model.layers; ++layer)
    for (const projection p : projections)
      if (j.files.at(projection_name(layer, p) + ".weight").dtype != "BF16") return false;
  return true;
}
index_t held_bytes(const job& j) {
  return held_elements(j.model) * (exact_in_bf16(j) ? index_t{sizeof(bf16)} : index_t{sizeof(float)});
}

/// Every so many-th token stands for all where SmoothQuant looks at samples, the first ones do where outputs of blocks are judged.
index_t tokens_apart(const job& j) {
  return j.o.smoothed() ? max(index_t(1), j.samples.tokens() / smoothing_tokens) : 1;
}
index_t sampled_tokens(const job& j) {
  return j.o.smoothed() ? ceil_div(j.samples.tokens(), tokens_apart(j)) : j.judged_tokens();
}

cuda::rounding_limits rounding_limits_of(const job& j) {
  cuda::rounding_limits limits;
  if (!j.o.smoothed()) return limits;
  const config& c = j.model;
  limits.elements = largest_linear(c), limits.widest = widest(c);
  limits.tokens = sampled_tokens(j), limits.scales = input_scales_tried;
  for (index_t layer = 0; layer < c.layers; ++layer) {
    const layer_packing how = j.packings(layer);
    for (const projection p : projections) {
      if (!is_packed(how, p)) continue;
      const packing& as = *how[static_cast<size_t>(p)];
      const group_shape g = {as.rows, as.group};
      limits.outputs = max(limits.outputs, outputs(c, p));
      limits.groups = max(limits.groups, g.down(outputs(c, p)) * g.across(inputs(c, p)));
    }
  }
  return limits;
}

/// Of keys, then of values, where their largest are wanted.
index_t cached_channels(const job& j) {
  return j.o.cache_rounded ? 2 * j.model.kv_width() : 0;
}

/// What is kept of tokens that linears read.
struct device_sample {
  device_memory<bf16> rows;      ///< (sampled tokens, k)
  device_memory<float> largest;  ///< (k): max |x| over all tokens
  index_t seen = 0;              ///< tokens

  device_sample(index_t k, index_t tokens) : rows(tokens * k, "a sample of tokens"), largest(k, "statistics") {}
  matrix<bf16> at() const { return {rows.data(), rows.size() / largest.size(), largest.size()}; }
  static index_t bytes(index_t k, index_t tokens) {
    return tokens > 0 ? k * (index_t{sizeof(bf16)} * tokens + index_t{sizeof(float)}) : 0;
  }
};

/// Device memory beside the forward pass's.
index_t engine_bytes(const job& j) {
  const config& c = j.model;
  const bool followed = j.o.drift_followed();
  index_t bytes = limits_of(j).bytes() + held_bytes(j) + 2 * min(observed_tokens, j.samples.tokens()) * widest(c);
  for (const layer_input input : layer_inputs) {
    bytes += cuda::input_statistics::bytes(width(c, input), followed, joined(j, input));
    bytes += device_sample::bytes(width(c, input), sampled_tokens(j));
  }
  if (j.o.smoothed()) bytes += rounding_limits_of(j).bytes();
  if (j.o.solved()) bytes += cuda::linear_solver::bytes(j.o, widest(c), followed);
  if (followed)
    bytes += index_t{2 * sizeof(float)} * min(kernels::detail::drift_tokens, j.samples.tokens()) * widest(c);
  return bytes + index_t{sizeof(float)} * cached_channels(j) + index_t{sizeof(double)} * j.judged_tokens();
}

class gpu_arithmetic : public engine {
 public:
  gpu_arithmetic(const job& j, const gpu& on)
      : j_(j),
        name_(on.name),
        tokens_(j.tokens()),
        forward_(j.model, tokens_.starts, on.device, engine_bytes(j), true, j.followed_tokens()),
        linears_(limits_of(j), forward_.compute(), forward_.products()),
        non_finite_there_(1, "statistics"),
        cached_there_(cached_channels(j), "statistics"),
        judged_(j.judged_tokens(), "losses"),
        in_bf16_(exact_in_bf16(j)),
        held_(held_bytes(j), "the linears that are searched"),
        clean_(min(observed_tokens, tokens_.tokens()) * widest(j.model), "activations") {
    for (const layer_input input : layer_inputs) {
      inputs_.emplace_back(width(j.model, input), j.o.drift_followed(), joined(j, input));
      if (sampled_tokens(j) > 0) sampled_.emplace_back(width(j.model, input), sampled_tokens(j));
    }
    if (j.o.smoothed()) rounding_.emplace(rounding_limits_of(j), linears_);
    if (j.o.solved()) solver_.emplace(j.o, widest(j.model), linears_);
  }

  std::string name() const override { return name_; }
  bool on_gpu() const override { return true; }
  phase_times times() const override { return linears_.clock().sums(); }

  void embed() override { forward_.embed(j_.files, tokens_.ids); }
  void set(std::vector<float> x) override {
    forward_.upload({x.data(), rows(), j_.model.hidden});
    linears_.wait();
  }
  const std::vector<float>& get() override {
    forward_.download({room(), rows(), j_.model.hidden});
    return data_;
  }
  void forward(index_t layer) override {
    if (staged_ != layer) forward_.stage(j_.files, layer);
    run_staged(layer_part::whole);
  }
  void forward(const layer_weights& w, layer_part part) override {
    if (part == layer_part::whole)
      forward_.stage(w);
    else
      forward_.stage_over(w, part);  // the other half of the layer is there
    run_staged(part);
  }
  void gather(index_t layer, const layer_weights& w, bool keep) override;
  void gather_half(index_t layer, layer_weights& w, layer_part half, half_inputs seen, index_t room) override;
  index_t non_finite() const override { return non_finite_; }
  void forget() override {
    data_ = {};
    samples_ = {};
  }
  const cache_maxima& largest_cached() const override { return cached_; }
  const std::vector<float>& absolute_mean(layer_input input) const override { return at(input).mean; }

  const input_sample& sample(layer_input input) const override { return samples_[static_cast<size_t>(input)]; }

  void hold(layer_weights& w, const std::vector<projection>& linears) override {
    holding_ = linears;
    w_ = &w;
    index_t at = 0;
    for (const projection p : linears) {
      const matrix<const float> linear = w.at(j_.model, p);
      held_at_[static_cast<size_t>(p)] = at;
      if (in_bf16_)
        linears_.upload(reinterpret_cast<bf16*>(held_.data()) + at, linear);
      else
        linears_.upload(reinterpret_cast<float*>(held_.data()) + at, linear);
      at += linear.size();
    }
  }
  double unscaled_loss(projection p, const packed& as) override {
    linears_.use(at(input_of(p)));
    return with_held(p, [&](auto w) { return linears_.unscaled_loss(w, as); });
  }
  void add_importance(projection p, const packed& as, double* sum) override {
    with_held(p, [&](auto w) { linears_.add_importance(w, as, sum); });
  }
  double scaled_loss(projection p, const packed& as, const float* s) override {
    if (solver_) {
      const judged_rows rows(w_->at(j_.model, p), s);
      linears_.multiply_rows(nullptr, rows.rows);
      return rows.times *
             solver_->judge(input_of(p), at(input_of(p)), rows.scaled(), as, std::vector<float>(s, s + rows.cols));
    }
    linears_.use(at(input_of(p)));
    return with_held(p, [&](auto w) { return linears_.scaled_loss(w, as, j_.o.clip, s); });
  }
  double block_loss(layer_input input, const layer_packing& how, const float* s) override;
  std::vector<double> rounded_losses(const layer_packing& how, const std::vector<float>& s,
                                     const std::vector<rounded_inputs>& inputs) override {
    std::vector<double> out;
    for (size_t i = 0; i < holding_.size(); ++i) {
      const projection p = holding_[i];
      if (i == 0 || !(inputs[i] == inputs[i - 1])) rounding_->use(sample_rows(input_of(p)), s.data(), inputs[i]);
      out.push_back(
          with_held(p, [&](auto w) { return rounding_->whole_loss(w, *how[static_cast<size_t>(p)], j_.stored); }));
    }
    return out;
  }
  double rounded_loss(const layer_weights& w, projection p, const packing& how, const quantized_linear& q,
                      const std::vector<float>& s, const rounded_inputs& inputs, const float* of_row) override {
    rounding_->use(sample_rows(input_of(p)), s.data(), inputs);
    return rounding_->loss(w.at(j_.model, p), how, j_.stored, q, of_row);
  }
  std::vector<double> input_costs(layer_input input, const std::vector<float>& s, const std::vector<double>& importance,
                                  code_type type, const std::vector<float>& scales) override {
    return rounding_->costs(sample_rows(input), s.data(), importance, type, scales);
  }
  chosen_codes choose_codes(const layer_weights& w, projection p, const packed& as, const std::vector<float>& s,
                            const float* of_row) override {
    linears_.multiply_rows(of_row, outputs(j_.model, p));
    if (solver_)
      return solver_->choose_codes(input_of(p), at(input_of(p)), j_.followed_tokens(), w.at(j_.model, p), as, s);
    linears_.use(at(input_of(p)));
    return linears_.choose_codes(w.at(j_.model, p), as, j_.o.clip, j_.o.sweeps, s);
  }

 private:
  /// f(w), a held linear as it is stored on the device.
  template <class F>
  std::invoke_result_t<F, matrix<const float>> with_held(projection p, F f) const {
    const index_t at = held_at_[static_cast<size_t>(p)], n = outputs(j_.model, p), k = inputs(j_.model, p);
    return in_bf16_ ? f(matrix<const bf16>(reinterpret_cast<const bf16*>(held_.data()) + at, n, k))
                    : f(matrix<const float>(reinterpret_cast<const float*>(held_.data()) + at, n, k));
  }
  matrix<const bf16> sample_rows(layer_input input) const { return sampled_[static_cast<size_t>(input)].at(); }
  const cuda::input_statistics& at(layer_input input) const { return inputs_[static_cast<size_t>(input)]; }
  cudaStream_t stream() const { return forward_.compute(); }
  void run_staged(layer_part part, const cuda::device_observer& observer = nullptr,
                  const cuda::device_cache_observer& cached = nullptr) {
    staged_ = -1;
    const cuda::phase_clock::span span(linears_.clock(), phase::forward);
    forward_.forward_layer(observer, cached, part);
  }
  /// A half of what is staged, of which nothing but statistics comes; the original's stream, where it is followed, goes through it as
  /// forward_beside() says.
  void run_half(layer_part half, half_inputs seen, const cuda::device_cache_observer& cached);
  void begin_gathering(index_t layer);
  void end_gathering(layer_part part, half_inputs seen);
  cuda::device_cache_observer cache_observer();
  template <class T>
  void clear(const device_memory<T>& memory) {
    check(cudaMemsetAsync(memory.data(), 0, static_cast<size_t>(memory.size()) * sizeof(T), stream()),
          "clear statistics");
  }
  /// Of activations: the quantized model's, then the original's where that is followed.
  index_t rows() const { return tokens_.tokens() + j_.followed_tokens(); }
  float* room() {
    data_.resize(j_.activations());
    return data_.data();
  }
  void observe(layer_input input, matrix<const bf16> x);
  void observe_cached(matrix<const bf16> k, matrix<const bf16> v);
  void add_to_gram(matrix<const bf16> x, kernels::statistics sums, const cuda::input_statistics& to);
  void take(matrix<const bf16> x, device_sample& into);
  void look_at_sample(layer_input input);
  void finish(cuda::input_statistics& each);

  const job& j_;
  std::string name_;
  batch tokens_;
  cuda::forward_pass forward_;
  cuda::linear_search linears_;
  std::optional<cuda::linear_solver> solver_;
  std::optional<cuda::rounding_search> rounding_;
  std::vector<cuda::input_statistics> inputs_;  ///< by layer_input
  std::vector<device_sample> sampled_;          ///< by layer_input, where samples are looked at
  std::array<input_sample, 4> samples_;         ///< what the host asks of them
  device_memory<uint64_t> non_finite_there_;
  device_memory<float>
      cached_there_;  ///< by channel: the largest |k|, then the largest |v|; nothing where they are not wanted
  device_memory<double> judged_;  ///< by token that blocks are judged on: squares of errors
  bool in_bf16_;
  device_memory<std::byte> held_;
  const layer_weights* w_ = nullptr;  ///< that held_ was copied from
  device_memory<bf16> clean_;
  cuda::workspace workspace_;
  std::vector<float> data_;
  std::vector<projection> holding_;
  std::array<index_t, 7> held_at_{};
  cache_maxima cached_;
  index_t non_finite_ = 0, staged_ = -1;
};

void gpu_arithmetic::begin_gathering(index_t layer) {
  linears_.forget();
  if (solver_) solver_->begin(layer);
  for (const cuda::input_statistics& each : inputs_) {
    clear(each.gram);
    clear(each.magnitudes);
    if (each.followed()) clear(each.drift);
    clear(each.residual_drift);
  }
  for (device_sample& each : sampled_) {
    clear(each.largest);
    each.seen = 0;
  }
  clear(non_finite_there_);
  clear(cached_there_);
}

void gpu_arithmetic::end_gathering(layer_part part, half_inputs seen) {
  for (const layer_input input : layer_inputs) {
    if (!belongs(input, part) || !belongs(input, seen)) continue;
    if (j_.o.smoothed()) look_at_sample(input);
    finish(inputs_[static_cast<size_t>(input)]);
  }
  uint64_t count = 0;
  std::vector<float> cached(static_cast<size_t>(cached_there_.size()));
  linears_.copy_back(&count, non_finite_there_.data(), 1);
  linears_.copy_back(cached.data(), cached_there_.data(), cached_there_.size());
  linears_.wait();
  non_finite_ = static_cast<index_t>(count);
  if (cached.empty()) return;
  const auto values = cached.begin() + j_.model.kv_width();
  cached_ = {{cached.begin(), values}, {values, cached.end()}};
}

cuda::device_cache_observer gpu_arithmetic::cache_observer() {
  if (!j_.o.cache_rounded) return nullptr;
  return [this](matrix<const bf16> k, matrix<const bf16> v, cudaStream_t) { observe_cached(k, v); };
}

void gpu_arithmetic::gather(index_t layer, const layer_weights&, bool keep) {
  begin_gathering(layer);
  if (keep) forward_.download({room(), tokens_.tokens(), j_.model.hidden});
  if (staged_ != layer) forward_.stage(j_.files, layer);
  run_staged(
      layer_part::whole, [&](layer_input input, matrix<const bf16> x, cudaStream_t) { observe(input, x); },
      cache_observer());
  if (keep) {
    forward_.upload({data_.data(), tokens_.tokens(), j_.model.hidden});  // data_ lives until the next layer
  } else if (layer + 1 < j_.model.layers) {
    forward_.stage(j_.files, layer + 1);  // its copy runs under this layer's arithmetic
    staged_ = layer + 1;
  }
  end_gathering(layer_part::whole, half_inputs::both);
}

void gpu_arithmetic::gather_half(index_t layer, layer_weights& w, layer_part half, half_inputs seen, index_t) {
  begin_gathering(layer);
  if (seen == half_inputs::last)
    forward_.stage_over(w, half);
  else if (half == layer_part::mlp)
    forward_.stage_again();  // forward() brought it for the first half
  else
    forward_.stage(j_.files, layer);
  run_half(half, seen, cache_observer());
  end_gathering(half, seen);
}

void gpu_arithmetic::run_half(layer_part half, half_inputs seen, const cuda::device_cache_observer& cached) {
  staged_ = -1;
  const cuda::phase_clock::span span(linears_.clock(), phase::forward);
  const half_inputs compared = seen == half_inputs::last ? half_inputs::last : half_inputs::first;
  const auto alone = [&](layer_input input, matrix<const bf16> x, cudaStream_t) { observe(input, x); };
  const auto compare = [&](layer_input input, const cuda::read_of_both& read, cudaStream_t) {
    observe(input, read.x);
    if (read.beside.empty()) return;
    const cuda::phase_clock::span statistics(linears_.clock(), phase::statistics);
    workspace_.run(
        [&](void* memory, index_t& bytes) {
          return kernels::drift(read.beside, read.x, at(input).drift_matrix(), memory, bytes, forward_.products());
        },
        "add up the drift of inputs");
    if (joined(j_, input) == 0) return;
    workspace_.run(
        [&](void* memory, index_t& bytes) {
          return kernels::drift(read.residual_beside, read.residual, read.x, at(input).residual_matrix(), memory, bytes,
                                forward_.products());
        },
        "add up the residual stream's drift");
  };
  if (j_.o.drift_followed())
    forward_.forward_beside(half, compare, cached, compared);
  else
    forward_.observe_half(half, alone, cached, compared);
  if (seen != half_inputs::both) return;
  forward_.stage_again();
  forward_.observe_half(half, alone, nullptr, half_inputs::last);
}

void gpu_arithmetic::observe_cached(matrix<const bf16> k, matrix<const bf16> v) {
  const cuda::phase_clock::span span(linears_.clock(), phase::statistics);
  check(kernels::absolute_maximum(k, cached_there_.data(), stream()), "observe keys");
  check(kernels::absolute_maximum(v, cached_there_.data() + k.cols, stream()), "observe values");
}

/// Each token is seen once for sums, maxima and what is not finite, of which it is cleaned before it goes into a Gram matrix.
void gpu_arithmetic::observe(layer_input input, matrix<const bf16> x) {
  const cuda::phase_clock::span span(linears_.clock(), phase::statistics);
  kernels::statistics sums;
  sums.non_finite = non_finite_there_.data();
  if (!sampled_.empty()) {
    device_sample& sample = sampled_[static_cast<size_t>(input)];
    if (j_.o.smoothed()) sums.absolute_maximum = sample.largest.data();
    take(x, sample);
  }
  if (j_.o.correlations_seen()) {
    sums.absolute_sum = at(input).magnitudes.data();
    return add_to_gram(x, sums, at(input));
  }
  workspace_.run(
      [&](void* memory, index_t& bytes) { return kernels::observe(x, sums, matrix<bf16>(), memory, bytes, stream()); },
      "observe activations");
}

void gpu_arithmetic::add_to_gram(matrix<const bf16> x, kernels::statistics sums, const cuda::input_statistics& to) {
  for (index_t token = 0; token < x.rows; token += observed_tokens) {
    const auto part = x.rows_at(token, min(observed_tokens, x.rows - token));
    const matrix<bf16> clean(clean_.data(), part.rows, part.cols);
    workspace_.run(
        [&](void* memory, index_t& bytes) { return kernels::observe(part, sums, clean, memory, bytes, stream()); },
        "observe activations");
    check(kernels::gram_of_finite(matrix<const bf16>(clean), to.gram_matrix(), forward_.products()),
          "add up a Gram matrix");
  }
}

/// The input's linears are rounded in differences from what they were, and the block's outputs follow.
double gpu_arithmetic::block_loss(layer_input input, const layer_packing& how, const float* s) {
  linears_.use(at(input));
  index_t rows = 0;
  for (const projection p : holding_) {
    with_held(p, [&](auto w) { linears_.find_differences(w, packed(how, p, j_.stored), j_.o.clip, s, rows); });
    rows += outputs(j_.model, p);
  }
  {
    const cuda::phase_clock::span span(linears_.clock(), phase::scales);
    clear(judged_);
    const layer_input last = last_input(input == layer_input::attention ? layer_part::attention : layer_part::mlp);
    forward_.change_block(input, {sample_rows(input), sample_rows(last)},
                          linears_.differences(0, rows, width(j_.model, input)),
                          [&](index_t first, matrix<const float> change) {
                            check(cuda::add_squares(change, judged_.data() + first, stream()), "add up errors");
                          });
  }
  std::vector<double> sums(static_cast<size_t>(judged_.size()));
  linears_.copy_back(sums.data(), judged_.data(), judged_.size());
  linears_.wait();
  return std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(judged_.size() * j_.model.hidden);
}

/// The tokens of x, which follow those that were seen, that are in the sample.
void gpu_arithmetic::take(matrix<const bf16> x, device_sample& into) {
  const index_t apart = tokens_apart(j_), first = (apart - into.seen % apart) % apart;
  const index_t at = (into.seen + first) / apart;
  if (first < x.rows && at < into.at().rows) {
    const matrix<bf16> to = into.at().rows_at(at, min(ceil_div(x.rows - first, apart), into.at().rows - at));
    const auto bytes = [](index_t count) { return static_cast<size_t>(count) * sizeof(bf16); };
    check(cudaMemcpy2DAsync(to.data, bytes(to.stride), x.row(first), bytes(apart * x.stride), bytes(x.cols),
                            static_cast<size_t>(to.rows), cudaMemcpyDeviceToDevice, stream()),
          "keep a sample of tokens");
  }
  into.seen += x.rows;
}

/// What the host asks of it; and where Gram matrices are not of all tokens, the sample's.
void gpu_arithmetic::look_at_sample(layer_input input) {
  const device_sample& from = sampled_[static_cast<size_t>(input)];
  if (!j_.o.correlations_seen()) {
    const cuda::phase_clock::span span(linears_.clock(), phase::statistics);
    kernels::statistics sums;
    sums.absolute_sum = at(input).magnitudes.data();
    add_to_gram(from.at(), sums, at(input));
  }
  input_sample& to = samples_[static_cast<size_t>(input)];
  to.tokens = from.seen, to.kept = from.at().rows;
  to.largest.resize(static_cast<size_t>(from.largest.size()));
  linears_.copy_back(to.largest.data(), from.largest.data(), from.largest.size());
}

void gpu_arithmetic::finish(cuda::input_statistics& each) {
  const auto tokens = static_cast<double>(j_.o.correlations_seen() ? tokens_.tokens() : sampled_tokens(j_));
  {
    const cuda::phase_clock::span span(linears_.clock(), phase::statistics);
    check(kernels::mirror(each.gram_matrix(), static_cast<float>(1.0 / tokens), j_.o.shrinkage, each.diagonal.data(),
                          stream()),
          "finish the statistics");
  }
  std::vector<double> sums(static_cast<size_t>(each.k()));
  each.mean.resize(sums.size());
  each.energy.resize(sums.size());
  linears_.copy_back(sums.data(), each.magnitudes.data(), each.k());
  linears_.copy_back(each.energy.data(), each.diagonal.data(), each.k());
  linears_.wait();
  for (size_t i = 0; i < sums.size(); ++i) each.mean[i] = static_cast<float>(sums[i] / tokens);
}

}  // namespace

std::unique_ptr<engine> gpu_engine(const job& j, const gpu& on) {
  return std::make_unique<gpu_arithmetic>(j, on);
}

std::uint64_t gpu_memory(const job& j, const gpu& on) {
  const index_t own = engine_bytes(j);
  const auto free = static_cast<index_t>(on.free_bytes) - own - cuda::runtime_bytes;
  return static_cast<std::uint64_t>(own + cuda::runtime_bytes +
                                    cuda::plan_either(j.model, j.tokens().starts, free, j.followed_tokens()).total());
}

}  // namespace nibble::mistral
