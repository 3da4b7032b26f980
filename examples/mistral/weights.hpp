// SPDX-License-Identifier: Apache-2.0
/// @file
/// A linear's weights whatever they are stored as: dense F32/F16/BF16, or any packed format this project writes.
/// The forward pass and every examination of a checkpoint read weights through here, rows at a time, as float.
#pragma once

#include <memory>
#include <string>

#include "config.hpp"
#include "quantization.hpp"
#include "resident.hpp"
#include "safetensors.hpp"

namespace nibble::mistral {

/// How a packed linear's integers become weights: (code − p.zero) · p.scale, p of the output's and the input's group.
struct integer_codes {
  int bits = 0;                                    ///< codes are in [0, 2^bits); 0: the weights are no integers
  index_t rows = 1;                                ///< outputs that share a scale
  index_t width = 0;                               ///< inputs that share one
  matrix<const params> parameters;                 ///< (⌈n/rows⌉, ⌈k/width⌉), valid as long as the linear
  const std::vector<int32_t>* group_of = nullptr;  ///< (k), the group of each input; null: input / width

  index_t group(index_t input) const { return group_of ? (*group_of)[static_cast<size_t>(input)] : input / width; }
};

/// W (n, k), read as float rows.
class linear_weights {
 public:
  virtual ~linear_weights() = default;
  virtual index_t outputs() const = 0;
  virtual index_t inputs() const = 0;
  /// Rows [first, first + count) into out (count, inputs()). Thread-safe.
  virtual void rows(index_t first, index_t count, float* out) const = 0;
  /// All of them as stored: in memory, or where they are in blocks in the checkpoint's map, which outlives what is returned. Leaves mapped
  /// pages to release().
  virtual resident_linear resident() const = 0;
  /// Whether it is stored in codes, and where these are integers, what they mean.
  virtual bool packed() const { return false; }
  virtual integer_codes codes() const { return {}; }
  /// The codes of rows [first, first + count), one a byte (count, inputs()). Thread-safe. @pre codes().bits > 0.
  virtual void read_codes(index_t, index_t, uint8_t*) const {}
  /// How inputs are rounded before they are multiplied by it.
  virtual rounded_inputs rounded() const { return {}; }
  /// Forgets mapped pages; the next rows() maps them again.
  virtual void release() const {}
};

/// The weights of `name` (without ".weight"), dense or packed as config.json's quantization_config says.
/// @throws error naming the tensor when it is missing, has another shape than (n, k), or an unknown format.
std::unique_ptr<linear_weights> open_linear(const checkpoint& from, const config& model, const std::string& name,
                                            index_t n, index_t k);

/// A 1-d parameter (norm weights), as floats. @throws error when it is missing or has another length.
std::vector<float> read_vector(const checkpoint& from, const std::string& name, index_t size);

}  // namespace nibble::mistral
