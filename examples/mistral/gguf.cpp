// SPDX-License-Identifier: Apache-2.0
/// @file
/// A count in the file is believed only as far as the bytes behind it can hold as many of the smallest, so a small file never
/// asks for much memory.
#include "gguf.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <type_traits>
#include <unordered_map>

#include "error.hpp"
#include "json.hpp"
#include "mapped_file.hpp"
#include "nibble/block_layout.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

constexpr std::uint64_t most_bytes = std::numeric_limits<std::int64_t>::max();

/// A name as it may stand in a message.
std::string in_quotes(std::string_view name) {
  return excerpt(nlohmann::json(utf8_repaired(name.substr(0, 100))));
}

/// The bytes from the start to the data, taken one after another.
class cursor {
 public:
  explicit cursor(const mapped_file& file) : file_(file) {}

  std::uint64_t at() const { return at_; }
  std::uint64_t left() const { return file_.size() - at_; }

  /// @param what  what is being read, for messages
  const std::byte* take(std::uint64_t bytes, const std::string& what) {
    if (bytes > left())
      throw error(file_.path().string() + ": " + what + " takes " + std::to_string(bytes) + " bytes, but only " +
                  std::to_string(left()) + " are left; the file is cut short or damaged");
    const std::byte* from = file_.data() + at_;
    at_ += bytes;
    return from;
  }
  template <class T>
  T number(const std::string& what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what), sizeof(T));
    return value;
  }
  std::string text(const std::string& what) {
    const auto length = number<std::uint64_t>(what);
    const auto* from = reinterpret_cast<const char*>(take(length, what));
    return std::string(from, static_cast<size_t>(length));
  }
  /// A count of things that take at least `smallest` bytes each.
  std::uint64_t count(std::uint64_t smallest, const std::string& what) {
    const auto value = number<std::uint64_t>(what);
    if (value > left() / smallest)
      throw error(file_.path().string() + ": " + what + " is " + std::to_string(value) + ", more than the " +
                  std::to_string(left()) + " bytes that are left can hold; the file is cut short or damaged");
    return value;
  }

 private:
  const mapped_file& file_;
  std::uint64_t at_ = 0;
};

class header_reader {
 public:
  explicit header_reader(const mapped_file& file) : file_(file), where_(file.path().string()), in_(file) {}

  gguf_metadata metadata;
  std::vector<gguf_tensor> tensors;

  void read() {
    check_magic();
    const auto tensor_count = in_.number<std::uint64_t>("the number of tensors");
    const auto key_count = in_.count(8 + 1 + 4 + 1, "the number of keys");
    for (std::uint64_t i = 0; i < key_count; ++i) read_key(i);
    if (tensor_count > in_.left() / (8 + 1 + 4 + 8 + 4 + 8))
      throw error(where_ + ": the number of tensors is " + std::to_string(tensor_count) + ", more than the " +
                  std::to_string(in_.left()) + " bytes behind the keys can hold; the file is cut short or damaged");
    for (std::uint64_t i = 0; i < tensor_count; ++i) read_tensor(i);
    place();
  }

 private:
  void check_magic() {
    if (std::memcmp(in_.take(4, "the first word"), "GGUF", 4) != 0)
      throw error(where_ + " is no GGUF file: it does not begin with \"GGUF\"");
    const auto version = in_.number<std::uint32_t>("the version");
    if (version == 0x03000000u || version == 0x02000000u)
      throw error(where_ + " is a GGUF file for big-endian machines; convert it for little-endian ones");
    if (version != 3 && version != 2)
      throw error(where_ + " is GGUF version " + std::to_string(version) + "; versions 2 and 3 are read");
  }

  void read_key(std::uint64_t i) {
    std::string key = in_.text("the name of key " + std::to_string(i));
    if (key.empty() || key.size() > 65535 || utf8_error(key) != std::string::npos)
      throw error(where_ + ": the name of key " + std::to_string(i) + " must be 1 to 65535 bytes of UTF-8");
    if (!keys_.insert(key).second) throw error(where_ + ": the key " + in_quotes(key) + " appears twice");
    const std::string what = "the key " + in_quotes(key);
    gguf_value value = read_value(in_.number<std::uint32_t>(what), what);
    if (key == "general.alignment") alignment_ = checked_alignment(value);
    metadata.emplace_back(std::move(key), std::move(value));
  }

  std::uint64_t checked_alignment(const gguf_value& value) const {
    const auto* given = std::get_if<std::uint32_t>(&value);
    if (!given || *given == 0 || (*given & (*given - 1)) != 0)
      throw error(where_ + ": \"general.alignment\" must be a power of two, as u32");
    return *given;
  }

