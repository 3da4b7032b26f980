// SPDX-License-Identifier: Apache-2.0
#include "mistral/cuda/forward.cuh"

#include <algorithm>
#include <cstring>
#include <memory>

#include "mistral/cuda/rounding.cuh"
#include "mistral/rotary.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/kernels/blas.cuh"

namespace nibble::mistral::cuda {
namespace {

/// Rows of weights a thread converts at a time, entries of the vocabulary in a tile of logits, bytes of a pinned buffer.
constexpr index_t row_tile = 64, most_entries = 8192, piece_goal = index_t(16) << 20;

index_t qkv_width(const config& c) {
  return c.q_width() + 2 * c.kv_width();
}
/// Floats a token needs between products: q, k and v, or gate and up.
index_t wide_width(const config& c) {
  return max(qkv_width(c), 2 * c.intermediate);
}
/// bf16 a token needs besides the normed row: q, k, v and what attention gives, or what SwiGLU gives, or a reference's norm.
index_t narrow_width(const config& c) {
  return max(max(qkv_width(c) + c.q_width(), c.intermediate), c.hidden);
}
/// What the linears of a half read of a token, at most; o and down, which are told last, come after what norms make.
index_t read_by_half(const config& c) {
  return c.hidden + max(c.q_width(), c.intermediate);
}
index_t layer_elements(const config& c) {
  index_t elements = 0;
  for (const projection p : projections) elements += outputs(c, p) * inputs(c, p);
  return elements;
}

index_t longest_of(const std::vector<index_t>& starts) {
  index_t most = 1;
  for (std::size_t i = 1; i < starts.size(); ++i) most = max(most, starts[i] - starts[i - 1]);
  return most;
}

template <class T>
matrix<T> view(T* data, index_t rows, index_t cols) {
  return {data, rows, cols};
}

/// Rows that `read` gives as floats, rounded.
std::function<void(index_t, index_t, bf16*)> rounded(index_t cols, std::function<void(index_t, index_t, float*)> read) {
  return [=](index_t first, index_t count, bf16* out) {
    host::parallel_for(ceil_div(count, row_tile), [&](index_t tile) {
      const index_t row = tile * row_tile, rows = min(row_tile, count - row);
      std::vector<float> values(static_cast<std::size_t>(rows * cols));
      read(first + row, rows, values.data());
      std::transform(values.begin(), values.end(), out + row * cols, [](float value) { return bf16(value); });
    });
  };
}

std::function<void(index_t, index_t, bf16*)> rows_of(matrix<const float> all) {
  return rounded(all.cols, [all](index_t first, index_t count, float* out) {
    std::copy_n(all.row(first), static_cast<std::size_t>(count * all.cols), out);
  });
}

/// The rows of a dense tensor, copied as they are when they are bf16 in a checkpoint's order.
std::function<void(index_t, index_t, bf16*)> rows_of(const tensor& t, index_t cols) {
  if (t.dtype != "BF16" || t.paired_heads > 0)
    return rounded(cols, [&t, cols](index_t first, index_t count, float* out) {
      read_floats(t, first * cols, count * cols, out);
    });
  return [&t, cols](index_t first, index_t count, bf16* out) {
    host::parallel_for(ceil_div(count, row_tile), [&](index_t tile) {
      const index_t row = tile * row_tile, rows = min(row_tile, count - row);
      std::memcpy(static_cast<void*>(out + row * cols), t.data + (first + row) * cols * index_t{sizeof(bf16)},
                  static_cast<std::size_t>(rows * cols) * sizeof(bf16));
    });
  };
}

}  // namespace

memory_plan plan_memory(const config& c, const std::vector<index_t>& starts, index_t free_bytes, residual where,
                        index_t beside) {
  const index_t tokens = starts.back(), longest = longest_of(starts), token = 4 * c.hidden;
  const bool here = where == residual::on_device;
  memory_plan plan;
  plan.where = where;
  plan.layer_bytes = 2 * layer_elements(c) + 4 * 2 * c.hidden;
  plan.batch_bytes = (here ? (tokens + beside) * token : 0) + tokens * (4 + index_t{sizeof(score_state)}) +
                     16 * static_cast<index_t>(starts.size()) + 4 * longest * c.head_dim + 4 * 2 * c.hidden;
  plan.token_bytes = 4 * wide_width(c) + 2 * narrow_width(c) + 2 * c.hidden + (here ? 0 : 2 * token);
  if (beside > 0) plan.token_bytes += 2 * read_by_half(c) + token;
  plan.chunk_tokens = longest;
  if (plan.total() > free_bytes)
    throw gpu_unusable("the GPU has " + gibibytes(max(free_bytes, index_t(0))) + " of memory left, but " +
                       std::to_string(tokens) + " tokens in sequences of up to " + std::to_string(longest) + " need " +
                       gibibytes(plan.total()) + "; take fewer or shorter ones, or --backend cpu");
  const index_t room = longest + (free_bytes - plan.total()) / plan.token_bytes;
  plan.chunk_tokens = max(longest, min(min(tokens, chunk_goal), room));
  return plan;
}

memory_plan plan_either(const config& c, const std::vector<index_t>& starts, index_t free_bytes, index_t beside) {
  try {
    return plan_memory(c, starts, free_bytes, residual::on_device, beside);
  } catch (const gpu_unusable&) {
    return plan_memory(c, starts, free_bytes, residual::on_host, beside);
  }
}

namespace {

memory_plan plan_here(const config& c, const std::vector<index_t>& starts, int device, index_t reserved_bytes,
                      bool either, index_t beside) {
  use_device(device);
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "tell how much memory the GPU has");
  const index_t left = static_cast<index_t>(free) - reserved_bytes - runtime_bytes;
  return either ? plan_either(c, starts, left, beside) : plan_memory(c, starts, left, residual::on_device, beside);
}

}  // namespace

