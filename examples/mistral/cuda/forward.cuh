// SPDX-License-Identifier: Apache-2.0
/// @file
/// The forward pass of forward.hpp on a GPU: the same steps in the same order over the same batches, products in bf16 with
/// sums in fp32, the residual stream in fp32. Weights stream from the checkpoint through pinned memory, the next layer's under
/// the current one's arithmetic; the device holds two layers, the residual stream, and the activations of a chunk of whole
/// sequences.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "mistral/cuda/attention.cuh"
#include "mistral/cuda/runtime.cuh"
#include "mistral/cuda/score.cuh"
#include "mistral/forward.hpp"

namespace nibble::mistral::cuda {

/// Where the residual stream of the whole batch is: on the device, or, but for two chunks, in pinned memory of the host.
enum class residual { on_device, on_host };

/// Device memory of a forward pass, in bytes.
struct memory_plan {
  residual where = residual::on_device;
  index_t layer_bytes = 0;   ///< of one layer's weights; two are held
  index_t batch_bytes = 0;   ///< residual stream, scores and tables of the whole batch
  index_t token_bytes = 0;   ///< activations of a token in a chunk
  index_t chunk_tokens = 0;  ///< tokens that go through a layer at a time

  index_t total() const { return 2 * layer_bytes + batch_bytes + token_bytes * chunk_tokens; }
};

/// Tokens of a chunk when memory allows: products of that many rows keep a GPU busy.
inline constexpr index_t chunk_goal = 4096;

/// Left free for what cuBLAS and the kernels' code take on the device: an allowance, not a measurement.
inline constexpr index_t runtime_bytes = index_t(96) << 20;

/// What a batch (`starts` as batch::starts) takes; as many tokens a chunk as `free_bytes` allow, up to chunk_goal or the
/// longest sequence. @param beside tokens of the batch's first sequences that have a second residual stream. @throws error when there
/// is no room for the longest.
memory_plan plan_memory(const config& c, const std::vector<index_t>& starts, index_t free_bytes,
                        residual where = residual::on_device, index_t beside = 0);
/// As that, on the device where it has room, else on the host.
memory_plan plan_either(const config& c, const std::vector<index_t>& starts, index_t free_bytes, index_t beside = 0);

/// As `observer`, of activations on the device; what it starts in the stream sees them, and nothing after that may.
using device_observer = std::function<void(layer_input, matrix<const bf16>, cudaStream_t)>;
/// What linears read of both residual streams of a batch; of down also what its output is added to, (tokens, hidden). Nothing of the
/// second where sequences have none.
struct read_of_both {
  matrix<const bf16> beside, x;  ///< of the second stream, and of the first
  matrix<const float> residual_beside, residual;
};
using device_pair_observer = std::function<void(layer_input, const read_of_both&, cudaStream_t)>;
/// As that, of the keys, turned to their positions, and the values of a chunk's tokens, each (tokens, kv_width).
using device_cache_observer = std::function<void(matrix<const bf16> k, matrix<const bf16> v, cudaStream_t)>;

/// What the first sequences of a batch gave the linears of a block, which is a layer's attention or its MLP, on the device.
struct block_inputs {
  matrix<const bf16> read;  ///< by q, k and v, or by gate and up: (tokens, hidden)
  matrix<const bf16> made;  ///< what o, or down, read: (tokens, its inputs)
};
/// Told of rows of a change of outputs, all or some of their columns, the first of them row `first`.
using change_observer = std::function<void(index_t first, matrix<const float> change)>;

class forward_pass {
 public:
  /// @param reserved_bytes of device memory left for others, such as an observer's sums.
  /// @param either  Whether the residual stream may be on the host where the device has no room for it; x() and score() are not
  /// for such a pass.
  /// @param beside  A second residual stream of the batch's first sequences, so many tokens, is followed, such as the original model's
  /// where layers before this are quantized.
  /// @throws error without a GPU of compute capability 8.0 or newer, or with too little memory on it; where `beside` ends within a sequence.
  forward_pass(const config& c, std::vector<index_t> starts, int device = 0, index_t reserved_bytes = 0,
               bool either = false, index_t beside = 0);

  const memory_plan& memory() const { return plan_; }
  /// The residual stream (tokens, hidden), the first of two. @pre it is on the device.
  matrix<float> x() const { return {x_.data(), starts_.back(), c_.hidden}; }
  cudaStream_t compute() const { return compute_; }
  /// Of products in compute().
  cublasHandle_t products() const { return blas_; }
  /// Waits for what compute() was given. @throws error for what failed on the device since.
  void wait() const {
    compute_.synchronise();
    carried_.synchronise();
  }

  /// x = embeddings of the batch's ids, rounded to bf16, in every stream. @throws error as embed of forward.hpp.
  void embed(const checkpoint& from, const std::vector<int32_t>& ids);
  /// Of every stream, the second's rows below the first's.
  /// @pre x has no gaps between its rows, and stays until wait() or the next download().
  void upload(matrix<const float> x);
  /// Waits for the device. @throws error for what failed on it since. @pre as upload().
  void download(matrix<float> x) const;

