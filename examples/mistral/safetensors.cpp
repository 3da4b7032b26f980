// SPDX-License-Identifier: Apache-2.0
/// @file
/// Reading: every file is mapped, its header taken apart by a parser that builds nothing but the tensors, and the
/// tensors laid end to end: the format allows no overlap and no hole, so their offsets must chain from 0 to the end.
#include "safetensors.hpp"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>

#include "error.hpp"
#include "gguf_blocks.hpp"
#include "gguf_model.hpp"
#include "json.hpp"
#include "mapped_file.hpp"

namespace nibble::mistral {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t largest_header = 100'000'000;  // what the safetensors package accepts
constexpr std::uint64_t unset = std::numeric_limits<std::uint64_t>::max();

/// A tensor's entry in the header; offsets count from the end of the header.
struct entry {
  std::string name, dtype;
  std::vector<index_t> shape;
  std::uint64_t begin = unset, end = unset;
  bool has_shape = false;
};

/// {"__metadata__": {"key": "value", …}, "name": {"dtype": "F32", "shape": […], "data_offsets": [begin, end]}, …}
/// and nothing else, read event by event: nesting and size of anything else never matter, for it is refused on sight.
class header_parser : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit header_parser(const fs::path& file) : where_(file.string()) {}

  std::vector<entry> entries;

  bool start_object(std::size_t) override {
    if (depth_ == 0) return ++depth_, true;
    if (depth_ != 1) refuse();
    if (metadata_) return ++depth_, true;
    entries.emplace_back().name = name_;
    fields_.clear();
    return ++depth_, true;
  }
  bool key(string_t& key) override {
    if (depth_ == 1) {
      if (!names_.insert(key).second) throw error(where_ + ": the tensor \"" + key + "\" appears twice in the header");
      name_ = key;
      metadata_ = key == "__metadata__";
    } else if (!metadata_) {
      if ((key != "dtype" && key != "shape" && key != "data_offsets") || !fields_.insert(key).second) refuse();
      field_ = key;
    }
    return true;
  }
  bool end_object() override {
    if (--depth_ == 1 && !metadata_) check_complete();
    return true;
  }
  bool start_array(std::size_t) override {
    if (depth_ != 2 || metadata_ || in_array_ || field_ == "dtype") refuse();
    in_array_ = true;
    if (field_ == "shape") entries.back().has_shape = true;
    return true;
  }
  bool end_array() override {
    in_array_ = false;
    return true;
  }
  bool string(string_t& text) override {
    if (depth_ == 2 && metadata_) return true;
    if (depth_ != 2 || field_ != "dtype") refuse();
    entries.back().dtype = text;
    return true;
  }
  bool number_unsigned(number_unsigned_t number) override {
    if (!in_array_) refuse();
    entry& tensor = entries.back();
    if (field_ == "shape") {
      if (number > static_cast<std::uint64_t>(std::numeric_limits<index_t>::max())) refuse();
      tensor.shape.push_back(static_cast<index_t>(number));
    } else if (tensor.begin == unset) {
      tensor.begin = number;
    } else {
      if (tensor.end != unset) refuse();
      tensor.end = number;
    }
    return true;
  }
  bool null() override { refuse(); }
  bool boolean(bool) override { refuse(); }
  bool number_integer(number_integer_t) override { refuse(); }  // negative
  bool number_float(number_float_t, const string_t&) override { refuse(); }
  bool binary(binary_t&) override { refuse(); }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception&) override {
    throw error(where_ + ": the header is not valid JSON in UTF-8 at byte " + std::to_string(at) +
                "; the file is damaged or cut short");
  }

 private:
  [[noreturn]] void refuse() const {
    if (name_.empty()) throw error(where_ + ": the header must be a JSON object of tensors");
    throw error(where_ + ": the header's entry \"" + name_.substr(0, 200) +
                "\" must be an object of dtype, shape and data_offsets [begin, end], each once and whole numbers");
  }
  void check_complete() const {
    const entry& tensor = entries.back();
    if (tensor.dtype.empty() || !tensor.has_shape || tensor.end == unset) refuse();
  }

  std::string where_, name_, field_;
  std::set<std::string, std::less<>> names_, fields_;
  int depth_ = 0;
  bool metadata_ = false, in_array_ = false;
};

