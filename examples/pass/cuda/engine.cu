// SPDX-License-Identifier: Apache-2.0
/// @file
/// The engine of a GPU. Activations, statistics and Gram matrices stay on the device, in the stream of the forward pass; weights
/// come from the host, those that scales are searched for whole, those that codes are chosen for a tile of rows at a time. Where
/// GPTQ makes up for drift, the forward pass has two residual streams: the quantized model's, and the original's beside it.
#include "pass/engine.hpp"

#include "mistral/cuda/forward.cuh"
#include "nibble/kernels/observe.cuh"
#include "nibble/kernels/target.cuh"
#include "pass/cuda/linears.cuh"
#include "pass/cuda/solver.cuh"
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

/// Streams of activations.
index_t streams(const job& j) {
  return j.o.drift_followed() ? 2 : 1;
}

search_limits limits_of(const job& j) {
  const config& c = j.model;
  if (!j.o.solved()) return {held_elements(c), widest(c), gram_panel};
  search_limits limits(held_elements(c), widest(c), gram_panel, solved_tile);
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

/// Device memory beside the forward pass's.
index_t engine_bytes(const job& j) {
  const config& c = j.model;
  const bool followed = j.o.drift_followed();
  index_t bytes = limits_of(j).bytes() + held_bytes(j) + 2 * min(observed_tokens, j.samples.tokens()) * widest(c);
  for (const layer_input input : layer_inputs) bytes += cuda::input_statistics::bytes(width(c, input), followed);
  if (j.o.solved()) bytes += cuda::linear_solver::bytes(j.o, widest(c), followed);
  if (followed)
    bytes += index_t{2 * sizeof(float)} * min(kernels::detail::drift_tokens, j.samples.tokens()) * widest(c);
  return bytes;
}

class gpu_arithmetic : public engine {
 public:
  gpu_arithmetic(const job& j, const gpu& on)
      : j_(j),
        name_(on.name),
        tokens_(j.tokens()),
        forward_(j.model, tokens_.starts, on.device, engine_bytes(j), true, streams(j)),
        linears_(limits_of(j), forward_.compute(), forward_.products()),
        non_finite_there_(1, "statistics"),
        in_bf16_(exact_in_bf16(j)),
        held_(held_bytes(j), "the linears that are searched"),
        clean_(min(observed_tokens, tokens_.tokens()) * widest(j.model), "activations") {
    for (const layer_input input : layer_inputs) inputs_.emplace_back(width(j.model, input), j.o.drift_followed());
    if (j.o.solved()) solver_.emplace(j.o, widest(j.model), linears_);
  }

  std::string name() const override { return name_; }
  bool on_gpu() const override { return true; }
  phase_times times() const override { return linears_.clock().sums(); }

  void embed() override { forward_.embed(j_.files, tokens_.ids); }
  void set(std::vector<float> x) override {
    forward_.upload({x.data(), streams(j_) * tokens_.tokens(), j_.model.hidden});
    linears_.wait();
  }
  const std::vector<float>& get() override {
    forward_.download({room(), streams(j_) * tokens_.tokens(), j_.model.hidden});
    return data_;
  }
  void forward(index_t layer) override {
    if (staged_ != layer) forward_.stage(j_.files, layer);
    run_staged();
  }
  void forward(const layer_weights& w) override {
    forward_.stage(w);
    run_staged();
  }
  void gather(index_t layer, const layer_weights& w, bool keep) override;
  index_t non_finite() const override { return non_finite_; }
  void forget() override { data_ = {}; }
  const std::vector<float>& absolute_mean(layer_input input) const override { return at(input).mean; }

  void hold(layer_weights& w, const std::vector<projection>& linears) override {
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
  double block_loss(layer_input, const layer_packing&, const float*) override {
    throw usage_error("--loss block is judged on the CPU only; use --loss gram, or --backend cpu");
  }
  chosen_codes choose_codes(const layer_weights& w, projection p, const packed& as, const std::vector<float>& s,
                            const float* of_row) override {
    linears_.multiply_rows(of_row, outputs(j_.model, p));
    if (solver_) return solver_->choose_codes(input_of(p), at(input_of(p)), tokens_.tokens(), w.at(j_.model, p), as, s);
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
  const cuda::input_statistics& at(layer_input input) const { return inputs_[static_cast<size_t>(input)]; }
  cudaStream_t stream() const { return forward_.compute(); }
  void run_staged(const cuda::device_observer& observer = nullptr) {
    staged_ = -1;
    const cuda::phase_clock::span span(linears_.clock(), phase::forward);
    forward_.forward_layer(observer);
  }
  /// Both streams, of which the quantized model's stays where it is.
  void run_beside();
  template <class T>
  void clear(const device_memory<T>& memory) {
    check(cudaMemsetAsync(memory.data(), 0, static_cast<size_t>(memory.size()) * sizeof(T), stream()),
          "clear statistics");
  }
  float* room() {
    data_.resize(j_.activations());
    return data_.data();
  }
  void observe(layer_input input, matrix<const bf16> x);
  void finish(cuda::input_statistics& each);

  const job& j_;
  std::string name_;
  batch tokens_;
  cuda::forward_pass forward_;
  cuda::linear_search linears_;
  std::optional<cuda::linear_solver> solver_;
  std::vector<cuda::input_statistics> inputs_;  ///< by layer_input
  device_memory<uint64_t> non_finite_there_;
  bool in_bf16_;
  device_memory<std::byte> held_;
  const layer_weights* w_ = nullptr;  ///< that held_ was copied from
  device_memory<bf16> clean_;
  cuda::workspace workspace_;
  std::vector<float> data_;
  std::array<index_t, 7> held_at_{};
  index_t non_finite_ = 0, staged_ = -1;
};

void gpu_arithmetic::gather(index_t layer, const layer_weights&, bool keep) {
  linears_.forget();
  if (solver_) solver_->begin(layer);
  for (const cuda::input_statistics& each : inputs_) {
    clear(each.gram);
    clear(each.magnitudes);
    if (each.followed()) clear(each.drift);
  }
  clear(non_finite_there_);
  const bool beside = j_.o.drift_followed(), back = keep && !beside;
  if (back) forward_.download({room(), tokens_.tokens(), j_.model.hidden});
  if (staged_ != layer) forward_.stage(j_.files, layer);
  if (beside)
    run_beside();
  else
    run_staged([&](layer_input input, matrix<const bf16> x, cudaStream_t) { observe(input, x); });
  if (back) {
    forward_.upload({data_.data(), tokens_.tokens(), j_.model.hidden});  // data_ lives until the next layer
  } else if (!keep && layer + 1 < j_.model.layers) {
    forward_.stage(j_.files, layer + 1);  // its copy runs under this layer's arithmetic
    staged_ = layer + 1;
  }
  for (cuda::input_statistics& each : inputs_) finish(each);
  uint64_t count = 0;
  linears_.copy_back(&count, non_finite_there_.data(), 1);
  linears_.wait();
  non_finite_ = static_cast<index_t>(count);
}

void gpu_arithmetic::run_beside() {
  staged_ = -1;
  const cuda::phase_clock::span span(linears_.clock(), phase::forward);
  forward_.forward_beside([&](layer_input input, matrix<const bf16> original, matrix<const bf16> x, cudaStream_t) {
    observe(input, x);
    const cuda::phase_clock::span statistics(linears_.clock(), phase::statistics);
    workspace_.run(
        [&](void* memory, index_t& bytes) {
          return kernels::drift(original, x, at(input).drift_matrix(), memory, bytes, forward_.products());
        },
        "add up the drift of inputs");
  });
}

/// Each token is cleaned of what is not finite and counted in one pass, then added to the Gram matrix.
void gpu_arithmetic::observe(layer_input input, matrix<const bf16> x) {
  const cuda::phase_clock::span span(linears_.clock(), phase::statistics);
  const cuda::input_statistics& to = at(input);
  kernels::statistics sums;
  sums.absolute_sum = to.magnitudes.data();
  sums.non_finite = non_finite_there_.data();
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

void gpu_arithmetic::finish(cuda::input_statistics& each) {
  const auto tokens = static_cast<double>(tokens_.tokens());
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
                                    cuda::plan_either(j.model, j.tokens().starts, free, streams(j)).total());
}

}  // namespace nibble::mistral
