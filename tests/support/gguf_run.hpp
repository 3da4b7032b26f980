// SPDX-License-Identifier: Apache-2.0
/// @file
/// gguf_mistral as a user runs it.
#pragma once

#include <catch2/catch.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/files.hpp"
#include "support/program.hpp"

namespace nibble::test {

/// A run that succeeds. @returns what --json tells.
inline nlohmann::json converted_to_gguf(const std::filesystem::path& model, const std::filesystem::path& output,
                                        const std::vector<std::string>& more) {
  std::vector<std::string> arguments = {"--model",       model.string(), "--output",
                                        output.string(), "--overwrite",  "--json"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const auto result = run_program("gguf_mistral", arguments);
  CAPTURE(result.err);
  REQUIRE(result.status == 0);
  return nlohmann::json::parse(result.out);
}

/// One that is refused with `status` and leaves `root` as it was. @returns what it says.
inline std::string refused_gguf(const std::filesystem::path& root, std::vector<std::string> arguments, int status = 1) {
  arguments.insert(arguments.end(), {"--output", (root / "out.gguf").string()});
  const std::string before = listing(root);
  const auto result = run_program("gguf_mistral", arguments);
  CHECK(result.status == status);
  CHECK(listing(root) == before);
  return result.err;
}

}  // namespace nibble::test
