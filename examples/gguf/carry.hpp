// SPDX-License-Identifier: Apache-2.0
/// @file
/// The codes of a packed linear in ggml's blocks of 32, none found anew: a block's weights decode to the very floats that the
/// linear's rows are, (q − z)·s.
///     Q4_0, Q5_0, Q8_0   d = s                code = q − z + 2^(bits−1) (Q8_0: q − z), where that is a code of the block
///     Q4_1, Q5_1         d = s, m = −z·s      code = q
/// d and m are fp16, so s (and z·s) must be what fp16 holds exactly, and a block's inputs must share one s. Then every product has at most
/// 19 significant bits, and d·q + m is one of them too, so that neither way rounds.
#pragma once

#include <string>
#include <vector>

#include "gguf/mix.hpp"
#include "mistral/gguf.hpp"
#include "mistral/weights.hpp"
#include "nibble/layout.hpp"

namespace nibble::mistral {

struct planned_tensor;
struct gguf_plan;

/// The word for a file in which nothing is rounded again: codes carried over, floats as they are stored. It is among no
/// mixes(), and its types are those of keep_exactly.
const mix& exact_mix();

/// Whether blocks of `type` hold the codes of a linear of k inputs, and if not, why.
layout::verdict can_carry(const integer_codes& codes, index_t k, gguf_type type);

/// Whether a tensor of `type` holds the weights that codes stand for: as blocks do that carry them, or as floats that have them all.
layout::verdict can_keep(const integer_codes& codes, index_t k, gguf_type type);

/// The smallest type that does; F32 if need be.
gguf_type smallest_exact(const integer_codes& codes, index_t k);

/// Rows [first, first + count) into k / 32 blocks of `type` each. @pre can_carry.
void carry_rows(const linear_weights& from, gguf_type type, index_t first, index_t count, std::byte* out);

/// Carries what can be, tensor by tensor, and tells of the rest.
class carrier {
 public:
  /// @param exact  whether every tensor gets what holds it exactly, whatever a mix says.
  explicit carrier(bool exact) : exact_(exact) {}

  /// A linear's type, where that by the mix is set.
  void settle(planned_tensor& t, const linear_weights& linear);
  /// The type of what the checkpoint holds as floats, likewise.
  void settle(planned_tensor& t, const tensor& stored) const;
  /// Adds notes of what is rounded again, and in an exact file its file type, that of most of its layers' weights.
  void finish(gguf_plan& plan) const;

 private:
  struct count {
    size_t tensors = 0;
    std::string first, why;  ///< of the first one
    gguf_type type = gguf_type::f32;
    void add(const planned_tensor& t, std::string reason);
  };

  bool exact_;
  count again_;               ///< packed linears that are rounded a second time
  size_t kept_by_exact_ = 0;  ///< of them, those that an exact file carries
  count unheld_;              ///< packed linears that no block holds
};

}  // namespace nibble::mistral
