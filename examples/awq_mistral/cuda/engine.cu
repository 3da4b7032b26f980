// SPDX-License-Identifier: Apache-2.0
/// @file
/// The engine of a GPU. Activations, statistics and Gram matrices stay on the device, in the stream of the forward pass; weights
/// come from the host, those of a search whole, those that codes are chosen for a tile of rows at a time. Losses are taken of
/// differences and Gram matrices rounded to bf16, for tensor cores; ranges, codes and sweeps see floats.
#include <algorithm>
#include <cstring>

#include "engine.hpp"
#include "job.hpp"
#include "mistral/cuda/forward.cuh"
#include "nibble/host/parallel.hpp"
#include "nibble/kernels/awq.cuh"
#include "nibble/kernels/clip.cuh"
#include "nibble/kernels/fit.cuh"
#include "nibble/kernels/observe.cuh"
#include "nibble/kernels/quantize.cuh"
#include "nibble/kernels/sweep.cuh"

namespace nibble::mistral {
namespace {

using cuda::check;
using cuda::device_memory;

/// Weights of a tile of rows at most, tokens observed at a time, steps of each end that a range is searched by (host's), bytes of
/// a pinned buffer.
constexpr index_t tile_goal = index_t(1) << 25, observed_tokens = 2048, clip_steps = 6, piece_bytes = index_t(16) << 20;
/// Rows whose products gram_loss and sweep hold at a time.
constexpr index_t loss_rows = 1024;

constexpr index_t float_bytes = sizeof(float);

index_t width(const config& c, layer_input input) {
  return input == layer_input::down ? c.intermediate : input == layer_input::o ? c.q_width() : c.hidden;
}
index_t elements(const config& c, const std::vector<projection>& linears) {
  index_t sum = 0;
  for (const projection p : linears) sum += outputs(c, p) * inputs(c, p);
  return sum;
}
/// The linears that are held at once: those that share an input.
index_t held_elements(const config& c) {
  return max(
      max(elements(c, {projection::q, projection::k, projection::v}), elements(c, {projection::gate, projection::up})),
      max(elements(c, {projection::o}), elements(c, {projection::down})));
}
index_t widest(const config& c) {
  return max(max(c.intermediate, c.hidden), c.q_width());
}
index_t rows_of_tile(index_t n, index_t k) {
  return max(index_t(1), min(n, tile_goal / k));
}

/// Device memory beside the forward pass's.
index_t engine_bytes(const job& j) {
  const config& c = j.model;
  const index_t k = widest(c), tile = max(tile_goal, k);
  index_t bytes = 2 * k * k + float_bytes * held_elements(c);  // the Gram matrix in bf16, what is held
  for (const layer_input input : layer_inputs) bytes += width(c, input) * (float_bytes * width(c, input) + 16);
  bytes += tile * (float_bytes + 2 + 1) + tile / 32 * 2 * index_t{sizeof(params)};
  bytes += loss_rows * float_bytes * (2 * k + 64) + 2 * observed_tokens * k;
  if (j.o.propagate == propagation::quantized) bytes += float_bytes * j.samples.tokens() * c.hidden;
  return bytes;
}

batch tokens_of(const job& j) {
  batch tokens;
  for (const auto& sequence : j.samples.sequences)
    tokens.append(sequence.data(), static_cast<index_t>(sequence.size()));
  return tokens;
}

/// What linears read, over all tokens.
struct input_statistics {
  device_memory<float> gram;         ///< (k, k); shrunk when finished
  device_memory<float> diagonal;     ///< (k)
  device_memory<double> magnitudes;  ///< (k), sums of |x|
  std::vector<float> mean, energy;   ///< x̄, E[x²], on the host

