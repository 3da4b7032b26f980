// SPDX-License-Identifier: Apache-2.0
#include "mistral/recipe.hpp"

#include <catch2/catch.hpp>

#include "support/files.hpp"

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;

namespace {

constexpr packed_format ct = packed_format::compressed_tensors;

/// Reads `text` as a recipe.
recipe read(const std::string& text) {
  const test::temporary_directory root;
  test::write_bytes(root / "recipe.yaml", text);
  return read_recipe(root / "recipe.yaml");
}

}  // namespace

TEST_CASE("a recipe written names the modifiers and their arguments, and reads as what was written") {
  const test::temporary_directory out;
  const recipe made = {true, "both", 20, {{{ct, 4, false, 128}, {"Linear"}}}, {"lm_head", "re:.*\\.k"}, {}};
  write_recipe(out.path(), made);
  CHECK(test::read_bytes(out / "recipe.yaml") ==
        "default_stage:\n  default_modifiers:\n    AWQModifier:\n      duo_scaling: both\n      n_grid: 20\n"
        "    QuantizationModifier:\n      config_groups:\n        group_0:\n          targets: [\"Linear\"]\n"
        "          weights:\n            num_bits: 4\n            type: int\n            symmetric: false\n"
        "            strategy: group\n            group_size: 128\n      ignore: [\"lm_head\",\"re:.*\\\\.k\"]\n");
  const recipe again = read_recipe(out / "recipe.yaml");
  CHECK(again.awq);
  CHECK(again.duo_scaling == "both");
  CHECK(again.grid == 20);
  CHECK(again.ignore == made.ignore);
  REQUIRE(again.groups.size() == 1);
  CHECK(again.groups[0].how == made.groups[0].how);
  CHECK(again.groups[0].targets == made.groups[0].targets);
  CHECK(again.without_effect.empty());
  write_recipe(out.path(), {false, "", 0, {{{ct, 8, true, -1}, {"Linear"}}}, {}, {}});
  const std::string plain = test::read_bytes(out / "recipe.yaml");
  CHECK_THAT(plain, !Contains("AWQModifier") && Contains("strategy: channel") && Contains("ignore: []"));
  CHECK_FALSE(read(plain).awq);
}