forward_pass::forward_pass(const config& c, std::vector<index_t> starts, int device, index_t reserved_bytes,
                           bool either, index_t beside)
    : c_(c),
      starts_(std::move(starts)),
      beside_(beside),
      heads_{c.heads, c.kv_heads, c.head_dim},
      plan_(plan_here(c, starts_, device, reserved_bytes, either, beside)),
      blas_(compute_),
      staging_(max(piece_goal, 4 * max(max(c.hidden, c.intermediate), c.q_width()))) {
  const index_t tokens = starts_.back(), longest = longest_of(starts_);
  if (std::find(starts_.begin(), starts_.end(), beside) == starts_.end())
    throw error("a second residual stream is of whole sequences: " + std::to_string(beside) + " tokens end within one");
  for (slot& s : slots_) {
    s.weights = device_memory<bf16>(layer_elements(c), "a layer's weights");
    s.norms = device_memory<float>(2 * c.hidden, "norms");
  }
  const bool here = plan_.where == residual::on_device;
  if (!here) far_ = pinned_memory<float>((tokens + beside) * c.hidden, "the residual stream");
  x_ = device_memory<float>((here ? tokens + beside : 2 * plan_.chunk_tokens) * c.hidden, "the residual stream");
  if (beside > 0) {
    kept_ = device_memory<bf16>(plan_.chunk_tokens * read_by_half(c), "activations");
    kept_residual_ = device_memory<float>(plan_.chunk_tokens * c.hidden, "activations");
  }
  ids_ = device_memory<int32_t>(tokens, "ids");
  states_ = device_memory<score_state>(tokens, "scores");
  head_norms_ = device_memory<float>(2 * c.hidden, "norms");
  wide_ = device_memory<float>(plan_.chunk_tokens * wide_width(c), "activations");
  narrow_ = device_memory<bf16>(plan_.chunk_tokens * narrow_width(c), "activations");
  normed_ = device_memory<bf16>(plan_.chunk_tokens * c.hidden, "activations");

  std::vector<index_t> relative;
  for (std::size_t first = 0, last; first + 1 < starts_.size(); first = last) {
    chunk part{starts_[first], 0, 0, 1, static_cast<index_t>(relative.size())};
    const index_t end = starts_[first] < beside ? min(beside, starts_[first] + plan_.chunk_tokens)
                                                : starts_[first] + plan_.chunk_tokens;
    for (last = first; last + 1 < starts_.size() && starts_[last + 1] <= end; ++last) {
      relative.push_back(starts_[last] - starts_[first]);
      part.longest = max(part.longest, starts_[last + 1] - starts_[last]);
    }
    relative.push_back(starts_[last] - starts_[first]);
    part.tokens = relative.back(), part.sequences = static_cast<index_t>(last - first);
    chunks_.push_back(part);
  }
  starts_there_ = device_memory<index_t>(static_cast<index_t>(relative.size()), "sequences");
  const rotary_table table(c.head_dim, c.rope_theta, longest);
  cosine_ = device_memory<float>(static_cast<index_t>(table.cosine().size()), "rotary tables");
  sine_ = device_memory<float>(cosine_.size(), "rotary tables");
  const auto copy = [](void* to, const auto& from) {
    check(cudaMemcpy(to, from.data(), from.size() * sizeof(from[0]), cudaMemcpyHostToDevice), "copy tables");
  };
  copy(starts_there_.data(), relative);
  copy(cosine_.data(), table.cosine());
  copy(sine_.data(), table.sine());
}

