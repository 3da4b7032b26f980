// SPDX-License-Identifier: Apache-2.0
/// @file
/// A checkpoint as a GGUF file: what each tensor becomes, and the file itself, written a piece of a tensor at a time.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "gguf/importance.hpp"
#include "gguf/mix.hpp"
#include "mistral/config.hpp"
#include "mistral/gguf.hpp"
#include "mistral/gguf_blocks.hpp"
#include "mistral/weights.hpp"

namespace nibble::mistral {

/// A tensor to be written.
struct planned_tensor {
  gguf_tensor_info info;
  gguf_type wanted = gguf_type::f32;               ///< by the mix; info.type where its columns do not fit
  bool carried = false;                            ///< its blocks hold a packed linear's codes (carry.hpp)
  index_t rows = 1, columns = 0;                   ///< as floats are read
  index_t paired_heads = 0;                        ///< rows of a head where they are moved (gguf_model.hpp)
  const std::vector<float>* importance = nullptr;  ///< null: every column alike
  const std::vector<float>* times = nullptr;       ///< what columns are multiplied by before they are rounded; null: 1
  const std::vector<float>* divided = nullptr;     ///< what rows, or a vector's elements, are divided by; null: 1
  std::string linear;                              ///< what it is read from, by open_linear
  const tensor* direct = nullptr;                  ///< or this
};

struct gguf_plan {
  gguf_metadata metadata;
  std::vector<planned_tensor> tensors;
  std::vector<std::string> notes;  ///< what a user should know: types that do not fit, what llama.cpp does otherwise
  block_search_kind search = block_search_kind::ggml;
  index_t weights = 0;           ///< elements
  std::uint64_t data_bytes = 0;  ///< that they take

  double bits_per_weight() const { return 8.0 * static_cast<double>(data_bytes) / static_cast<double>(weights); }
};

/// Opens and checks everything, reads no weights. Referenced objects outlive the plan.
/// @param importance  null: none. @param name  general.name.
/// @throws error naming the tensor or file that is missing or of another shape.
gguf_plan plan_gguf(const checkpoint& files, const config& c, const mix& m, const importance_matrix* importance,
                    const std::string& name);

/// @throws error naming the tensor when one of its weights is NaN, infinite, or beyond what its type holds. @param where  the checkpoint.
void check_values(const planned_tensor& t, const float* values, index_t count, const std::string& where);

/// Writes the file. @returns its bytes.
/// @param told  called as layers are done, with how many.
/// @throws error naming a tensor with a weight that is NaN, infinite, or beyond what its type holds; and for a full disk.
std::uint64_t write_gguf(const std::filesystem::path& path, const gguf_plan& plan, const checkpoint& files,
                         const config& c, const std::function<void(index_t)>& told);

}  // namespace nibble::mistral