  [[noreturn]] void unknown_type(std::uint32_t type, const std::string& what) const {
    throw error(where_ + ": " + what + " has the unknown type " + std::to_string(type));
  }

  template <size_t Type = 0>
  gguf_value read_value(std::uint32_t type, const std::string& what) {
    if constexpr (Type == std::variant_size_v<gguf_value>) {
      unknown_type(type, what);
    } else {
      if (type != Type) return read_value<Type + 1>(type, what);
      using T = std::variant_alternative_t<Type, gguf_value>;
      if constexpr (std::is_same_v<T, gguf_array>)
        return gguf_value(std::in_place_index<Type>, read_array(in_.number<std::uint32_t>(what), what));
      else
        return gguf_value(std::in_place_index<Type>, read_one<T>(what));
    }
  }

  template <class T>
  T read_one(const std::string& what) {
    if constexpr (std::is_same_v<T, std::string>) {
      return in_.text(what);
    } else if constexpr (std::is_same_v<T, bool>) {
      const auto byte = in_.number<std::uint8_t>(what);
      if (byte > 1) throw error(where_ + ": " + what + " must be 0 or 1, a bool, but is " + std::to_string(byte));
      return byte == 1;
    } else {
      return in_.number<T>(what);
    }
  }

  template <size_t Type = 0>
  gguf_array read_array(std::uint32_t type, const std::string& what) {
    if constexpr (Type == std::variant_size_v<gguf_array>) {
      unknown_type(type, what);
    } else {
      if (type != Type) return read_array<Type + 1>(type, what);
      using values = std::variant_alternative_t<Type, gguf_array>;
      if constexpr (std::is_same_v<values, std::monostate>) {
        throw error(where_ + ": " + what + " is an array of arrays, which no reader takes");
      } else {
        using T = typename values::value_type;
        constexpr std::uint64_t smallest = std::is_same_v<T, std::string> ? 8 : sizeof(T);
        const auto count = static_cast<size_t>(in_.count(smallest, "the number of values of " + what));
        values all;
        all.reserve(count);
        for (size_t i = 0; i < count; ++i) all.push_back(read_one<T>(what));
        return gguf_array(std::in_place_index<Type>, std::move(all));
      }
    }
  }

  void read_tensor(std::uint64_t i) {
    gguf_tensor t;
    t.name = in_.text("the name of tensor " + std::to_string(i));
    if (t.name.empty() || t.name.size() > 63 || utf8_error(t.name) != std::string::npos)
      throw error(where_ + ": the name of tensor " + std::to_string(i) + " must be 1 to 63 bytes of UTF-8");
    if (!names_.insert(t.name).second) throw error(where_ + ": the tensor " + in_quotes(t.name) + " appears twice");
    const std::string what = "the tensor " + in_quotes(t.name);
    const auto dims = in_.number<std::uint32_t>(what);
    if (dims < 1 || dims > 4)
      throw error(where_ + ": " + what + " has " + std::to_string(dims) + " dimensions; it may have 1 to 4");
    for (std::uint32_t d = 0; d < dims; ++d) t.dims.push_back(in_.number<std::uint64_t>(what));
    const auto type = in_.number<std::uint32_t>(what);
    const gguf_type_info* known = find_gguf_type(type);
    if (!known) {
      std::string list;
      for (const auto& each : gguf_types()) list += std::string(list.empty() ? "" : ", ") + each.name;
      throw error(where_ + ": " + what + " has the type number " + std::to_string(type) + ", which is none of " + list);
    }
    t.type = known->type;
    t.offset = in_.number<std::uint64_t>(what);
    t.size = t.bytes(where_);
    tensors.push_back(std::move(t));
  }

  /// Finds the data: each tensor begins where the padded sum of those before it ends.
  void place() {
    const auto padded = [&](std::uint64_t bytes, std::uint64_t& up) {
      return !__builtin_add_overflow(bytes, alignment_ - 1, &up) && (up &= ~(alignment_ - 1), true);
    };
    std::uint64_t begin = 0, expected = 0;
    if (!padded(in_.at(), begin)) begin = most_bytes;
    for (gguf_tensor& t : tensors) {
      const std::string what = where_ + ": the tensor " + in_quotes(t.name);
      if (t.offset != expected)
        throw error(what + " is at offset " + std::to_string(t.offset) + " of the data, but those before it end at " +
                    std::to_string(expected) + ", padded to " + std::to_string(alignment_));
      if (begin > file_.size() || t.offset > file_.size() - begin || t.size > file_.size() - begin - t.offset)
        throw error(what + " takes " + std::to_string(t.size) + " bytes from offset " + std::to_string(t.offset) +
                    " of the data on, but the file ends before; it is cut short or damaged");
      t.data = file_.data() + begin + t.offset;
      if (!padded(t.offset + t.size, expected)) expected = most_bytes;
    }
  }

