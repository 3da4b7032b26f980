// SPDX-License-Identifier: Apache-2.0
/// @file
/// Golden files: JSON under tests/golden, with the script that made it beside it.
#pragma once

#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "support/places.hpp"

/// @param path below tests/golden.
inline nlohmann::json golden(const std::string& path) {
  std::ifstream file(std::string(nibble::test::golden_directory) + "/" + path);
  INFO("golden file " << path);
  REQUIRE(file.good());
  return nlohmann::json::parse(file);
}
