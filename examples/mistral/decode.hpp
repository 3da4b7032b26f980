// SPDX-License-Identifier: Apache-2.0
/// @file
/// Decoding with a KV cache: keys and values of every token seen stay in memory, so each further token costs one pass
/// over the weights. Weights are held as the checkpoint stores them, packed or dense, and multiplied from there.
///
/// Every row of activations is computed in an order of its own that no other row changes: a sequence's logits are the
/// same bits alone and in a batch, prompt at once and token by token, and for any number of threads.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "config.hpp"
#include "forward.hpp"
#include "nibble/matrix.hpp"
#include "resident.hpp"
#include "rotary.hpp"
#include "rows.hpp"
#include "safetensors.hpp"

namespace nibble::mistral {

/// A layer's linears, by projection.
using layer_linears = std::array<resident_linear, 7>;

class decoder {
 public:
  /// Loads all weights but the embedding, which is read a row at a time. `files` outlives the decoder.
  /// @param linears a layer's linears in place of the checkpoint's, for weights that are not on disk; one that is empty
  /// (n = 0) is loaded all the same.
  /// @throws error naming a tensor that is missing, misshapen or stored in an unknown way.
  decoder(const checkpoint& files, const config& settings,
          const std::function<layer_linears(index_t)>& linears = nullptr);

  /// Forgets every sequence, then reads these. @returns logits (sequences, vocabulary) of the id that follows each, valid
  /// until the next call. @throws error for an empty sequence, one longer than the context, or an id outside the
  /// vocabulary.
  matrix<const float> prefill(const batch& prompts);
  /// Appends ids[i] to sequence i and returns logits as prefill does. @pre one id a sequence, each within the context.
  matrix<const float> step(const std::vector<int32_t>& ids);
  /// Forgets all sequences but these, which become 0, 1, …; ascending.
  void keep(const std::vector<index_t>& sequences);

  index_t sequences() const { return static_cast<index_t>(lengths_.size()); }
  index_t length(index_t sequence) const { return lengths_[static_cast<size_t>(sequence)]; }
  const config& settings() const { return settings_; }
  const checkpoint& files() const { return files_; }
  /// Bytes of weights a step reads.
  index_t weight_bytes() const;

 private:
  struct layer {
    std::vector<float> input_norm, post_norm;
    layer_linears w;
    cache_scales cache;
    const resident_linear& at(projection p) const { return w[static_cast<size_t>(p)]; }
  };
  /// Keys and values (tokens, head_dim) of one head of one sequence in one layer.
  struct head_cache {
    std::vector<float> keys, values;
  };
  /// A token on its way through: which sequence, and where in it.
  struct row {
    index_t sequence, position;
  };
  struct scratch {
    row_buffer x, normed, q, k, v, attended, gate, up, out;
  };

  head_cache& cache(index_t sequence, size_t layer, index_t head);
  void check(const batch& b) const;
  /// Takes rows with ids through all layers, in chunks; keeps the last layer's output of each sequence's last row.
  void advance(const std::vector<int32_t>& ids, const std::vector<row>& rows);
  void through_layers(matrix<float> x, const row* rows);
  void attention(size_t layer, matrix<const float> normed, const row* rows, matrix<float> out);
  /// Rounds them first where the checkpoint says so.
  void remember(size_t layer, matrix<float> k, matrix<float> v, const row* rows);
  void attend(size_t layer, matrix<const float> q, const row* rows, matrix<float> attended);
  void mlp(size_t layer, matrix<const float> normed, matrix<float> out);
  matrix<const float> logits();

  const checkpoint& files_;
  config settings_;
  std::vector<layer> layers_;
  std::vector<float> norm_;
  resident_linear head_;
  rotary_table rotary_;
  std::vector<std::vector<head_cache>> caches_;  ///< by sequence, then layer · kv_heads + head
  std::vector<index_t> lengths_;                 ///< tokens seen, by sequence
  std::vector<float> last_;                      ///< (sequences, hidden)
  row_buffer logits_;                            ///< (sequences, vocabulary)
  scratch scratch_;
};

}  // namespace nibble::mistral
