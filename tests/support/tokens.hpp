// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the tests of tokenizers, chat templates and calibration share: golden files, hashes, altered model directories.
#pragma once

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "mistral/json.hpp"
#include "mistral/places.hpp"
#include "support/files.hpp"
#include "support/places.hpp"

namespace nibble::test {

using json = nlohmann::json;

inline fs::path embedded_model() {
  return fs::path(mistral::source_directory) / "examples/awq_mistral/model";
}
inline fs::path golden_tokenizer(const char* name) {
  return fs::path(nibble::test::golden_directory) / "tokenizer" / name;
}
inline json golden_tokens(const char* name) {
  return mistral::read_json<json>(golden_tokenizer(name));
}

/// The directory of texts that are not part of the repository, empty where there is none.
inline fs::path shared_data() {
  const fs::path data = fs::path(mistral::source_directory) / "../shared/data";
  return fs::exists(data) ? data : fs::path();
}

/// FNV-1a, 64 bits, in hexadecimal digits.
inline std::string fnv(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3u;
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

/// fnv of ids as little-endian int32.
inline std::string fnv_ids(const std::vector<int32_t>& ids) {
  std::string bytes;
  for (const int32_t id : ids)
    for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(static_cast<uint32_t>(id) >> shift & 0xff);
  return fnv(bytes);
}

/// A model directory that holds these files and nothing else.
class model_files {
 public:
  model_files& add(const char* name, std::string_view bytes) {
    write_bytes(directory_ / name, bytes);
    return *this;
  }
  model_files& add_json(const char* name, const json& file) { return add(name, file.dump()); }
  const fs::path& path() const { return directory_.path(); }

 private:
  temporary_directory directory_;
};

}  // namespace nibble::test
