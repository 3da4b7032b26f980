// SPDX-License-Identifier: Apache-2.0
/// @file
/// A shard's header comes first in the file but is known last, so room for it is left: `header_room` bytes, in which
/// the header is padded with spaces. Where that would waste more than a thousandth of the file, or the header outgrew
/// its room, the data are moved to where they fit exactly.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "error.hpp"
#include "file.hpp"
#include "safetensors.hpp"

namespace nibble::mistral {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t header_room = 256 * 1024;  // 7B parameters, 4 bits: 32 layers · 7 linears · 4 tensors · 130 B
constexpr std::uint64_t alignment = 8;             // the widest element

std::string number(size_t value) {
  const std::string digits = std::to_string(value);
  return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
}

/// One file: tensors appended, then closed with a header.
class shard {
 public:
  explicit shard(const fs::path& path) : file_(path) {}

  void add(const std::string& name, std::string_view dtype, const std::vector<index_t>& shape, const void* data,
           std::uint64_t bytes) {
    held_bytes_ += bytes;
    if (bytes % alignment != 0) {
      const auto* first = static_cast<const char*>(data);
      odd_.push_back({name, std::string(dtype), shape, std::string(first, first + bytes)});
      return;
    }
    append(name, dtype, shape, data, bytes);
  }

  std::uint64_t bytes() const { return held_bytes_; }
  const fs::path& path() const { return file_.path(); }
  const std::vector<std::string>& names() const { return names_; }

  /// @returns bytes of the file.
  std::uint64_t close() {
    // Widest elements first keep each aligned: an odd tensor's size is a multiple of its own element.
    std::stable_sort(odd_.begin(), odd_.end(), [](const odd_tensor& a, const odd_tensor& b) {
      return stored_bytes(a.name, a.dtype, {8}) > stored_bytes(b.name, b.dtype, {8});
    });
    for (const odd_tensor& t : odd_) append(t.name, t.dtype, t.shape, t.data.data(), t.data.size());
    std::string text = header_.dump();
    const std::uint64_t exact = (text.size() + alignment - 1) / alignment * alignment;
    const bool padded = exact <= header_room && (header_room - exact) * 1000 <= held_bytes_;
    text.resize(static_cast<size_t>(padded ? header_room : exact), ' ');
    if (!padded) file_.move(8 + header_room, 8 + text.size(), held_bytes_);
    unsigned char length[8];
    for (int byte = 0; byte < 8; ++byte) length[byte] = static_cast<unsigned char>(text.size() >> 8 * byte);
    file_.write_at(0, length, sizeof(length));
    file_.write_at(8, text.data(), text.size());
    file_.truncate(8 + text.size() + held_bytes_);
    file_.finish();
    return 8 + text.size() + held_bytes_;
  }

 private:
  struct odd_tensor {
    std::string name, dtype;
    std::vector<index_t> shape;
    std::string data;
  };

  void append(const std::string& name, std::string_view dtype, const std::vector<index_t>& shape, const void* data,
              std::uint64_t bytes) {
    file_.write_at(8 + header_room + written_, data, bytes);
    header_[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {written_, written_ + bytes}}};
    written_ += bytes;
    names_.push_back(name);
  }

  output_file file_;
  nlohmann::json header_ = {{"__metadata__", {{"format", "pt"}}}};
  std::vector<std::string> names_;
  std::vector<odd_tensor> odd_;
  std::uint64_t written_ = 0, held_bytes_ = 0;
};

}  // namespace

struct safetensors_writer::impl {
  struct closed_shard {
    fs::path path;
    std::vector<std::string> names;
  };

  fs::path directory;
  std::uint64_t max_shard_bytes;
  std::unique_ptr<shard> open;
  std::vector<closed_shard> closed;
  std::set<std::string, std::less<>> names;
  std::uint64_t data_bytes = 0, file_bytes = 0;
  bool finished = false;

  void close() {
    file_bytes += open->close();
    closed.push_back({open->path(), open->names()});
    open.reset();
  }
};

safetensors_writer::safetensors_writer(fs::path directory, std::uint64_t max_shard_bytes)
    : impl_(std::make_unique<impl>()) {
  impl_->directory = std::move(directory);
  impl_->max_shard_bytes = max_shard_bytes;
}

safetensors_writer::~safetensors_writer() {
  if (!impl_ || impl_->finished) return;
  std::error_code ignored;
  for (const auto& shard : impl_->closed) fs::remove(shard.path, ignored);
}

void safetensors_writer::add(const std::string& name, std::string_view dtype, const std::vector<index_t>& shape,
                             const void* data, std::uint64_t bytes) {
  const std::string where = impl_->directory.string() + ": the tensor \"" + name + "\"";
  if (const std::uint64_t needed = stored_bytes(where, dtype, shape); needed != bytes)
    throw error(where + " was given " + std::to_string(bytes) + " bytes where its shape takes " +
                std::to_string(needed));
  if (!impl_->names.insert(name).second) throw error(where + " was given twice");
  if (impl_->open && impl_->open->bytes() > 0 &&
      bytes > impl_->max_shard_bytes - std::min(impl_->max_shard_bytes, impl_->open->bytes()))
    impl_->close();
  if (!impl_->open)
    impl_->open =
        std::make_unique<shard>(impl_->directory / ("shard-" + number(impl_->closed.size() + 1) + ".unfinished"));
  impl_->open->add(name, dtype, shape, data, bytes);
  impl_->data_bytes += bytes;
}

std::uint64_t safetensors_writer::finish() {
  if (!impl_->open) throw error(impl_->directory.string() + ": a checkpoint without tensors is not written");
  impl_->close();
  const size_t count = impl_->closed.size();
  nlohmann::json index = {{"metadata", {{"total_size", impl_->data_bytes}}}, {"weight_map", nlohmann::json::object()}};
  for (size_t i = 0; i < count; ++i) {
    auto& shard = impl_->closed[i];
    const std::string name =
        count == 1 ? "model.safetensors" : "model-" + number(i + 1) + "-of-" + number(count) + ".safetensors";
    rename_file(shard.path, impl_->directory / name);
    shard.path = impl_->directory / name;
    for (const std::string& tensor : shard.names) index["weight_map"][tensor] = name;
  }
  if (count > 1) {
    const std::string text = index.dump(2) + "\n";
    write_file(impl_->directory / "model.safetensors.index.json", text);
    impl_->file_bytes += text.size();
  }
  sync_directory(impl_->directory);
  impl_->finished = true;
  return impl_->file_bytes;
}

}  // namespace nibble::mistral