  const mapped_file& file_;
  std::string where_;
  cursor in_;
  std::uint64_t alignment_ = gguf_alignment;
  std::set<std::string, std::less<>> keys_, names_;
};

}  // namespace

const std::vector<gguf_type_info>& gguf_types() {
  static const std::vector<gguf_type_info> all = [] {
    std::vector<gguf_type_info> types = {{gguf_type::f32, "F32", 1, 4}, {gguf_type::f16, "F16", 1, 2}};
    for (const block_type type : block_types)
      types.push_back({static_cast<gguf_type>(type), block_name(type), static_cast<std::uint64_t>(block_weights(type)),
                       static_cast<std::uint64_t>(block_bytes(type))});
    types.push_back({gguf_type::bf16, "BF16", 1, 2});
    return types;
  }();
  return all;
}

const gguf_type_info* find_gguf_type(std::uint32_t number) {
  for (const auto& each : gguf_types())
    if (static_cast<std::uint32_t>(each.type) == number) return &each;
  return nullptr;
}

const gguf_type_info* find_gguf_type(std::string_view name) {
  for (const auto& each : gguf_types())
    if (each.name == name) return &each;
  return nullptr;
}

const gguf_type_info& info_of(gguf_type type) {
  return *find_gguf_type(static_cast<std::uint32_t>(type));
}

std::uint64_t gguf_tensor_info::bytes(const std::string& file) const {
  const std::string what = file + ": the tensor " + in_quotes(name);
  const gguf_type_info& stored = info_of(type);
  std::uint64_t elements = 1, total = 0;
  for (const std::uint64_t extent : dims) {
    if (extent == 0) throw error(what + " has an extent of 0");
    if (__builtin_mul_overflow(elements, extent, &elements) || elements > most_bytes)
      throw error(what + " has more elements than 63 bits count");
  }
  if (dims[0] % stored.elements != 0)
    throw error(what + " has rows of " + std::to_string(dims[0]) + ", no multiple of the " +
                std::to_string(stored.elements) + " of a block of " + stored.name);
  if (__builtin_mul_overflow(elements / stored.elements, stored.bytes, &total) || total > most_bytes)
    throw error(what + " has more bytes than 63 bits count");
  return total;
}

struct gguf_file::impl {
  explicit impl(const std::filesystem::path& path) : file(path) {
    header_reader header(file);
    header.read();
    metadata = std::move(header.metadata);
    tensors = std::move(header.tensors);
    for (size_t i = 0; i < metadata.size(); ++i) keys.emplace(metadata[i].first, i);
    for (size_t i = 0; i < tensors.size(); ++i) names.emplace(tensors[i].name, i);
  }

  mapped_file file;
  gguf_metadata metadata;
  std::vector<gguf_tensor> tensors;
  std::unordered_map<std::string_view, size_t> keys, names;
};

gguf_file::gguf_file(const std::filesystem::path& path) : impl_(std::make_unique<impl>(path)) {}
gguf_file::~gguf_file() = default;
gguf_file::gguf_file(gguf_file&&) noexcept = default;

const std::filesystem::path& gguf_file::path() const {
  return impl_->file.path();
}
const gguf_metadata& gguf_file::metadata() const {
  return impl_->metadata;
}
const std::vector<gguf_tensor>& gguf_file::tensors() const {
  return impl_->tensors;
}

const gguf_value* gguf_file::find(std::string_view key) const {
  const auto found = impl_->keys.find(key);
  return found == impl_->keys.end() ? nullptr : &impl_->metadata[found->second].second;
}

const gguf_tensor* gguf_file::find_tensor(std::string_view name) const {
  const auto found = impl_->names.find(name);
  return found == impl_->names.end() ? nullptr : &impl_->tensors[found->second];
}

std::uint64_t gguf_file::whole(std::string_view key) const {
  const gguf_value* value = find(key);
  if (!value) missing(key);
  return std::visit(
      [&](const auto& held) -> std::uint64_t {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>)
          if (std::is_unsigned_v<T> || held >= T(0)) return static_cast<std::uint64_t>(held);
        throw error(path().string() + ": the key " + in_quotes(key) + " must be a whole number");
      },
      *value);
}

void gguf_file::release(const gguf_tensor& t) const {
  impl_->file.release(t.data, t.size);
}

void gguf_file::missing(std::string_view key) const {
  throw error(path().string() + ": the key " + in_quotes(key) + " is missing");
}

void gguf_file::mistyped(std::string_view key) const {
  throw error(path().string() + ": the key " + in_quotes(key) + " has another type than it must");
}

}  // namespace nibble::mistral