forward_pass::slot& forward_pass::next_slot() {
  slot& s = slots_[static_cast<std::size_t>(turn_)];
  turn_ = 1 - turn_;
  if (&s == ran_) ran_ = nullptr;
  s.used.hold(staging_.in());
  return s;
}

void forward_pass::arrived(slot& s) {
  s.copied.record(staging_.in());
  s.copied.hold(compute_);
}

void forward_pass::copy_rows(bf16* to, index_t rows, index_t cols, const row_source& from) {
  staging_.copy(to, rows, cols * index_t{sizeof(bf16)},
                [&](index_t first, index_t count, void* buffer) { from(first, count, static_cast<bf16*>(buffer)); });
}

void forward_pass::copy_norm(float* to, const std::vector<float>& from) {
  staging_.copy(to, 1, c_.hidden * index_t{sizeof(float)}, [&](index_t, index_t, void* buffer) {
    std::copy_n(from.data(), static_cast<std::size_t>(c_.hidden), static_cast<float*>(buffer));
  });
}

void forward_pass::embed(const checkpoint& from, const std::vector<int32_t>& ids) {
  check_ids(from, c_, ids);
  if (plan_.where == residual::on_host) {
    wait();
    batch b;
    b.ids = ids, b.starts = starts_;
    const matrix<float> x(far_.data(), starts_.back(), c_.hidden);
    mistral::embed(from, c_, b, x);
    host::parallel_for(x.rows, [&](index_t row) {
      for (index_t col = 0; col < x.cols; ++col) x(row, col) = static_cast<float>(bf16(x(row, col)));
    });
    std::copy_n(x.data, beside_ * c_.hidden, far_.data() + x.size());
    return;
  }
  const tensor& table = from.at("model.embed_tokens.weight", {c_.vocabulary, c_.hidden});
  const row_source all = rows_of(table, c_.hidden);
  check(cudaMemcpyAsync(ids_.data(), ids.data(), ids.size() * sizeof(ids[0]), cudaMemcpyHostToDevice, compute_),
        "copy ids");
  const index_t most = slots_[0].weights.size() / c_.hidden;
  for (index_t first = 0; first < c_.vocabulary; first += most) {
    const index_t rows = min(most, c_.vocabulary - first);
    slot& s = next_slot();
    copy_rows(s.weights.data(), rows, c_.hidden,
              [&](index_t row, index_t count, bf16* out) { all(first + row, count, out); });
    arrived(s);
    check(cuda::embed(view<const bf16>(s.weights.data(), rows, c_.hidden), first, ids_.data(), x(), compute_),
          "look up embeddings");
    s.used.record(compute_);
  }
  if (beside_ > 0)
    check(cudaMemcpyAsync(x_.data() + x().size(), x_.data(),
                          static_cast<std::size_t>(beside_ * c_.hidden) * sizeof(float), cudaMemcpyDeviceToDevice,
                          compute_),
          "copy activations");
  staged_ = nullptr;
  from.release(table);
}

