// SPDX-License-Identifier: Apache-2.0
/// @file
/// A shard's header comes first in the file but is known last, so room for it is left: `header_room` bytes, in which
/// the header is padded with spaces. Where that would waste more than a thousandth of the file, or the header outgrew
/// its room, the data are copied to a file in which they fit exactly. Nothing that a saved state counts on is ever
/// overwritten: a run that goes on from it finds the bytes it had.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "error.hpp"
#include "file.hpp"
#include "nibble/host/parallel.hpp"
#include "safetensors.hpp"
#include "sha256.hpp"

namespace nibble::mistral {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t header_room = 256 * 1024;  // 7B parameters, 4 bits: 32 layers · 7 linears · 4 tensors · 130 B
constexpr std::uint64_t alignment = 8;             // the widest element

std::string number(size_t value) {
  const std::string digits = std::to_string(value);
  return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
}

fs::path unfinished_name(const fs::path& directory, size_t shard) {
  return directory / ("shard-" + number(shard + 1) + ".unfinished");
}
fs::path exact_name(const fs::path& directory, size_t shard) {
  return directory / ("shard-" + number(shard + 1) + ".exact");
}
std::string final_name(size_t shard, size_t count) {
  return count == 1 ? "model.safetensors" : "model-" + number(shard + 1) + "-of-" + number(count) + ".safetensors";
}

/// One file: tensors appended, then closed with a header.
class shard {
 public:
  shard(const fs::path& directory, size_t at)
      : exact_(exact_name(directory, at)), file_(unfinished_name(directory, at)) {}
  shard(const fs::path& directory, size_t at, const nlohmann::json& state)
      : exact_(exact_name(directory, at)),
        file_(unfinished_name(directory, at), output_file::mode::continued),
        header_(state.at("header")),
        names_(state.at("names")),
        written_(state.at("written")),
        held_bytes_(state.at("held")) {
    for (const auto& t : state.at("odd")) {
      const auto& data = t.at("data").get_binary();
      odd_.push_back({t.at("name"), t.at("dtype"), t.at("shape"), std::string(data.begin(), data.end())});
    }
  }

  nlohmann::json state() {
    file_.keep();
    auto odd = nlohmann::json::array();
    for (const odd_tensor& t : odd_)
      odd.push_back({{"name", t.name},
                     {"dtype", t.dtype},
                     {"shape", t.shape},
                     {"data", nlohmann::json::binary({t.data.begin(), t.data.end()})}});
    return {{"header", header_}, {"names", names_}, {"written", written_}, {"held", held_bytes_}, {"odd", odd}};
  }

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

  struct closed {
    fs::path path;
    std::uint64_t bytes;  ///< of the file
  };
  /// Where the header does not fit, the whole file is another one, and this one's is left.
  closed close() {
    // Widest elements first keep each aligned: an odd tensor's size is a multiple of its own element.
    std::stable_sort(odd_.begin(), odd_.end(), [](const odd_tensor& a, const odd_tensor& b) {
      return stored_bytes(a.name, a.dtype, {8}) > stored_bytes(b.name, b.dtype, {8});
    });
    for (const odd_tensor& t : odd_) append(t.name, t.dtype, t.shape, t.data.data(), t.data.size());
    std::string text = header_.dump();
    const std::uint64_t exact = (text.size() + alignment - 1) / alignment * alignment;
    const bool padded = exact <= header_room && (header_room - exact) * 1000 <= held_bytes_;
    text.resize(static_cast<size_t>(padded ? header_room : exact), ' ');
    const std::uint64_t bytes = 8 + text.size() + held_bytes_;
    if (padded) {
      finish(file_, text, bytes);
      return {file_.path(), bytes};
    }
    output_file fitting(exact_);
    fitting.copy(file_, 8 + header_room, 8 + text.size(), held_bytes_);
    finish(fitting, text, bytes);
    file_.keep();
    return {exact_, bytes};
  }

 private:
  struct odd_tensor {
    std::string name, dtype;
    std::vector<index_t> shape;
    std::string data;
  };