  explicit input_statistics(index_t k)
      : gram(k * k, "a Gram matrix"), diagonal(k, "statistics"), magnitudes(k, "statistics") {}
  index_t k() const { return diagonal.size(); }
  matrix<float> matrix_of() const { return {gram.data(), k(), k()}; }
};

class on_gpu : public engine {
 public:
  on_gpu(const job& j, const gpu& on)
      : j_(j),
        name_(on.name),
        tokens_(tokens_of(j)),
        forward_(j.model, tokens_.starts, on.device, engine_bytes(j)),
        staging_(max(piece_bytes, float_bytes * widest(j.model))),
        non_finite_there_(1, "statistics") {
    const config& c = j.model;
    for (const layer_input input : layer_inputs) inputs_.emplace_back(width(c, input));
    const index_t k = widest(c), tile = max(tile_goal, k);
    half_gram_ = device_memory<bf16>(k * k, "a Gram matrix in bf16");
    held_ = device_memory<float>(held_elements(c), "the linears that are searched");
    tile_ = device_memory<float>(min(tile, held_elements(c)), "a tile of weights");
    difference_ = device_memory<bf16>(tile_.size(), "a tile of differences");
    codes_ = device_memory<uint8_t>(tile_.size(), "a tile of codes");
    scale_ = device_memory<float>(k, "scales");
    importance_ = device_memory<float>(k, "importances");
    sum_ = device_memory<double>(k, "importances");
    clean_ = device_memory<bf16>(min(observed_tokens, tokens_.tokens()) * k, "activations");
    if (j.o.propagate == propagation::quantized) kept_ = device_memory<float>(forward_.x().size(), "activations");
  }

  std::string name() const override { return name_; }

  void embed() override { forward_.embed(j_.files, tokens_.ids); }
  void set(std::vector<float> x) override {
    data_ = std::move(x);
    forward_.upload({data_.data(), tokens_.tokens(), j_.model.hidden});
    forward_.wait();
    data_ = {};
  }
  const std::vector<float>& get() override {
    data_.resize(static_cast<size_t>(forward_.x().size()));
    forward_.download({data_.data(), tokens_.tokens(), j_.model.hidden});
    return data_;
  }
  void forward(index_t layer) override {
    forward_.stage(j_.files, layer);
    staged_ = -1;
    forward_.forward_layer();
  }
  void forward(const layer_weights& w) override {
    forward_.stage(w);
    staged_ = -1;
    forward_.forward_layer();
  }
  void gather(index_t layer, const layer_weights& w, bool keep) override;
  index_t non_finite() const override { return non_finite_; }
  void forget() override { data_ = {}; }
  const std::vector<float>& absolute_mean(layer_input input) const override { return at(input).mean; }

  void hold(layer_weights& w, const std::vector<projection>& linears) override;
  double unscaled_loss(projection p, const packed& as) override;
  void add_importance(projection p, const packed& as, double* sum) override;
  double scaled_loss(projection p, const packed& as, const float* s) override;
  double block_loss(layer_input, const layer_packing&, const float*) override {
    throw usage_error("--loss block is judged on the CPU only; use --loss gram, or --backend cpu");
  }
  chosen_codes choose_codes(const layer_weights& w, projection p, const packed& as,
                            const std::vector<float>& s) override;

 private:
  const input_statistics& at(layer_input input) const { return inputs_[static_cast<size_t>(input)]; }
  cudaStream_t stream() const { return forward_.compute(); }
  matrix<const float> held(projection p) const {
    return {held_.data() + held_at_[static_cast<size_t>(p)], outputs(j_.model, p), inputs(j_.model, p)};
  }