void forward_pass::upload(matrix<const float> x) {
  const auto bytes = static_cast<std::size_t>(x.size()) * sizeof(float);
  if (plan_.where == residual::on_host) {
    wait();
    std::memcpy(far_.data(), x.data, bytes);
    return;
  }
  check(cudaMemcpyAsync(x_.data(), x.data, bytes, cudaMemcpyHostToDevice, compute_), "copy activations");
}

void forward_pass::download(matrix<float> x) const {
  const auto bytes = static_cast<std::size_t>(x.size()) * sizeof(float);
  if (plan_.where == residual::on_device)
    check(cudaMemcpyAsync(x.data, x_.data(), bytes, cudaMemcpyDeviceToHost, compute_), "copy activations");
  wait();
  if (plan_.where == residual::on_host) std::memcpy(x.data, far_.data(), bytes);
}

forward_pass::slot& forward_pass::stage(const std::function<row_source(projection)>& linear,
                                        const std::vector<float>& input_norm, const std::vector<float>& post_norm) {
  slot& s = next_slot();
  bf16* to = s.weights.data();  // in the order of `projections`: q, k and v are one matrix, gate and up another
  for (const projection p : projections) {
    copy_rows(to, outputs(c_, p), inputs(c_, p), linear(p));
    to += outputs(c_, p) * inputs(c_, p);
  }
  copy_norm(s.norms.data(), input_norm);
  copy_norm(s.norms.data() + c_.hidden, post_norm);
  arrived(s);
  staged_ = &s, beside_staged_ = nullptr;
  return s;
}

void forward_pass::stage(const checkpoint& from, index_t layer) {
  std::vector<std::shared_ptr<linear_weights>> opened;
  const auto linear = [&](projection p) -> row_source {
    const std::string name = projection_name(layer, p);
    opened.push_back(open_linear(from, c_, name, outputs(c_, p), inputs(c_, p)));
    if (!opened.back()->packed()) return rows_of(from.at(name + ".weight"), inputs(c_, p));
    return rounded(inputs(c_, p),
                   [w = opened.back()](index_t first, index_t count, float* out) { w->rows(first, count, out); });
  };
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  slot& s = stage(linear, read_vector(from, prefix + "input_layernorm.weight", c_.hidden),
                  read_vector(from, prefix + "post_attention_layernorm.weight", c_.hidden));
  for (const projection p : projections) {
    const linear_weights& w = *opened[static_cast<std::size_t>(p)];
    s.rounded[static_cast<std::size_t>(p)] = w.rounded();
    w.release();
  }
  s.cache = read_cache_scales(from, c_, layer);
}

void forward_pass::stage(const layer_weights& w) {
  slot& s = stage([&](projection p) { return rows_of(w.at(c_, p)); }, w.input_norm, w.post_norm);
  s.rounded = w.rounded, s.cache = w.cache;
}

void forward_pass::stage_again() {
  if (ran_ == nullptr) throw error("a layer has to run before it is staged again");
  staged_ = ran_, beside_staged_ = nullptr;
}

void forward_pass::stage_over(const layer_weights& w, layer_part half) {
  if (ran_ == nullptr) throw error("a layer has to run before another is staged over it");
  slot& from = *ran_;
  if (&slots_[static_cast<std::size_t>(turn_)] == &from) turn_ = 1 - turn_;
  slot& s = next_slot();
  check(cudaMemcpyAsync(s.weights.data(), from.weights.data(),
                        static_cast<std::size_t>(layer_elements(c_)) * sizeof(bf16), cudaMemcpyDeviceToDevice,
                        staging_.in()),
        "copy weights");
  bf16* to = s.weights.data();
  for (const projection p : projections) {
    const index_t rows = outputs(c_, p), cols = inputs(c_, p);
    if (belongs(input_of(p), half)) copy_rows(to, rows, cols, rows_of(w.at(c_, p)));
    to += rows * cols;
  }
  copy_norm(s.norms.data(), w.input_norm);
  copy_norm(s.norms.data() + c_.hidden, w.post_norm);
  arrived(s);
  s.rounded = w.rounded, s.cache = w.cache;
  staged_ = &s, beside_staged_ = &from;
}