  static void finish(output_file& file, const std::string& header, std::uint64_t bytes) {
    unsigned char length[8];
    for (int byte = 0; byte < 8; ++byte) length[byte] = static_cast<unsigned char>(header.size() >> 8 * byte);
    file.write_at(0, length, sizeof(length));
    file.write_at(8, header.data(), header.size());
    file.truncate(bytes);
    file.finish();
  }

  void append(const std::string& name, std::string_view dtype, const std::vector<index_t>& shape, const void* data,
              std::uint64_t bytes) {
    file_.write_at(8 + header_room + written_, data, bytes);
    header_[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {written_, written_ + bytes}}};
    written_ += bytes;
    names_.push_back(name);
  }

  fs::path exact_;
  output_file file_;
  nlohmann::json header_ = {{"__metadata__", {{"format", "pt"}}}};
  std::vector<std::string> names_;
  std::vector<odd_tensor> odd_;
  std::uint64_t written_ = 0, held_bytes_ = 0;
};

void discard(std::vector<fs::path>& files) {
  std::error_code ignored;
  for (const fs::path& file : files) fs::remove(file, ignored);
  files.clear();
}

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
  std::map<std::string, std::string, std::less<>> hashes;  ///< of each tensor's bytes, by name
  std::uint64_t data_bytes = 0, file_bytes = 0;
  std::vector<fs::path> spent, spent_before;  ///< files that no state needs once the next, or this one, is saved
  bool finished = false, saved = false;

  void close() {
    const auto [path, bytes] = open->close();
    file_bytes += bytes;
    if (path != open->path()) spent.push_back(open->path());
    closed.push_back({path, open->names()});
    open.reset();
    if (!saved) discard(spent);
  }

  void go_on(const nlohmann::json& state);
  void undo_finish(size_t shards) const;
};

/// finish() may have given shards their final names before the process ended.
void safetensors_writer::impl::undo_finish(size_t shards) const {
  std::error_code failed;
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(directory, failed))
    if (entry.path().extension() == ".safetensors") found.push_back(entry.path());
  for (const fs::path& file : found) {
    const std::string name = file.filename().string();
    for (size_t i = 0; i < shards; ++i) {
      const bool its = name == final_name(0, 1) ? i == 0 : name.rfind("model-" + number(i + 1) + "-of-", 0) == 0;
      if (!its) continue;
      // A shard whose data were copied has left its own file too, and the copy is made again.
      const bool copied = fs::exists(unfinished_name(directory, i), failed) ||
                          (i < closed.size() && closed[i].path == exact_name(directory, i));
      rename_file(file, copied ? exact_name(directory, i) : unfinished_name(directory, i));
    }
  }
}

void safetensors_writer::impl::go_on(const nlohmann::json& state) {
  data_bytes = state.at("data_bytes");
  file_bytes = state.at("file_bytes");
  hashes = state.at("hashes").get<std::map<std::string, std::string, std::less<>>>();
  for (const auto& each : state.at("closed"))
    closed.push_back({directory / each.at("file").get<std::string>(), each.at("names")});
  const bool one_open = !state.at("open").is_null();
  undo_finish(closed.size() + (one_open ? 1 : 0));
  for (const auto& each : closed)
    if (!fs::exists(each.path)) throw error(each.path.string() + " is missing, which the interrupted run had written");
  if (one_open) open = std::make_unique<shard>(directory, closed.size(), state.at("open"));
  saved = true;
}

safetensors_writer::safetensors_writer(fs::path directory, std::uint64_t max_shard_bytes)
    : impl_(std::make_unique<impl>()) {
  impl_->directory = std::move(directory);
  impl_->max_shard_bytes = max_shard_bytes;
}

safetensors_writer::safetensors_writer(fs::path directory, std::uint64_t max_shard_bytes, const nlohmann::json& state)
    : safetensors_writer(std::move(directory), max_shard_bytes) {
  impl_->go_on(state);
}