  /// A launcher that needs a workspace, in ours.
  template <class F>
  void run(F&& launcher, const char* what) {
    index_t bytes = 0;
    check(launcher(nullptr, bytes), what);
    reserve(workspace_, bytes, "a workspace");
    check(launcher(static_cast<void*>(workspace_.data()), bytes), what);
  }
  template <class T>
  void copy_there(T* to, const T* from, index_t count) {
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(T), cudaMemcpyHostToDevice, stream()),
          "copy to the GPU");
  }
  /// The host's bytes are there when wait() is over.
  template <class T>
  void copy_back(T* to, const T* from, index_t count) {
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(T), cudaMemcpyDeviceToHost, stream()),
          "copy from the GPU");
  }
  void wait() const { forward_.wait(); }
  template <class T>
  static void reserve(device_memory<T>& memory, index_t count, const char* what) {
    if (memory.size() >= count) return;
    memory = {};
    memory = device_memory<T>(count, what);
  }
  /// f(first row, rows, parameters of those rows' groups), a tile at a time.
  template <class F>
  void for_tiles(index_t n, index_t k, index_t group, F f) {
    const index_t most = rows_of_tile(n, k), groups = per_group(group).across(k);
    reserve(parameters_, 2 * most * groups, "parameters of groups");
    reserve(losses_, ceil_div(n, most), "losses");
    for (index_t row = 0; row < n; row += most) {
      const index_t rows = min(most, n - row);
      f(row, rows, matrix<params>(parameters_.data(), rows, groups));
    }
  }
  void upload(float* to, matrix<const float> w);
  void observe(layer_input input, matrix<const bf16> x);
  void use_half_gram(layer_input input);
  void use_scale(layer_input input, const float* s);
  void fit_ranges(matrix<const float> w, matrix<params> p, const packed& as);
  void choose_nearest(matrix<const float> w, matrix<const params> p, const packed& as, matrix<uint8_t> codes);
  /// Adds what the codes of a tile of scaled weights lose, its differences in `difference`.
  void judge(matrix<const float> w, matrix<const uint8_t> codes, matrix<const params> p, const packed& as,
             matrix<bf16> difference);
  /// Adds tr(D·G·Dᵀ) of a tile's differences D to what total_loss() will tell.
  void add_loss(matrix<const bf16> difference);
  double total_loss();

  const job& j_;
  std::string name_;
  batch tokens_;
  cuda::forward_pass forward_;
  cuda::staging staging_;
  cuda::event arrived_;
  std::vector<input_statistics> inputs_;  ///< by layer_input
  device_memory<uint64_t> non_finite_there_;
  index_t non_finite_ = 0, staged_ = -1;
  std::vector<float> data_;
  device_memory<bf16> half_gram_, difference_, clean_;
  device_memory<float> held_, tile_, scale_, importance_, kept_;
  device_memory<double> sum_, losses_;
  device_memory<uint8_t> codes_;
  device_memory<params> parameters_;
  device_memory<std::byte> workspace_;
  std::array<index_t, 7> held_at_{};
  index_t tiles_ = 0;
  const input_statistics* half_ = nullptr;  ///< whose Gram matrix half_gram_ is
};

void on_gpu::gather(index_t layer, const layer_weights&, bool keep) {
  half_ = nullptr;
  for (input_statistics& each : inputs_) {
    check(cudaMemsetAsync(each.gram.data(), 0, static_cast<size_t>(each.gram.size() * float_bytes), stream()), "clear");
    check(cudaMemsetAsync(each.magnitudes.data(), 0, static_cast<size_t>(each.k()) * sizeof(double), stream()),
          "clear");
  }
  check(cudaMemsetAsync(non_finite_there_.data(), 0, sizeof(uint64_t), stream()), "clear");
  const auto bytes = static_cast<size_t>(forward_.x().size() * float_bytes);
  if (keep)
    check(cudaMemcpyAsync(kept_.data(), forward_.x().data, bytes, cudaMemcpyDeviceToDevice, stream()),
          "keep activations");
  if (staged_ != layer) forward_.stage(j_.files, layer);
  forward_.forward_layer([&](layer_input input, matrix<const bf16> x, cudaStream_t) { observe(input, x); });
  staged_ = -1;
  if (keep) {
    check(cudaMemcpyAsync(forward_.x().data, kept_.data(), bytes, cudaMemcpyDeviceToDevice, stream()),
          "keep activations");
  } else if (layer + 1 < j_.model.layers) {
    forward_.stage(j_.files, layer + 1);  // its copy runs under this layer's arithmetic
    staged_ = layer + 1;
  }
  const double tokens = static_cast<double>(tokens_.tokens());
  for (input_statistics& each : inputs_) {
    check(kernels::mirror(each.matrix_of(), static_cast<float>(1.0 / tokens), j_.o.shrinkage, each.diagonal.data(),
                          stream()),
          "finish the statistics");
    std::vector<double> sums(static_cast<size_t>(each.k()));
    each.mean.resize(sums.size());
    each.energy.resize(sums.size());
    copy_back(sums.data(), each.magnitudes.data(), each.k());
    copy_back(each.energy.data(), each.diagonal.data(), each.k());
    wait();
    for (size_t i = 0; i < sums.size(); ++i) each.mean[i] = static_cast<float>(sums[i] / tokens);
  }
  uint64_t count = 0;
  copy_back(&count, non_finite_there_.data(), 1);
  wait();
  non_finite_ = static_cast<index_t>(count);
}