void forward_pass::forward_layer(const device_observer& observe, const device_cache_observer& cached, layer_part part) {
  run_alone(part, false, observe, cached);
}

void forward_pass::observe_half(layer_part half, const device_observer& observe, const device_cache_observer& cached,
                                half_inputs told) {
  run_alone(half, true, observe, cached, told);
}

void forward_pass::run_alone(layer_part part, bool stays, const device_observer& observe,
                             const device_cache_observer& cached, half_inputs to) {
  std::vector<turn> turns;
  for (const chunk& each : chunks_) turns.push_back({0, &each, part, stays, to});
  turn_observer told{nullptr, cached};
  if (observe)
    told.of_linears = [&](const turn&, layer_input which, matrix<const bf16> activations, matrix<const float>) {
      observe(which, activations, compute_);
    };
  run(turns, told);
}

/// A chunk of the second stream, then the same tokens of the first: what linears read of the one is kept until the other's is there.
void forward_pass::forward_beside(layer_part half, const device_pair_observer& observe,
                                  const device_cache_observer& cached, half_inputs told) {
  if (beside_ == 0) throw error("there is no second stream of activations");
  std::vector<turn> turns;
  for (const chunk& part : chunks_) {
    if (part.first < beside_) turns.push_back({1, &part, half, told == half_inputs::first, told});
    turns.push_back({0, &part, half, true, told});
  }
  const auto keep = [&](auto to, auto from) {
    check(cudaMemcpyAsync(to.data, from.data, static_cast<std::size_t>(to.size()) * sizeof(*to.data),
                          cudaMemcpyDeviceToDevice, compute_),
          "keep activations");
  };
  const auto keep_or_tell = [&](const turn& of, layer_input which, matrix<const bf16> activations,
                                matrix<const float> residual) {
    if (of.part->first >= beside_) return observe(which, {{}, activations, {}, residual}, compute_);
    const auto kept =
        view(kept_.data() + (is_last(which) ? of.part->tokens * c_.hidden : 0), activations.rows, activations.cols);
    const auto stream = view(kept_residual_.data(), residual.rows, residual.cols);
    if (of.stream == 0) return observe(which, {kept, activations, stream, residual}, compute_);
    keep(kept, activations);
    if (which == layer_input::down) keep(stream, residual);
  };
  run(turns, {keep_or_tell, cached});
}

void forward_pass::run(const std::vector<turn>& turns, const turn_observer& observe) {
  if (staged_ == nullptr) throw error("a layer's weights have to be staged before it runs");
  if (plan_.where == residual::on_host)
    forward_carried(turns, observe);
  else
    for (const turn& each : turns) forward_here(each, observe);
  staged_->used.record(compute_);
  if (beside_staged_ != nullptr) beside_staged_->used.record(compute_);
  ran_ = staged_, staged_ = nullptr, beside_staged_ = nullptr;
}

void forward_pass::forward_here(const turn& of, const turn_observer& observe) {
  forward_chunk(weights_for(of), of, view(x_.data() + first_element(of), of.part->tokens, c_.hidden), observe);
}

/// Chunks by turns in two places of x_. A chunk comes when the one before last is back from its place, and goes back when it is
/// through the layer, unless it stays what it was. One stream carries both ways, so a layer's chunks come after all of the layer
/// before are back.
void forward_pass::forward_carried(const std::vector<turn>& turns, const turn_observer& observe) {
  const auto place_of = [&](std::size_t i) {
    return view(x_.data() + static_cast<index_t>(i % 2) * plan_.chunk_tokens * c_.hidden, turns[i].part->tokens,
                c_.hidden);
  };
  const auto carry = [&](float* to, const float* from, index_t elements, cudaMemcpyKind way) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(elements) * sizeof(float), way, carried_),
          "copy activations");
  };
  const auto fetch = [&](std::size_t i) {
    const auto rows = place_of(i);
    carry(rows.data, far_.data() + first_element(turns[i]), rows.size(), cudaMemcpyHostToDevice);
    carriers_[i % 2].arrived.record(carried_);
  };
  fetch(0);
  for (std::size_t i = 0; i < turns.size(); ++i) {
    carrier& place = carriers_[i % 2];
    const auto rows = place_of(i);
    if (i + 1 < turns.size()) fetch(i + 1);
    place.arrived.hold(compute_);
    forward_chunk(weights_for(turns[i]), turns[i], rows, observe);
    place.through.record(compute_);
    place.through.hold(carried_);
    if (!turns[i].stays) carry(far_.data() + first_element(turns[i]), rows.data, rows.size(), cudaMemcpyDeviceToHost);
  }
}