nlohmann::json safetensors_writer::state() {
  auto closed = nlohmann::json::array();
  for (const auto& each : impl_->closed)
    closed.push_back({{"file", each.path.filename().string()}, {"names", each.names}});
  nlohmann::json state = {{"data_bytes", impl_->data_bytes},
                          {"file_bytes", impl_->file_bytes},
                          {"hashes", impl_->hashes},
                          {"closed", std::move(closed)},
                          {"open", impl_->open ? impl_->open->state() : nlohmann::json()}};
  sync_directory(impl_->directory);
  impl_->saved = true;
  discard(impl_->spent_before);
  impl_->spent_before = std::move(impl_->spent);
  impl_->spent.clear();
  return state;
}

safetensors_writer::~safetensors_writer() {
  if (!impl_ || impl_->finished || impl_->saved) return;
  std::error_code ignored;
  for (const auto& shard : impl_->closed) fs::remove(shard.path, ignored);
}

void safetensors_writer::add(const std::string& name, std::string_view dtype, const std::vector<index_t>& shape,
                             const void* data, std::uint64_t bytes) {
  const std::string where = impl_->directory.string() + ": the tensor \"" + name + "\"";
  if (const std::uint64_t needed = stored_bytes(where, dtype, shape); needed != bytes)
    throw error(where + " was given " + std::to_string(bytes) + " bytes where its shape takes " +
                std::to_string(needed));
  if (!impl_->hashes.try_emplace(name, sha256({static_cast<const char*>(data), static_cast<size_t>(bytes)})).second)
    throw error(where + " was given twice");
  if (impl_->open && impl_->open->bytes() > 0 &&
      bytes > impl_->max_shard_bytes - std::min(impl_->max_shard_bytes, impl_->open->bytes()))
    impl_->close();
  if (!impl_->open) impl_->open = std::make_unique<shard>(impl_->directory, impl_->closed.size());
  impl_->open->add(name, dtype, shape, data, bytes);
  impl_->data_bytes += bytes;
}

std::uint64_t safetensors_writer::finish() {
  if (impl_->open) impl_->close();
  if (impl_->closed.empty()) throw error(impl_->directory.string() + ": a checkpoint without tensors is not written");
  const size_t count = impl_->closed.size();
  nlohmann::json index = {{"metadata", {{"total_size", impl_->data_bytes}}}, {"weight_map", nlohmann::json::object()}};
  for (size_t i = 0; i < count; ++i) {
    auto& shard = impl_->closed[i];
    const std::string name = final_name(i, count);
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

void safetensors_writer::check() const {
  for (const auto& shard : impl_->closed) forget_cached(shard.path);
  const checkpoint written(impl_->directory);
  const auto& tensors = written.tensors();
  const auto wrong = [&](const std::string& name) {
    return error(
        impl_->directory.string() + ": the tensor \"" + name +
        "\" reads back from the disk other than it was written; check the disk and the memory of this machine");
  };
  std::vector<const tensor*> all;
  for (const auto& [name, hash] : impl_->hashes) {
    const auto at = tensors.find(name);
    if (at == tensors.end()) throw wrong(name);
    all.push_back(&at->second);
  }
  std::vector<char> same(all.size());
  host::parallel_for(static_cast<index_t>(all.size()), [&](index_t i) {
    const tensor& t = *all[static_cast<size_t>(i)];
    const std::string_view bytes(reinterpret_cast<const char*>(t.data), static_cast<size_t>(t.bytes));
    same[static_cast<size_t>(i)] = sha256(bytes) == impl_->hashes.at(t.name);
    written.release(t);
  });
  for (size_t i = 0; i < all.size(); ++i)
    if (!same[i]) throw wrong(all[i]->name);
}

void discard_unfinished(const fs::path& directory) {
  std::error_code failed;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(directory, failed))
    if (entry.path().extension() == ".unfinished" || entry.path().extension() == ".exact")
      files.push_back(entry.path());
  discard(files);
}

}  // namespace nibble::mistral