/// Each token is cleaned of what is not finite and counted in one pass, then added to the Gram matrix.
void on_gpu::observe(layer_input input, matrix<const bf16> x) {
  const input_statistics& to = at(input);
  kernels::statistics sums;
  sums.absolute_sum = to.magnitudes.data();
  sums.non_finite = non_finite_there_.data();
  for (index_t token = 0; token < x.rows; token += observed_tokens) {
    const auto part = x.rows_at(token, min(observed_tokens, x.rows - token));
    const matrix<bf16> clean(clean_.data(), part.rows, part.cols);
    run([&](void* workspace,
            index_t& bytes) { return kernels::observe(part, sums, clean, workspace, bytes, stream()); },
        "observe activations");
    check(kernels::gram_of_finite(matrix<const bf16>(clean), to.matrix_of(), forward_.products()),
          "add up a Gram matrix");
  }
}

void on_gpu::upload(float* to, matrix<const float> w) {
  wait();  // for what reads `to`
  staging_.copy(to, w.rows, w.cols * float_bytes, [&](index_t first, index_t count, void* buffer) {
    constexpr index_t rows = 64;
    host::parallel_for(ceil_div(count, rows), [&](index_t tile) {
      const index_t row = tile * rows, n = min(rows, count - row);
      std::memcpy(static_cast<float*>(buffer) + row * w.cols, w.row(first + row),
                  static_cast<size_t>(n * w.cols * float_bytes));
    });
  });
  arrived_.record(staging_.in());
  arrived_.hold(stream());
}

void on_gpu::hold(layer_weights& w, const std::vector<projection>& linears) {
  index_t at = 0;
  for (const projection p : linears) {
    const matrix<const float> linear = w.at(j_.model, p);
    held_at_[static_cast<size_t>(p)] = at;
    upload(held_.data() + at, linear);
    at += linear.size();
  }
}

void on_gpu::use_half_gram(layer_input input) {
  if (half_ == &at(input)) return;
  half_ = &at(input);
  const index_t k = half_->k();
  check(kernels::scale_columns(matrix<const float>(half_->matrix_of()), nullptr, matrix<bf16>(half_gram_.data(), k, k),
                               stream()),
        "round a Gram matrix");
}

/// s, and what errors of scaled channels weigh, on the device.
void on_gpu::use_scale(layer_input input, const float* s) {
  const std::vector<float>& energy = at(input).energy;
  std::vector<float> importance(energy.size());
  for (size_t i = 0; i < importance.size(); ++i) importance[i] = energy[i] / (s[i] * s[i]);
  copy_there(scale_.data(), s, at(input).k());
  copy_there(importance_.data(), importance.data(), at(input).k());
  wait();  // `importance` ends here
}

void on_gpu::fit_ranges(matrix<const float> w, matrix<params> p, const packed& as) {
  const group_shape g = per_group(as.group);
  check(j_.o.clip == clip_search::none ? kernels::fit(w, p, g, as.scheme, minmax{}, nullptr, stream())
                                       : kernels::fit(w, p, g, as.scheme, ends_search{}, importance_.data(), stream()),
        "find ranges");
}

void on_gpu::choose_nearest(matrix<const float> w, matrix<const params> p, const packed& as, matrix<uint8_t> codes) {
  check(kernels::quantize(w, p, codes, per_group(as.group), as.scheme, stream()), "round weights");
}

void on_gpu::judge(matrix<const float> w, matrix<const uint8_t> codes, matrix<const params> p, const packed& as,
                   matrix<bf16> difference) {
  check(kernels::codes_error(w, codes, p, scale_.data(), difference, as.group, as.scheme, stream()), "judge codes");
  add_loss(difference);
}

void on_gpu::add_loss(matrix<const bf16> difference) {
  const matrix<const bf16> g(half_gram_.data(), half_->k(), half_->k());
  double* const loss = losses_.data() + tiles_++;
  run([&](void* workspace,
          index_t& bytes) { return kernels::gram_loss(difference, g, loss, workspace, bytes, forward_.products()); },
      "judge rounding");
}

double on_gpu::total_loss() {
  std::vector<double> losses(static_cast<size_t>(tiles_));
  copy_back(losses.data(), losses_.data(), tiles_);
  wait();
  tiles_ = 0;
  double sum = 0;
  for (const double loss : losses) sum += loss;
  return sum;
}

