// SPDX-License-Identifier: Apache-2.0
#include "pass/activations.hpp"

#include <algorithm>
#include <fstream>

#include "mistral/file.hpp"
#include "mistral/sha256.hpp"

namespace nibble::mistral {
namespace {

std::string_view bytes_of(const std::vector<float>& data) {
  return {reinterpret_cast<const char*>(data.data()), data.size() * sizeof(float)};
}

}  // namespace

std::chrono::duration<double> worth_saving_after(double bytes) {
  constexpr double disk_bytes_per_second = 1e9, few = 4e6, longest = 30;
  return std::chrono::duration<double>(std::clamp(100 * (bytes - few) / disk_bytes_per_second, 0.0, longest));
}

nlohmann::json save_activations(const std::vector<float>& x, const std::filesystem::path& directory, index_t layer) {
  const std::string name = "activations-" + std::to_string(layer) + ".f32";
  write_file(directory / name, bytes_of(x));
  return {{"file", name}, {"layer", layer}, {"sha256", sha256(bytes_of(x))}};
}

bool load_activations(std::vector<float>& x, const std::filesystem::path& directory, const nlohmann::json& saved) {
  std::ifstream in(directory / saved.at("file").get<std::string>(), std::ios::binary);
  in.read(reinterpret_cast<char*>(x.data()), static_cast<std::streamsize>(x.size() * sizeof(float)));
  return in && sha256(bytes_of(x)) == saved.at("sha256").get<std::string>();
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
