// SPDX-License-Identifier: Apache-2.0
/// @file
/// safetensors, read by memory map and written in shards.
/// A file is u64 header length, JSON header, data; each tensor's data_offsets count from the end of the header.
/// Source: huggingface/safetensors README, "Format".
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/half.hpp"
#include "nibble/matrix.hpp"

namespace nibble::mistral {

/// One tensor of a checkpoint, in the map.
struct tensor {
  std::string dtype;           ///< "F32", "F16", "BF16", "I32", "I64", "I16", "U8", …; in a GGUF file "Q4_K", …
  std::vector<index_t> shape;  ///< as stored
  const std::byte* data = nullptr;  ///< in the memory map; may be unaligned
  index_t bytes = 0;
  std::filesystem::path file;  ///< where it lies, for messages
  std::string name;            ///< as in the checkpoint
  index_t paired_heads = 0;    ///< in a GGUF file, of q and k: rows of a head, which lie in pairs (gguf_model.hpp)

  index_t size() const;  ///< elements
};

/// Whether it holds weights as they are computed with: F32, F16 or BF16.
bool is_floating(const tensor& t);

/// Bytes that a tensor of `dtype` and `shape` takes in a file; `where` names it in messages.
/// @throws error for a dtype that safetensors does not have, or a product beyond 64 bits. @pre extents >= 0.
std::uint64_t stored_bytes(const std::string& where, std::string_view dtype, const std::vector<index_t>& shape);

/// A model's tensors: a directory's model.safetensors, or model.safetensors.index.json and its shards; or a GGUF file, whose
/// tensors have the names here that a checkpoint gives them. Every header, offset
/// and length is checked when the checkpoint is opened, so reading a tensor cannot run past a file.
class checkpoint {
 public:
  /// @throws error naming the file and what is wrong with it.
  explicit checkpoint(const std::filesystem::path& model);
  ~checkpoint();
  checkpoint(checkpoint&&) noexcept;

  bool contains(std::string_view name) const;
  /// @throws error naming the tensor if it is missing.
  const tensor& at(std::string_view name) const;
  /// As at(), also checking that the shape is `shape`.
  const tensor& at(std::string_view name, const std::vector<index_t>& shape) const;
  const std::map<std::string, tensor, std::less<>>& tensors() const;
  const std::filesystem::path& directory() const;

  /// Tells the kernel that this tensor's pages are not needed any more, so they leave the resident set.
  void release(const tensor& t) const;

 private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

/// Elements [first, first + count) of an F32, F16 or BF16 tensor, or of a GGUF file's in blocks, as float, in the order of a
/// checkpoint. @throws error for another dtype, naming it.
void read_floats(const tensor& t, index_t first, index_t count, float* out);

/// Writes tensors into shards of at most `max_shard_bytes` of data (one tensor is never split), data first, header last,
/// each file fsynced; the names become model.safetensors, or model-00001-of-00002.safetensors and an index, once finish()
/// knows how many there are. Until then they carry other names, and without finish() they vanish.
/// Memory holds no tensor data, but for tensors whose bytes are no multiple of 8: those wait for the end of their shard,
/// since readers need every tensor aligned to its element and the format forbids padding between tensors.
class safetensors_writer {
 public:
  safetensors_writer(std::filesystem::path directory, std::uint64_t max_shard_bytes);
  /// Goes on from where an earlier writer's state() was. @throws error naming a file that is not there any more.
  safetensors_writer(std::filesystem::path directory, std::uint64_t max_shard_bytes, const nlohmann::json& state);
  ~safetensors_writer();

  /// Flushes what was added to the disk, and tells what another writer needs to go on from here, in this directory; from
  /// now on nothing vanishes without finish(). Two states are good at any time: this one and the one before, so that
  /// the caller may lose its power while it saves this one.
  nlohmann::json state();

  /// Appends a tensor. @throws error naming the file when the disk is full or not writable.
  void add(const std::string& name, std::string_view dtype, const std::vector<index_t>& shape, const void* data,
           std::uint64_t bytes);
  /// Ends the last shard, renames the shards, writes the index if there is more than one. @returns bytes of all files.
  std::uint64_t finish();
  /// Reads every tensor back from the disk and compares it with what was added. @throws error naming one that differs.
  /// @pre finish() was called.
  void check() const;

 private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

/// Removes what writers needed on the way and no longer do. @pre the last one was finished, and no state() will be gone on
/// from.
void discard_unfinished(const std::filesystem::path& directory);

}  // namespace nibble::mistral
