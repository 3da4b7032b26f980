// SPDX-License-Identifier: Apache-2.0
/// @file
/// GGUF version 3, read by memory map: "GGUF", u32 version, u64 tensors, u64 keys; keys as string, u32 type, value; tensors as
/// name, u32 dimensions, u64 each (columns first), u32 type, u64 offset; then the data, padded to the alignment. A string is
/// u64 length and bytes, an array u32 type, u64 count and values; all little-endian.
/// Source: ggml-org/ggml, docs/gguf.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace nibble::mistral {

/// What an array holds; the index is the type's number in the file. Arrays of arrays are refused, as ggml refuses them.
using gguf_array = std::variant<std::vector<std::uint8_t>, std::vector<std::int8_t>, std::vector<std::uint16_t>,
                                std::vector<std::int16_t>, std::vector<std::uint32_t>, std::vector<std::int32_t>,
                                std::vector<float>, std::vector<bool>, std::vector<std::string>, std::monostate,
                                std::vector<std::uint64_t>, std::vector<std::int64_t>, std::vector<double>>;

/// A key's value; the index is the type's number in the file.
using gguf_value = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t, std::int32_t,
                                float, bool, std::string, gguf_array, std::uint64_t, std::int64_t, double>;

using gguf_metadata = std::vector<std::pair<std::string, gguf_value>>;

/// How a tensor's elements are stored, by the format's numbers.
enum class gguf_type : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq4_nl = 20,
  iq4_xs = 23,
  bf16 = 30
};

/// A type's name as ggml spells it, and its block: so many elements of a row in so many bytes.
struct gguf_type_info {
  gguf_type type;
  const char* name;
  std::uint64_t elements, bytes;
};

/// All types known here, in the order of their numbers.
const std::vector<gguf_type_info>& gguf_types();
const gguf_type_info& info_of(gguf_type type);
/// Null where there is none: a number or name of another type.
const gguf_type_info* find_gguf_type(std::uint32_t number);
const gguf_type_info* find_gguf_type(std::string_view name);

/// A tensor's name, shape and type; how its bytes lie follows.
struct gguf_tensor_info {
  std::string name;                 ///< below 64 bytes
  std::vector<std::uint64_t> dims;  ///< 1 to 4, columns first, each at least 1
  gguf_type type = gguf_type::f32;

  /// @throws error naming `file` and the tensor unless rows are whole blocks and 63 bits count the bytes.
  std::uint64_t bytes(const std::string& file) const;
};

struct gguf_tensor : gguf_tensor_info {
  std::uint64_t offset = 0;         ///< from where the data begin
  const std::byte* data = nullptr;  ///< in the memory map
  std::uint64_t size = 0;           ///< bytes
};

inline constexpr std::uint64_t gguf_alignment = 32;  ///< unless general.alignment says otherwise

/// A GGUF file, every count, length, name and offset checked when it is opened.
class gguf_file {
 public:
  /// @throws error naming the file, and the key or tensor, that is wrong.
  explicit gguf_file(const std::filesystem::path& path);
  ~gguf_file();
  gguf_file(gguf_file&&) noexcept;

  const std::filesystem::path& path() const;
  const gguf_metadata& metadata() const;  ///< in the file's order
  const std::vector<gguf_tensor>& tensors() const;

  const gguf_value* find(std::string_view key) const;           ///< null where there is none
  const gguf_tensor* find_tensor(std::string_view name) const;  ///< null where there is none

  /// A key's value as a T. @throws error naming file and key when it is missing or of another type.
  template <class T>
  const T& get(std::string_view key) const {
    const gguf_value* value = find(key);
    if (!value) missing(key);
    const T* held = std::get_if<T>(value);
    if (!held) mistyped(key);
    return *held;
  }
  /// An array of T's. @throws as get.
  template <class T>
  const std::vector<T>& get_array(std::string_view key) const {
    const auto* held = std::get_if<std::vector<T>>(&get<gguf_array>(key));
    if (!held) mistyped(key);
    return *held;
  }
  /// A whole number of any integer type. @throws error as get, and when it is negative.
  std::uint64_t whole(std::string_view key) const;
  std::uint64_t whole(std::string_view key, std::uint64_t otherwise) const {
    return find(key) ? whole(key) : otherwise;
  }

  /// Forgets the mapped pages of a tensor.
  void release(const gguf_tensor& t) const;

 private:
  [[noreturn]] void missing(std::string_view key) const;
  [[noreturn]] void mistyped(std::string_view key) const;

  struct impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace nibble::mistral
