// SPDX-License-Identifier: Apache-2.0
/// @file
/// A checkpoint's directory while it is being written, and the files that go beside the weights.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "config.hpp"

namespace nibble::mistral {

/// Lies in NAME.partial when a run left something to go on from (resume.hpp).
inline constexpr const char* resume_file = "run.cbor";

/// Whether an output can be made, nothing made yet. @returns its full name.
/// @throws error when `name` cannot be made, exists (unless `overwrite`, and then only a checkpoint or an empty directory
/// is replaced), or is, lies in, or holds the directory `model`.
std::filesystem::path check_output(const std::filesystem::path& name, const std::filesystem::path& model,
                                   bool overwrite);

/// An output that takes its final name only when whole. Until commit() its files lie in the sibling NAME.partial, which
/// no loader takes for NAME; without commit() or keep() they vanish. One process at a time writes to a NAME.
class output_directory {
 public:
  /// What an earlier run left is cleared, unless it left a `resume_file`: then it stays, whatever becomes of this run.
  /// @throws error as check_output, and when `name` is being written by another process.
  output_directory(const std::filesystem::path& name, const std::filesystem::path& model, bool overwrite);
  ~output_directory();
  output_directory(const output_directory&) = delete;
  output_directory& operator=(const output_directory&) = delete;

  const std::filesystem::path& path() const { return partial_; }  ///< where to write
  const std::filesystem::path& name() const { return name_; }     ///< where it will be

  /// Whether the files stay when this object goes.
  void keep(bool stay = true) { kept_ = stay; }
  /// Removes what is there.
  void clear();

  /// Gives the files their final place. An older output is swapped out in one step where the file system can, and
  /// otherwise renamed away first; it is deleted last. @throws error, the older output still in place.
  void commit();

 private:
  void lock();

  std::filesystem::path name_, partial_;
  int lock_ = -1;
  bool committed_ = false, kept_ = false;
};

/// Copies the tokenizer's files, the chat template, generation_config.json and licences; never other weights, nor
/// params.json, which would make vLLM read a model as another format. @returns bytes copied.
std::uint64_t copy_sidecars(const std::filesystem::path& model, const std::filesystem::path& out);

/// Writes OUT/config.json: the model's, with this quantization_config, and with `dtype` ("bfloat16", "float16",
/// "float32") as the dtype of what is not packed.
void write_config(const std::filesystem::path& out, const config& model, const std::string& dtype,
                  const nlohmann::ordered_json& quantization_config);

}  // namespace nibble::mistral