double on_gpu::unscaled_loss(projection p, const packed& as) {
  const std::vector<float> ones(static_cast<size_t>(inputs(j_.model, p)), 1.0f);
  use_half_gram(input_of(p));
  use_scale(input_of(p), ones.data());
  const matrix<const float> w = held(p);
  for_tiles(w.rows, w.cols, as.group, [&](index_t row, index_t rows, matrix<params>) {
    const matrix<bf16> difference(difference_.data(), rows, w.cols);
    check(kernels::scaled_error(w.rows_at(row, rows), scale_.data(), difference, matrix<params>(), as.group, as.scheme,
                                stream()),
          "round to nearest");
    add_loss(difference);
  });
  return total_loss();
}

void on_gpu::add_importance(projection p, const packed& as, double* sum) {
  const index_t k = inputs(j_.model, p);
  copy_there(sum_.data(), sum, k);
  run(
      [&](void* workspace, index_t& bytes) {
        return kernels::weight_importance(held(p), as.group, sum_.data(), workspace, bytes, stream());
      },
      "weigh weights");
  copy_back(sum, sum_.data(), k);
  wait();
}

double on_gpu::scaled_loss(projection p, const packed& as, const float* s) {
  use_half_gram(input_of(p));
  use_scale(input_of(p), s);
  const matrix<const float> w = held(p);
  for_tiles(w.rows, w.cols, as.group, [&](index_t row, index_t rows, matrix<params> ranges) {
    const matrix<const float> part = w.rows_at(row, rows);
    const matrix<float> scaled(tile_.data(), rows, w.cols);
    const matrix<uint8_t> codes(codes_.data(), rows, w.cols);
    const matrix<bf16> difference(difference_.data(), rows, w.cols);
    check(kernels::scale_columns(part, scale_.data(), scaled, stream()), "scale weights");
    fit_ranges(scaled, ranges, as);
    choose_nearest(scaled, ranges, as, codes);
    judge(scaled, codes, ranges, as, difference);
  });
  return total_loss();
}

chosen_codes on_gpu::choose_codes(const layer_weights& all, projection p, const packed& as,
                                  const std::vector<float>& s) {
  const matrix<const float> w = all.at(j_.model, p);
  const input_statistics& x = at(input_of(p));
  const matrix<const float> g = x.matrix_of();
  chosen_codes out;
  quantized_linear& q = out.q = quantized_linear::blank(w.rows, w.cols, as.group);
  std::vector<params> whole(q.parameters.size());
  use_half_gram(input_of(p));
  use_scale(input_of(p), s.data());
  for_tiles(w.rows, w.cols, as.group, [&](index_t row, index_t rows, matrix<params> ranges) {
    const matrix<float> part(tile_.data(), rows, w.cols);
    const matrix<uint8_t> codes(codes_.data(), rows, w.cols);
    const matrix<params> widest(ranges.data + ranges.size(), ranges.rows, ranges.cols);
    upload(part.data, w.rows_at(row, rows));
    fit_ranges(part, ranges, as);
    if (j_.o.clip == clip_search::gram)
      check(kernels::clip_under_gram(matrix<const float>(part), scale_.data(), g, as.group, as.scheme, ranges,
                                     clip_steps, stream()),
            "search ranges");
    choose_nearest(part, ranges, as, codes);
    if (j_.o.sweeps > 0)
      run(
          [&](void* workspace, index_t& bytes) {
            return kernels::sweep(matrix<const float>(part), scale_.data(), g, matrix<const params>(ranges), as.group,
                                  as.scheme, j_.o.sweeps, codes, workspace, bytes, forward_.products());
          },
          "improve codes");
    judge(part, codes, ranges, as, {difference_.data(), rows, w.cols});
    check(kernels::fit(matrix<const float>(part), widest, per_group(as.group), as.scheme, minmax{}, nullptr, stream()),
          "find ranges");
    copy_back(q.codes.data() + row * w.cols, codes.data, codes.size());
    copy_back(q.parameters.data() + row * q.groups, ranges.data, ranges.size());
    copy_back(whole.data() + row * q.groups, widest.data, ranges.size());
  });
  out.loss = total_loss();
  out.range = compare_ranges(q.param_matrix(), {whole.data(), q.n, q.groups});
  return out;
}

}  // namespace

std::unique_ptr<engine> gpu_engine(const job& j, const gpu& on) {
  return std::make_unique<on_gpu>(j, on);
}

}  // namespace nibble::mistral
