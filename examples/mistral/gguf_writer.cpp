// SPDX-License-Identifier: Apache-2.0
#include "gguf_writer.hpp"

#include <set>
#include <type_traits>

#include "error.hpp"

namespace nibble::mistral {
namespace {

std::uint64_t padded(std::uint64_t bytes) {
  return (bytes + gguf_alignment - 1) / gguf_alignment * gguf_alignment;
}

std::filesystem::path partial_name(std::filesystem::path path) {
  return path += ".partial";
}

/// The header as bytes.
class bytes_writer {
 public:
  std::string out;

  template <class T>
  void number(T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(value));  // little-endian, as every machine we build for
  }
  void text(const std::string& value) {
    number(static_cast<std::uint64_t>(value.size()));
    out += value;
  }
  template <class T>
  void one(const T& value) {
    if constexpr (std::is_same_v<T, std::string>)
      text(value);
    else if constexpr (std::is_same_v<T, bool>)
      number(static_cast<std::uint8_t>(value));
    else
      number(value);
  }
  void value(const gguf_value& v) {
    number(static_cast<std::uint32_t>(v.index()));
    std::visit(
        [&](const auto& held) {
          if constexpr (std::is_same_v<std::decay_t<decltype(held)>, gguf_array>)
            array(held);
          else
            one(held);
        },
        v);
  }

 private:
  void array(const gguf_array& a) {
    number(static_cast<std::uint32_t>(a.index()));
    std::visit(
        [&](const auto& values) {
          using all = std::decay_t<decltype(values)>;
          if constexpr (!std::is_same_v<all, std::monostate>) {
            number(static_cast<std::uint64_t>(values.size()));
            for (size_t i = 0; i < values.size(); ++i) one(typename all::value_type(values[i]));
          }
        },
        a);
  }
};

std::string header_bytes(const std::string& file, const gguf_metadata& metadata,
                         const std::vector<gguf_tensor_info>& tensors) {
  bytes_writer w;
  std::set<std::string_view> seen;
  w.out = "GGUF";
  w.number(std::uint32_t{3});
  w.number(static_cast<std::uint64_t>(tensors.size()));
  w.number(static_cast<std::uint64_t>(metadata.size()));
  for (const auto& [key, value] : metadata) {
    const auto* array = std::get_if<gguf_array>(&value);
    if (key.empty() || !seen.insert(key).second || (array && std::holds_alternative<std::monostate>(*array)))
      throw error(file + ": the key \"" + key + "\" is empty, given twice, or an array of arrays");
    w.text(key);
    w.value(value);
  }
  seen.clear();
  std::uint64_t offset = 0;
  for (const gguf_tensor_info& t : tensors) {
    if (t.name.empty() || t.name.size() > 63 || !seen.insert(t.name).second || t.dims.empty() || t.dims.size() > 4)
      throw error(file + ": the tensor \"" + t.name +
                  "\" is given twice, has no name or one beyond 63 bytes, or not 1 to 4 dimensions");
    w.text(t.name);
    w.number(static_cast<std::uint32_t>(t.dims.size()));
    for (const std::uint64_t extent : t.dims) w.number(extent);
    w.number(static_cast<std::uint32_t>(t.type));
    w.number(offset);
    offset += padded(t.bytes(file));
  }
  w.out.resize(static_cast<size_t>(padded(w.out.size())), '\0');
  return std::move(w.out);
}

}  // namespace

gguf_writer::gguf_writer(const std::filesystem::path& path, const gguf_metadata& metadata,
                         std::vector<gguf_tensor_info> tensors)
    : path_(path), file_(partial_name(path)), tensors_(std::move(tensors)) {
  const std::string header = header_bytes(path_.string(), metadata, tensors_);
  file_.write_at(0, header.data(), header.size());
  at_ = header.size();
}

void gguf_writer::append(const void* data, std::uint64_t bytes) {
  if (current_ == tensors_.size()) throw error(path_.string() + ": more bytes are given than its tensors take");
  const gguf_tensor_info& t = tensors_[current_];
  const std::uint64_t all = t.bytes(path_.string());
  if (bytes > all - filled_)
    throw error(path_.string() + ": the tensor \"" + t.name + "\" is given more than the " + std::to_string(all) +
                " bytes that it takes");
  file_.write_at(at_, data, bytes);
  at_ += bytes, filled_ += bytes;
  if (filled_ < all) return;
  static constexpr char zeros[gguf_alignment] = {};
  file_.write_at(at_, zeros, padded(at_) - at_);
  at_ = padded(at_), filled_ = 0, ++current_;
}

std::uint64_t gguf_writer::finish() {
  if (current_ < tensors_.size())
    throw error(path_.string() + ": the tensor \"" + tensors_[current_].name + "\" lacks bytes");
  file_.finish();
  const removed_at_exit partial{file_.path()};
  rename_file(file_.path(), path_);
  const auto parent = std::filesystem::absolute(path_).parent_path();
  sync_directory(parent);
  return at_;
}

std::uint64_t gguf_file_bytes(const gguf_metadata& metadata, const std::vector<gguf_tensor_info>& tensors) {
  std::uint64_t bytes = header_bytes("the file", metadata, tensors).size();
  for (const gguf_tensor_info& t : tensors) bytes += padded(t.bytes("the file"));
  return bytes;
}

}  // namespace nibble::mistral
