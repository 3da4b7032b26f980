// SPDX-License-Identifier: Apache-2.0
#include "mistral/recipe.hpp"

#include <catch2/catch.hpp>

#include <algorithm>
#include <optional>
#include <tuple>

#include "support/files.hpp"
#include "support/golden.hpp"

namespace recipe_tests {

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

/// What a case of matching.json asks for: its groups have 2 bits, 3, …, so that bits tell which group a module fell to.
quantization quantization_of(const nlohmann::ordered_json& one) {
  std::vector<packing_group> groups;
  for (const auto& targets : one.at("targets"))
    groups.push_back({{ct, static_cast<int>(groups.size()) + 2, true, 32}, targets.get<std::vector<std::string>>()});
  return quantization(groups, one.at("ignore").get<std::vector<std::string>>(), "recipe.yaml");
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

TEST_CASE("a recipe of GPTQ, with or without AWQ before it, reads as what was written") {
  for (const bool awq : {false, true})
    for (const char* order : {"none", "static"}) {
      const test::temporary_directory out;
      recipe made = {awq, "both", 20, {{{ct, 3, true, 64}, {"Linear"}}}, {"lm_head"}, {}};
      made.gptq = true, made.dampening = 0.05, made.actorder = order;
      write_recipe(out.path(), made);
      const std::string text = test::read_bytes(out / "recipe.yaml");
      CHECK_THAT(text, Contains("GPTQModifier:\n      dampening_frac: 0.05\n") && !Contains("QuantizationModifier"));
      const recipe again = read(text);
      CHECK(again.awq == awq);
      CHECK(again.gptq);
      CHECK(again.dampening == 0.05);
      CHECK(again.actorder == order);
      CHECK(again.groups[0].how == made.groups[0].how);
      CHECK(again.without_effect.empty());
    }
}

TEST_CASE(
    "GPTQ's order of activations is static unless a recipe says otherwise, in the modifier or among the weights") {
  const auto order = [](const std::string& keys) {
    return read("default_stage: {default_modifiers: {GPTQModifier: {ignore: [lm_head], " + keys + "}}}\n").actorder;
  };
  CHECK(order("scheme: W4A16") == "static");
  CHECK(order("scheme: W4A16, actorder: null") == "none");
  CHECK(order("scheme: W4A16, actorder: weight, block_size: 128") == "static");
  CHECK(order("actorder: null, config_groups: {a: {targets: [Linear], weights: {num_bits: 4, group_size: 32, "
              "actorder: static}}}") == "static");
}

TEST_CASE("presets of 8 bits say how weights and inputs are rounded, and read the same key by key") {
  const std::vector<std::pair<std::string, packing>> presets = {
      {"W8A8", {ct, 8, true, -1, code_type::integer, 1, input_rounding::token}},
      {"int8", {ct, 8, true, -1, code_type::integer, 1, input_rounding::token}},
      {"FP8", {ct, 8, true, -1, code_type::e4m3, -1, input_rounding::tensor}},
      {"FP8_DYNAMIC", {ct, 8, true, -1, code_type::e4m3, 1, input_rounding::token}},
      {"FP8_BLOCK", {ct, 8, true, 128, code_type::e4m3, 128, input_rounding::token_block}}};
  for (const auto& [name, how] : presets) {
    CAPTURE(name);
    const recipe found = read("default_stage: {default_modifiers: {QuantizationModifier: {scheme: " + name + "}}}\n");
    REQUIRE(found.groups.size() == 1);
    CHECK(found.groups[0].how == how);
    CHECK(found.has_input_scales() == (how.inputs == input_rounding::tensor));
    CHECK_FALSE(found.smooth);
  }
  // Without presets: static scales of inputs, and fp8 weights whose inputs stay as they are.
  std::vector<packing> more = {{ct, 8, true, -1, code_type::integer, 1, input_rounding::tensor},
                               {ct, 8, true, -1, code_type::e4m3, 1, input_rounding::tensor},
                               {ct, 8, true, -1, code_type::e4m3, -1, input_rounding::none}};
  for (const auto& each : presets) more.push_back(each.second);
  for (const packing& how : more) {
    const test::temporary_directory out;
    recipe made;
    made.awq = false, made.groups = {{how, {"Linear"}}}, made.ignore = {"lm_head"};
    write_recipe(out.path(), made);
    CAPTURE(test::read_bytes(out / "recipe.yaml"));
    const recipe again = read_recipe(out / "recipe.yaml");
    CHECK(again.groups[0].how == how);
    CHECK(again.without_effect.empty());
  }
}

TEST_CASE("a recipe of SmoothQuant reads as what was written: its strength, and what it folds scales into") {
  for (const std::optional<double> strength : {std::optional<double>(), std::optional<double>(0.8)})
    for (const auto& [up, v] : {std::pair(false, false), std::pair(true, false), std::pair(true, true)})
      for (const bool gptq : {false, true}) {
        const test::temporary_directory out;
        recipe made;
        made.awq = false, made.gptq = gptq, made.ignore = {"lm_head"};
        made.smooth = true, made.strength = strength, made.smooth_up = up, made.smooth_v = v;
        made.groups = {{{ct, 8, true, -1, code_type::integer, 1, input_rounding::token}, {"Linear"}}};
        write_recipe(out.path(), made);
        CAPTURE(test::read_bytes(out / "recipe.yaml"));
        const recipe again = read_recipe(out / "recipe.yaml");
        CHECK(again.smooth);
        CHECK_FALSE(again.awq);
        CHECK(again.gptq == gptq);
        CHECK(again.strength == strength);
        CHECK(again.smooth_up == up);
        CHECK(again.smooth_v == v);
        CHECK(again.groups[0].how == made.groups[0].how);
        CHECK(again.without_effect.empty());
      }
  const recipe theirs = read(
      "quant_stage: {quant_modifiers: {SmoothQuantModifier: {smoothing_strength: 0.5, num_calibration_steps: 12, "
      "mappings: "
      "[[['re:.*q_proj', 're:.*k_proj', 're:.*v_proj'], 're:.*input_layernorm'], [['re:.*gate_proj', 're:.*up_proj'], "
      "'re:.*post_attention_layernorm']]}, GPTQModifier: {scheme: W8A8, targets: Linear, ignore: [lm_head]}}}\n");
  CHECK(theirs.smooth);
  CHECK(theirs.strength == 0.5);
  CHECK_FALSE(theirs.smooth_up);
  CHECK(theirs.without_effect == std::vector<std::string>{"SmoothQuantModifier.num_calibration_steps"});
}

TEST_CASE("recipes that llm-compressor wrote, and older ones, mean what it takes them to mean") {
  const auto golden_file = golden("recipe/recipes.json");
  REQUIRE(golden_file.at("recipes").size() == 6);
  for (const auto& [name, wanted] : golden_file.at("recipes").items()) {
    CAPTURE(name);
    const recipe found = read_recipe(std::string(test::golden_directory) + "/recipe/" + name);
    CHECK(found.awq == wanted.at("awq"));
    CHECK(found.duo_scaling == wanted.at("duo_scaling"));
    CHECK(found.grid == wanted.at("n_grid"));
    CHECK(found.ignore == wanted.at("ignore").get<std::vector<std::string>>());
    REQUIRE(found.groups.size() == wanted.at("groups").size());
    for (size_t i = 0; i < found.groups.size(); ++i) {
      const auto& group = wanted.at("groups")[i];
      CHECK(found.groups[i].targets == group.at("targets").get<std::vector<std::string>>());
      CHECK(found.groups[i].how == packing{ct, group.at("bits"), group.at("symmetric"), group.at("group_size")});
    }
    const test::temporary_directory out;
    write_recipe(out.path(), found);
    const recipe again = read_recipe(out / "recipe.yaml");
    CHECK(again.awq == found.awq);
    if (found.awq) CHECK(std::tie(again.duo_scaling, again.grid) == std::tie(found.duo_scaling, found.grid));
    CHECK(again.ignore == found.ignore);
    REQUIRE(again.groups.size() == found.groups.size());
    for (size_t i = 0; i < again.groups.size(); ++i) {
      CHECK(again.groups[i].how == found.groups[i].how);
      CHECK(again.groups[i].targets == found.groups[i].targets);
    }
  }
}

TEST_CASE("keys that change nothing here are taken, and named") {
  const recipe found = read_recipe(std::string(test::golden_directory) + "/recipe/groups.yaml");
  const std::vector<std::string> named = {"AWQModifier.requires_calibration_data", "group_0.weights.zp_dtype",
                                          "group_0.weights.observer",
                                          "QuantizationModifier.bypass_divisibility_checks"};
  for (const std::string& key : named)
    CHECK(std::find(found.without_effect.begin(), found.without_effect.end(), key) != found.without_effect.end());
  const recipe device = read_recipe(std::string(test::golden_directory) + "/recipe/older_api.yaml");
  CHECK(std::count(device.without_effect.begin(), device.without_effect.end(), "AWQModifier.offload_device") == 1);
}

TEST_CASE("the group of every module is the one that compressed-tensors finds") {
  const auto file = golden("recipe/matching.json");
  const auto modules = file.at("modules").get<std::vector<std::string>>();
  REQUIRE(modules.size() == 86);
  REQUIRE(file.at("cases").size() > 30);
  for (const auto& one : file.at("cases")) {
    CAPTURE(one.at("targets").dump(), one.at("ignore").dump());
    const quantization q = quantization_of(one);
    const auto wanted = one.at("bits").get<std::string>();
    for (size_t i = 0; i < modules.size(); ++i) {
      CAPTURE(modules[i]);
      if (modules[i] == "model.embed_tokens") {
        CHECK(q.targets_embedding() == (wanted[i] != '-'));
        CHECK_FALSE(q.of(modules[i]));
        continue;
      }
      const auto how = q.of(modules[i]);
      CHECK((how ? static_cast<char>('0' + how->bits) : '-') == wanted[i]);
    }
  }
}

TEST_CASE("a checkpoint's quantization_config gives every linear what its recipe gave it") {
  const auto file = golden("recipe/matching.json");
  auto linears = file.at("modules").get<std::vector<std::string>>();
  linears.erase(linears.begin());  // the embedding
  for (const auto& one : file.at("cases")) {
    CAPTURE(one.at("targets").dump(), one.at("ignore").dump());
    const quantization q = quantization_of(one);
    if (std::none_of(linears.begin(), linears.end(), [&](const auto& name) { return q.of(name).has_value(); }))
      continue;
    config model;
    model.json["quantization_config"] = quantization_json(q, linears);
    const auto read_back = quantization::read(model, "config.json");
    size_t patterns = 0;
    for (const packing_group& group : read_back->groups())
      for (const std::string& target : group.targets) patterns += target.rfind("re:", 0) == 0;
    CHECK(patterns == 0);  // which of two patterns wins, vLLM decides otherwise
    for (const std::string& name : linears) {
      CAPTURE(name);
      CHECK(read_back->of(name) == q.of(name));
    }
  }
}

TEST_CASE("an AutoAWQ format takes a recipe of one packing, and its ignored linears by name") {
  const std::vector<std::string> linears = {"model.layers.1.mlp.up_proj", "model.layers.11.mlp.up_proj", "lm_head"};
  const packing how = {packed_format::awq_gemm, 4, false, 64};
  const quantization one({{how, {"re:.*_proj"}}}, {"re:.*layers\\.1\\."}, "recipe.yaml");
  config model;
  model.json["quantization_config"] = quantization_json(one, linears);
  CHECK(model.json["quantization_config"]["modules_to_not_convert"] ==
        nlohmann::ordered_json::array({"model.layers.1.mlp.up_proj"}));
  const auto read_back = quantization::read(model, "config.json");
  for (const std::string& name : linears) CHECK(read_back->of(name) == one.of(name));
  packing other = how;
  other.group = 32;
  const quantization two({{how, {"Linear"}}, {other, {"re:.*11"}}}, {"lm_head"}, "recipe.yaml");
  CHECK_THAT(test::refusal([&] { quantization_json(two, linears); }),
             Contains("--format awq-gemm") && Contains("groups of 64") && Contains("groups of 32"));
}

}  // namespace recipe_tests