  /// Copies a layer's weights, rounded to bf16, to where the next forward_layer() reads them; while the layer before is under
  /// way. Mapped pages are let go.
  void stage(const checkpoint& from, index_t layer);
  void stage(const layer_weights& w);
  /// The weights that were used last are to be used once more.
  void stage_again();
  /// The weights that were used last, but w's norms and linears of a half. The second stream still goes through the half as it was, by forward_beside(); what was
  /// staged in between is lost.
  void stage_over(const layer_weights& w, layer_part half);
  /// x through the layer staged last, or a half of it, asynchronous; a second stream stays. `cached` sees x's keys and values before they
  /// are rounded.
  void forward_layer(const device_observer& observe = nullptr, const device_cache_observer& cached = nullptr,
                     layer_part part = layer_part::whole);
  /// As observe_half of forward.hpp: tells what the linears of a half of the layer staged last read of x, which stays. Asynchronous.
  void observe_half(layer_part half, const device_observer& observe, const device_cache_observer& cached = nullptr,
                    half_inputs told = half_inputs::both);
  /// The second stream through a half of the layer staged last; x stays, and `observe` is told what linears read of both. Of the first input
  /// alone it is told before anything is multiplied, and the second stream stays as well. Asynchronous. @pre there is a second stream.
  void forward_beside(layer_part half, const device_pair_observer& observe,
                      const device_cache_observer& cached = nullptr, half_inputs told = half_inputs::both);

  /// How much the output of a block of the layer that ran last changes on `of` when `more` (outputs, hidden) is added to its q, k and v,
  /// or its gate and up, one above the other; each element is told once, and gone after that. Asynchronous.
  /// @param block what those linears read: attention or mlp. @pre `of` is of whole sequences; the layer rounds no inputs.
  void change_block(layer_input block, const block_inputs& of, matrix<const bf16> more, const change_observer& observe);

  /// `score` of forward.hpp for the rows in `rows`, in their order; waits for the device.
  /// @param reference_x on the device, its rows as x's.
  void score(const lm_head& head, const std::vector<row_range>& rows, const int32_t* targets, token_score* scores,
             const lm_head* reference_head = nullptr, matrix<const float> reference_x = {});

 private:
  /// Where weights arrive: a layer's, or a part of a table.
  struct slot {
    device_memory<bf16> weights;
    device_memory<float> norms;
    std::array<rounded_inputs, 7> rounded;  ///< by projection
    cache_scales cache;
    event copied, used;
  };
  /// Whole sequences that go through a layer at a time.
  struct chunk {
    index_t first, tokens, sequences, longest;
    index_t starts;  ///< where theirs begin in starts_there_
  };
  /// A chunk of a stream on its way through a layer or a half of it. One that stays, which is through a half, is not added to.
  struct turn {
    index_t stream;
    const chunk* part;
    layer_part through;
    bool stays;
    half_inputs told = half_inputs::both;
  };
  struct turn_observer {
    std::function<void(const turn&, layer_input, matrix<const bf16>, matrix<const float> residual)> of_linears;
    device_cache_observer of_cache;
  };
  /// Rows [first, first + count) of a matrix of weights as bf16.
  using row_source = std::function<void(index_t first, index_t count, bf16* out)>;

  slot& next_slot();
  void arrived(slot& s);
  void copy_rows(bf16* to, index_t rows, index_t cols, const row_source& from);
  void copy_norm(float* to, const std::vector<float>& from);
  slot& stage(const std::function<row_source(projection)>& linear, const std::vector<float>& input_norm,
              const std::vector<float>& post_norm);
  void run_alone(layer_part part, bool stays, const device_observer& observe, const device_cache_observer& cached,
                 half_inputs to = half_inputs::both);
  const slot& weights_for(const turn& of) const {
    return of.stream == 1 && beside_staged_ ? *beside_staged_ : *staged_;
  }
  void run(const std::vector<turn>& turns, const turn_observer& observe);
  void forward_chunk(const slot& s, const turn& of, matrix<float> rows, const turn_observer& observe);
  chunk part_before(chunk part, index_t end) const;
  matrix<bf16> attend(const slot& s, const chunk& part, matrix<const float> qkv, const device_cache_observer& cached);
  matrix<bf16> gate(matrix<const float> gate_up);
  matrix<const bf16> weights_of(const slot& s, projection first, projection last) const;
  void multiply(const slot& s, projection first, projection last, matrix<bf16> x, matrix<bf16> room, float beta,
                matrix<float> to);
  void round_cache(const slot& s, matrix<bf16> turned);
  void forward_here(const turn& of, const turn_observer& observe);
  void forward_carried(const std::vector<turn>& turns, const turn_observer& observe);
  index_t first_element(const turn& of) const { return (of.stream * starts_.back() + of.part->first) * c_.hidden; }
  void norm_rows(matrix<const float> x, const std::vector<row_range>& rows, index_t first, const float* weight,
                 float epsilon, matrix<bf16> out);
  void score_entries(slot& s, index_t entry, index_t entries, const lm_head& head, const lm_head* reference_head,
                     const std::vector<row_range>& rows, index_t tokens, matrix<const float> reference_x);
  matrix<float> wide(index_t rows, index_t cols) const { return {wide_.data(), rows, cols}; }

  config c_;
  std::vector<index_t> starts_;
  index_t beside_;
  head_layout heads_;
  memory_plan plan_;
  stream compute_, carried_;
  blas blas_;
  staging staging_;
  std::array<slot, 2> slots_;
  int turn_ = 0;
  slot* staged_ = nullptr;
  slot* beside_staged_ = nullptr;  ///< for the second stream, where that is another's
  slot* ran_ = nullptr;            ///< of the layer that ran last, while its weights are there
  std::vector<chunk> chunks_;
  device_memory<index_t> starts_there_;
  device_memory<float> x_, cosine_, sine_, head_norms_, wide_;
  device_memory<bf16> normed_, narrow_;
  device_memory<bf16> kept_;  ///< what the linears of a half read of a chunk of the second stream, input by input
  device_memory<float> kept_residual_;  ///< what down's output is added to there
  device_memory<int32_t> ids_;
  device_memory<score_state> states_;
  /// A place for a chunk of a residual stream that is on the host.
  struct carrier {
    event arrived, through;
  };
  pinned_memory<float> far_;  ///< that stream
  std::array<carrier, 2> carriers_;
};

}  // namespace nibble::mistral::cuda