void forward_pass::forward_chunk(const slot& s, const turn& of, matrix<float> rows, const turn_observer& observe) {
  const index_t m = of.part->tokens, hidden = c_.hidden;
  const auto normed = view(normed_.data(), m, hidden);
  const auto aside = view(narrow_.data(), m, hidden);  // of nothing while q, k and v, or gate and up, are multiplied
  const auto tell = [&](layer_input which, matrix<const bf16> activations) {
    if (observe.of_linears && belongs(which, of.told)) observe.of_linears(of, which, activations, rows);
  };
  if (has_attention(of.through)) {
    check(rms_norm(rows, s.norms.data(), c_.rms_norm_eps, normed, compute_), "normalise");
    tell(layer_input::attention, normed);
    if (of.told == half_inputs::first) return;
    const auto qkv = wide(m, qkv_width(c_));
    multiply(s, projection::q, projection::v, normed, aside, 0.0f, qkv);
    const auto attended = attend(s, *of.part, qkv, of.stream == 0 ? observe.of_cache : nullptr);
    tell(layer_input::o, attended);
    if (!of.stays)
      multiply(s, projection::o, projection::o, attended, attended, 1.0f, rows);  // the residual is what is there
  }
  if (!has_mlp(of.through)) return;
  check(rms_norm(rows, s.norms.data() + hidden, c_.rms_norm_eps, normed, compute_), "normalise");
  tell(layer_input::mlp, normed);
  if (of.told == half_inputs::first) return;
  const auto gate_up = wide(m, 2 * c_.intermediate);
  multiply(s, projection::gate, projection::up, normed, aside, 0.0f, gate_up);
  const auto gated = gate(gate_up);
  tell(layer_input::down, gated);
  if (!of.stays) multiply(s, projection::down, projection::down, gated, gated, 1.0f, rows);
}

/// What o reads of a chunk, in narrow_.
matrix<bf16> forward_pass::attend(const slot& s, const chunk& part, matrix<const float> qkv,
                                  const device_cache_observer& cached) {
  const auto turned = view(narrow_.data(), part.tokens, qkv.cols);
  const auto attended = view(narrow_.data() + turned.size(), part.tokens, c_.q_width());
  const index_t* const starts = starts_there_.data() + part.starts;
  const index_t half = c_.head_dim / 2;
  check(rotate(qkv, heads_, starts, part.sequences, view<const float>(cosine_.data(), cosine_.size() / half, half),
               view<const float>(sine_.data(), sine_.size() / half, half), turned, compute_),
        "embed positions");
  if (cached) {
    const matrix<const bf16> all = turned;
    cached(all.cols_at(c_.q_width(), c_.kv_width()), all.cols_at(c_.q_width() + c_.kv_width(), c_.kv_width()),
           compute_);
  }
  round_cache(s, turned);
  check(attention(turned, heads_, starts, part.sequences, part.longest, c_.sliding_window, attended, compute_),
        "attend");
  return attended;
}

/// What down reads, in narrow_.
matrix<bf16> forward_pass::gate(matrix<const float> gate_up) {
  const auto gated = view(narrow_.data(), gate_up.rows, c_.intermediate);
  check(swiglu(gate_up, gated, compute_), "gate");
  return gated;
}

