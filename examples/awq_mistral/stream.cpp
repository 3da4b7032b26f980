// SPDX-License-Identifier: Apache-2.0
#include "stream.hpp"

#include <fstream>

#include "mistral/file.hpp"
#include "mistral/sha256.hpp"

namespace nibble::mistral {
namespace {

std::string_view bytes_of(const std::vector<float>& data) {
  return {reinterpret_cast<const char*>(data.data()), data.size() * sizeof(float)};
}

}  // namespace

stream::stream(const checkpoint& files, const config& model, const calibration_set& set) {
  for (const auto& sequence : set.sequences) tokens.append(sequence.data(), static_cast<index_t>(sequence.size()));
  data.resize(static_cast<size_t>(tokens.tokens() * model.hidden));
  x = {data.data(), tokens.tokens(), model.hidden};
  embed(files, model, tokens, x);
}

nlohmann::json stream::save(const std::filesystem::path& directory, index_t layer) const {
  const std::string name = "activations-" + std::to_string(layer) + ".f32";
  write_file(directory / name, bytes_of(data));
  return {{"file", name}, {"layer", layer}, {"sha256", sha256(bytes_of(data))}};
}

bool stream::load(const std::filesystem::path& directory, const nlohmann::json& saved) {
  std::ifstream in(directory / saved.at("file").get<std::string>(), std::ios::binary);
  in.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(data.size() * sizeof(float)));
  return in && sha256(bytes_of(data)) == saved.at("sha256").get<std::string>();
}

void forget_activations(const std::filesystem::path& directory, const nlohmann::json& kept) {
  const std::string name = kept.is_null() ? "" : kept.at("file").get<std::string>();
  std::error_code failed;
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory, failed))
    if (entry.path().extension() == ".f32" && entry.path().filename() != name) files.push_back(entry.path());
  for (const auto& file : files) std::filesystem::remove(file, failed);
}

}  // namespace nibble::mistral