/// Bits of an element of a safetensors dtype; 0 for a name that the format does not have.
int bits_of(std::string_view dtype) {
  static const std::map<std::string_view, int> known = {
      {"BOOL", 8}, {"U8", 8},      {"I8", 8},      {"U16", 16},    {"I16", 16},    {"F16", 16},   {"BF16", 16},
      {"U32", 32}, {"I32", 32},    {"F32", 32},    {"U64", 64},    {"I64", 64},    {"F64", 64},   {"C64", 64},
      {"F4", 4},   {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}};
  const auto found = known.find(dtype);
  return found == known.end() ? 0 : found->second;
}

std::string shown(const std::vector<index_t>& shape) {
  std::string text = "[";
  for (const index_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

using tensor_map = std::map<std::string, tensor, std::less<>>;

/// Checks that an entry's data lie within the `bytes` behind the header and are as many as its shape takes.
void check_extent(const fs::path& file, const entry& e, std::uint64_t bytes) {
  const std::string where = file.string() + ": the tensor \"" + e.name + "\"";
  const std::string span = "[" + std::to_string(e.begin) + ", " + std::to_string(e.end) + ")";
  if (e.end < e.begin) throw error(where + " ends before it begins, at data offsets " + span);
  if (e.end > bytes)
    throw error(where + " has data offsets " + span + ", but only " + std::to_string(bytes) +
                " bytes of data follow the header; the file is cut short or damaged");
  const std::uint64_t needed = stored_bytes(where, e.dtype, e.shape);
  if (e.end - e.begin != needed)
    throw error(where + " has " + std::to_string(e.end - e.begin) + " bytes, but shape " + shown(e.shape) + " of " +
                e.dtype + " takes " + std::to_string(needed));
}

/// Checks that the entries' data lie end to end over all of the `bytes` behind the header.
void check_layout(const fs::path& file, std::vector<entry>& entries, std::uint64_t bytes) {
  for (const entry& e : entries) check_extent(file, e, bytes);
  std::sort(entries.begin(), entries.end(), [](const entry& a, const entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  std::uint64_t last = 0;
  for (const entry& e : entries) {
    const std::string where = file.string() + ": the tensor \"" + e.name + "\"";
    const std::string span = "[" + std::to_string(e.begin) + ", " + std::to_string(e.end) + ")";
    if (e.begin < last) throw error(where + " overlaps another tensor, at data offsets " + span);
    if (e.begin > last)
      throw error(where + " leaves a hole of " + std::to_string(e.begin - last) + " bytes before it, at data offsets " +
                  span + ", which the format forbids");
    last = e.end;
  }
  if (last != bytes)
    throw error(file.string() + ": " + std::to_string(bytes - last) + " bytes at the end belong to no tensor");
}

/// All tensors of one file.
tensor_map read_header(const mapped_file& file) {
  const std::string where = file.path().string();
  if (file.size() < 8) throw error(where + " has " + std::to_string(file.size()) + " bytes, too few for safetensors");
  std::uint64_t header = 0;
  for (int byte = 7; byte >= 0; --byte) header = header << 8 | std::to_integer<std::uint64_t>(file.data()[byte]);
  if (header > largest_header)
    throw error(where + ": the header claims " + std::to_string(header) + " bytes; this is no safetensors file");
  if (header > file.size() - 8)
    throw error(where + ": the header claims " + std::to_string(header) + " bytes, but the file has only " +
                std::to_string(file.size()) + "; it is cut short or damaged");
  header_parser parser(file.path());
  const auto* text = reinterpret_cast<const char*>(file.data() + 8);
  nlohmann::json::sax_parse(text, text + header, &parser);
  check_layout(file.path(), parser.entries, file.size() - 8 - header);
  tensor_map tensors;
  for (entry& e : parser.entries) {
    tensor& t = tensors[e.name];
    t.dtype = std::move(e.dtype);
    t.shape = std::move(e.shape);
    t.data = file.data() + 8 + header + e.begin;
    t.bytes = static_cast<index_t>(e.end - e.begin);
    t.file = file.path();
    t.name = e.name;
  }
  file.release(file.data(), 8 + header);
  return tensors;
}

}  // namespace

std::uint64_t stored_bytes(const std::string& where, std::string_view dtype, const std::vector<index_t>& shape) {
  const int bits = bits_of(dtype);
  if (bits == 0) throw error(where + " has the unknown dtype \"" + std::string(dtype.substr(0, 40)) + "\"");
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  std::uint64_t total = static_cast<std::uint64_t>(bits);
  for (const index_t extent : shape)
    if (__builtin_mul_overflow(total, static_cast<std::uint64_t>(extent), &total))
      throw error(where + " has the shape " + shown(shape) + ", more bytes than 64 bits count");
  if (total % 8 != 0) throw error(where + " has the shape " + shown(shape) + ", which ends inside a byte");
  return total / 8;
}

index_t tensor::size() const {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  index_t elements = 1;
  for (const index_t extent : shape) elements *= extent;
  return elements;
}

bool is_floating(const tensor& t) {
  return t.dtype == "F32" || t.dtype == "F16" || t.dtype == "BF16";
}

struct checkpoint::impl {
  fs::path directory;
  std::vector<std::unique_ptr<mapped_file>> files;
  std::optional<gguf_file> gguf;
  tensor_map tensors;

  void open_gguf(const fs::path& file) {
    gguf.emplace(file);
    const index_t head = read_gguf_config(*gguf).head_dim;
    for (const gguf_tensor& stored : gguf->tensors()) {
      tensor t;
      t.name = checkpoint_name(stored.name);
      if (t.name.empty()) t.name = stored.name;
      t.dtype = info_of(stored.type).name;
      for (auto extent = stored.dims.rbegin(); extent != stored.dims.rend(); ++extent)
        t.shape.push_back(static_cast<index_t>(*extent));
      t.data = stored.data;
      t.bytes = static_cast<index_t>(stored.size);
      t.file = file;
      if (rows_are_paired(stored.name)) t.paired_heads = head;
      if (t.paired_heads > 0 && (t.shape.size() != 2 || t.shape[0] % head != 0))
        throw error(file.string() + ": the tensor \"" + stored.name + "\" must have rows by heads of " +
                    std::to_string(head) + ", but its shape is " + shown(t.shape));
      if (!tensors.emplace(t.name, t).second)
        throw error(file.string() + ": the tensor \"" + t.name + "\" is there under two names");
    }
  }

  void open_single(const fs::path& file) {
    files.push_back(std::make_unique<mapped_file>(file));
    tensors = read_header(*files.back());
  }

  void open_sharded(const fs::path& index) {
    const auto json = read_json<nlohmann::json>(index);
    const auto map = json.is_object() ? json.find("weight_map") : json.end();
    if (map == json.end() || !map->is_object() || map->empty())
      throw error(index.string() + ": \"weight_map\" must be an object of tensor names and shard names");
    std::map<std::string, std::vector<std::string>> shards;
    for (const auto& [name, shard] : map->items()) {
      const std::string file = shard.is_string() ? shard.get<std::string>() : std::string();
      if (file.empty() || file == "." || file == ".." || file.find_first_of(std::string_view("/\\\0", 3)) != file.npos)
        throw error(index.string() + ": the shard of \"" + name +
                    "\" must be a file's plain name in the same directory");
      shards[file].push_back(name);
    }
    for (const auto& [shard, names] : shards) {
      const fs::path file = directory / shard;
      if (!fs::exists(file)) throw error(file.string() + " is missing, a shard that " + index.string() + " names");
      files.push_back(std::make_unique<mapped_file>(file));
      tensor_map found = read_header(*files.back());
      for (const std::string& name : names) {
        const auto at = found.find(name);
        if (at == found.end())
          throw error(file.string() + " lacks the tensor \"" + name + "\", which " + index.string() + " places there");
        tensors.insert(found.extract(at));
      }
    }
  }
};

checkpoint::checkpoint(const fs::path& model) : impl_(std::make_unique<impl>()) {
  std::error_code failed;
  if (is_gguf(model)) {
    impl_->directory = model;
    impl_->open_gguf(model);
    return;
  }
  if (!fs::is_directory(model, failed)) throw error(model.string() + " is not a directory; a model is a directory");
  impl_->directory = model;
  const fs::path single = model / "model.safetensors", index = model / "model.safetensors.index.json";
  if (fs::exists(single, failed)) {
    impl_->open_single(single);
  } else if (fs::exists(index, failed)) {
    impl_->open_sharded(index);
  } else {
    throw error(model.string() + " has neither model.safetensors nor model.safetensors.index.json");
  }
}

checkpoint::~checkpoint() = default;
checkpoint::checkpoint(checkpoint&&) noexcept = default;

bool checkpoint::contains(std::string_view name) const {
  return impl_->tensors.find(name) != impl_->tensors.end();
}

const tensor& checkpoint::at(std::string_view name) const {
  const auto found = impl_->tensors.find(name);
  if (found == impl_->tensors.end())
    throw error(impl_->directory.string() + ": the checkpoint has no tensor \"" + std::string(name) + "\"");
  return found->second;
}

const tensor& checkpoint::at(std::string_view name, const std::vector<index_t>& shape) const {
  const tensor& t = at(name);
  if (t.shape != shape)
    throw error(t.file.string() + ": the tensor \"" + std::string(name) + "\" has shape " + shown(t.shape) +
                ", but config.json asks for " + shown(shape));
  return t;
}

const std::map<std::string, tensor, std::less<>>& checkpoint::tensors() const {
  return impl_->tensors;
}
const fs::path& checkpoint::directory() const {
  return impl_->directory;
}

void checkpoint::release(const tensor& t) const {
  for (const auto& file : impl_->files)
    if (t.data >= file->data() && t.data < file->data() + file->size())
      file->release(t.data, static_cast<std::uint64_t>(t.bytes));
  if (!impl_->gguf) return;
  gguf_tensor there;
  there.data = t.data, there.size = static_cast<std::uint64_t>(t.bytes);
  impl_->gguf->release(there);
}

namespace {

/// Elements of a tensor in blocks, of which F32, F16 and BF16 have one each.
void read_blocks(const tensor& t, const gguf_type_info& stored, index_t first, index_t count, float* out) {
  const auto width = static_cast<index_t>(stored.elements), bytes = static_cast<index_t>(stored.bytes);
  std::vector<float> block;
  while (count > 0) {
    const index_t at = first / width, within = first % width;
    if (within == 0 && count >= width) {
      const index_t whole = count / width;
      decode_blocks(stored.type, t.data + at * bytes, whole, out);
      first += whole * width, count -= whole * width, out += whole * width;
      continue;
    }
    const index_t part = min(count, width - within);
    block.resize(static_cast<size_t>(width));
    decode_blocks(stored.type, t.data + at * bytes, 1, block.data());
    std::copy_n(block.data() + within, part, out);
    first += part, count -= part, out += part;
  }
}

/// Elements of a tensor whose rows lie in pairs, row by row.
void read_paired(const tensor& t, index_t first, index_t count, float* out) {
  tensor as_stored = t;
  as_stored.paired_heads = 0;
  const index_t k = t.shape[1];
  while (count > 0) {
    const index_t within = first % k, part = min(count, k - within);
    read_floats(as_stored, paired_row(first / k, t.paired_heads) * k + within, part, out);
    first += part, count -= part, out += part;
  }
}

}  // namespace

void read_floats(const tensor& t, index_t first, index_t count, float* out) {
  if (first < 0 || count < 0 || first > t.size() - count)
    throw error(t.file.string() + ": " + std::to_string(count) + " elements from " + std::to_string(first) +
                " on are not in the tensor \"" + t.name + "\" of " + std::to_string(t.size()));
  if (t.paired_heads > 0) return read_paired(t, first, count, out);
  if (const gguf_type_info* blocks = find_gguf_type(t.dtype)) return read_blocks(t, *blocks, first, count, out);
  throw error(t.file.string() + ": the tensor \"" + t.name + "\" has dtype " + t.dtype +
              " where F32, F16 or BF16 is needed");
}

}  // namespace nibble::mistral