void forward_pass::change_block(layer_input block, const block_inputs& of, matrix<const bf16> more,
                                const change_observer& observe) {
  if (ran_ == nullptr) throw error("a block's layer has to run before it is changed");
  const slot& s = *ran_;
  const bool attends = block == layer_input::attention;
  const auto reading =
      attends ? weights_of(s, projection::q, projection::v) : weights_of(s, projection::gate, projection::up);
  const auto making =
      attends ? weights_of(s, projection::o, projection::o) : weights_of(s, projection::down, projection::down);
  const auto multiply = [&](matrix<const bf16> x, matrix<const bf16> w, float beta, matrix<float> y, float alpha) {
    check(kernels::matmul<bf16>(blas_, x, kernels::reading::plain, w, kernels::reading::transposed, beta, y, alpha),
          "multiply by a block's weights");
  };
  for (const chunk& whole : chunks_) {
    const index_t first = whole.first;
    if (first >= of.read.rows) break;
    const chunk part = part_before(whole, of.read.rows);
    const auto read = of.read.rows_at(first, part.tokens), made = of.made.rows_at(first, part.tokens);
    const auto to = wide(part.tokens, reading.rows);
    multiply(read, reading, 0.0f, to, 1.0f);
    multiply(read, more, 1.0f, to, 1.0f);
    const matrix<const bf16> makes = attends ? attend(s, part, to, nullptr) : gate(to);
    const index_t most = min(c_.hidden, wide_width(c_));
    for (index_t col = 0; col < c_.hidden; col += most) {
      const auto w = making.rows_at(col, min(most, c_.hidden - col));
      const auto change = wide(part.tokens, w.rows);
      multiply(makes, w, 0.0f, change, 1.0f);
      multiply(made, w, 1.0f, change, -1.0f);
      observe(first, change);
    }
  }
  ran_->used.record(compute_);
}

/// The sequences of a chunk that are over before token `end`.
forward_pass::chunk forward_pass::part_before(chunk part, index_t end) const {
  const auto begun = [&](index_t token) { return std::upper_bound(starts_.begin(), starts_.end(), token); };
  part.tokens = min(part.tokens, end - part.first);
  part.sequences = static_cast<index_t>(begun(part.first + part.tokens) - begun(part.first));
  return part;
}

/// Those of linears that follow one another and read the same.
matrix<const bf16> forward_pass::weights_of(const slot& s, projection first, projection last) const {
  index_t before = 0, rows = 0;
  for (const projection p : projections) {
    if (p < first) before += outputs(c_, p) * inputs(c_, p);
    if (p >= first && p <= last) rows += outputs(c_, p);
  }
  return view<const bf16>(s.weights.data() + before, rows, inputs(c_, first));
}

/// to = beta · to + x (m, k) · the weights of linears that read it, as each rounds it, in `room` (m, k), which is used up, and may be x
/// where one linear reads it: those that round alike are one product.
void forward_pass::multiply(const slot& s, projection first, projection last, matrix<bf16> x, matrix<bf16> room,
                            float beta, matrix<float> to) {
  const auto index = [](projection p) { return static_cast<std::size_t>(p); };
  const matrix<const bf16> w = weights_of(s, first, last);
  index_t col = 0;
  for (std::size_t p = index(first), next = p; p <= index(last); p = next) {
    const rounded_inputs& how = s.rounded[p];
    index_t n = 0;
    for (; next <= index(last) && s.rounded[next] == how; ++next) n += outputs(c_, projections[next]);
    const bool rounds = how.how != input_rounding::none;
    if (rounds) check(round_activations(x, rounding_on_device(how), room, {}, compute_), "round what a linear reads");
    check(kernels::matmul<bf16>(blas_, rounds ? room : x, kernels::reading::plain, w.rows_at(col, n),
                                kernels::reading::transposed, beta, to.cols_at(col, n)),
          "multiply by a linear's weights");
    col += n;
  }
}

/// Keys and values as an engine keeps them.
void forward_pass::round_cache(const slot& s, matrix<bf16> turned) {
  const auto round = [&](float scale, index_t first) {
    const matrix<bf16> part = turned.cols_at(first, c_.kv_width());
    if (scale > 0)
      check(round_activations(part, rounding_on_device({input_rounding::tensor, code_type::e4m3, scale}), part, {},
                              compute_),
            "round keys and values");
  };
  round(s.cache.k, c_.q_width());
  round(s.cache.v, c_.q_width() + c_.kv_width());
}

void forward_pass::norm_rows(matrix<const float> x, const std::vector<row_range>& rows, index_t first,
                             const float* weight, float epsilon, matrix<bf16> out) {
  index_t before = 0;  // rows of the ranges up to here
  for (const row_range& r : rows) {
    const index_t low = max(first, before), high = min(first + out.rows, before + r.count);
    if (low < high)
      check(rms_norm(x.rows_at(r.first + low - before, high - low), weight, epsilon,
                     out.rows_at(low - first, high - low), compute_),
            "normalise");
    before += r.count;
  }
}

void forward_pass::score_entries(slot& s, index_t entry, index_t entries, const lm_head& head,
                                 const lm_head* reference_head, const std::vector<row_range>& rows, index_t tokens,
                                 matrix<const float> reference_x) {
  const index_t hidden = c_.hidden;
  const bool same = reference_head != nullptr && reference_head->weights.get() == head.weights.get();
  const auto copy = [&](bf16* to, const lm_head& from) {
    copy_rows(to, entries, hidden, rounded(hidden, [&](index_t first, index_t count, float* out) {
                from.weights->rows(entry + first, count, out);
              }));
  };
  bf16* const reference_rows = s.weights.data() + (same ? 0 : entries * hidden);
  copy(s.weights.data(), head);
  if (reference_head != nullptr && !same) copy(reference_rows, *reference_head);
  arrived(s);
  const auto multiply = [&](matrix<const bf16> normed, const bf16* w, matrix<float> logits) {
    check(kernels::matmul<bf16>(blas_, normed, kernels::reading::plain, view(w, entries, hidden),
                                kernels::reading::transposed, 0.0f, logits),
          "multiply by the head's weights");
  };
  for (index_t first = 0; first < tokens; first += plan_.chunk_tokens) {
    const index_t m = min(plan_.chunk_tokens, tokens - first);
    const auto normed = view(normed_.data(), m, hidden);
    const auto logits = wide(m, entries);
    matrix<float> reference_logits;
    norm_rows(x(), rows, first, head_norms_.data(), head.epsilon, normed);
    multiply(normed, s.weights.data(), logits);
    if (reference_head != nullptr) {
      const auto reference_normed = view(narrow_.data(), m, hidden);
      reference_logits = view(wide_.data() + m * entries, m, entries);
      norm_rows(reference_x, rows, first, head_norms_.data() + hidden, reference_head->epsilon, reference_normed);
      multiply(reference_normed, reference_rows, reference_logits);
    }
    check(score_tile(logits, reference_logits, entry, ids_.data() + first, states_.data() + first, compute_), "score");
  }
  s.used.record(compute_);
}

void forward_pass::score(const lm_head& head, const std::vector<row_range>& rows, const int32_t* targets,
                         token_score* scores, const lm_head* reference_head, matrix<const float> reference_x) {
  if (plan_.where == residual::on_host) throw error("a residual stream on the host cannot be scored on the GPU");
  index_t tokens = 0;
  for (const row_range& r : rows) tokens += r.count;
  const index_t vocabulary = head.weights->outputs(), heads = reference_head != nullptr ? 2 : 1;
  check(cudaMemcpyAsync(ids_.data(), targets, static_cast<std::size_t>(tokens) * sizeof(int32_t),
                        cudaMemcpyHostToDevice, compute_),
        "copy ids");
  copy_norm(head_norms_.data(), head.norm);
  if (reference_head != nullptr) copy_norm(head_norms_.data() + c_.hidden, reference_head->norm);
  const index_t room = min(slots_[0].weights.size() / c_.hidden, wide_width(c_));
  const index_t most = max(index_t(1), min(room / heads, most_entries));
  for (index_t entry = 0; entry < vocabulary; entry += most)
    score_entries(next_slot(), entry, min(most, vocabulary - entry), head, reference_head, rows, tokens, reference_x);
  staged_ = nullptr;
  std::vector<score_state> states(static_cast<std::size_t>(tokens));
  check(cudaMemcpyAsync(states.data(), states_.data(), states.size() * sizeof(states[0]), cudaMemcpyDeviceToHost,
                        compute_),
        "copy scores");
  compute_.synchronise();
  for (std::size_t i = 0; i < states.size(); ++i) scores[i] = finish(states[i], reference_head != nullptr);
}

}  // namespace nibble::mistral::cuda
