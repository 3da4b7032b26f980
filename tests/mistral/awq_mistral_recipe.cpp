// SPDX-License-Identifier: Apache-2.0
/// @file
/// awq_mistral --recipe: every linear packed as its group says, and the recipe that a run writes says what the run did.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <tuple>

#include "mistral/quantization.hpp"
#include "mistral/safetensors.hpp"
#include "mistral/weights.hpp"
#include "support/model.hpp"
#include "support/program.hpp"

namespace awq_mistral_recipe_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using test::words;

namespace {

constexpr packed_format ct = packed_format::compressed_tensors;

/// AWQModifier alone, as versions before 0.14 had it: groups that differ by layer, layer 1's k and down left as they were.
constexpr const char* two_groups =
    "quant_stage:\n"
    "  quant_modifiers:\n"
    "    AWQModifier:\n"
    "      duo_scaling: both\n"
    "      n_grid: 5\n"
    "      offload_device: !!python/object/apply:torch.device [cpu]\n"
    "      ignore: [lm_head, 're:.*layers\\.1\\.self_attn\\.k_proj', model.layers.1.mlp.down_proj]\n"
    "      config_groups:\n"
    "        wide:\n"
    "          targets: ['re:model\\.layers\\.0\\.mlp\\.down_proj$']\n"
    "          weights: {num_bits: 8, type: int, symmetric: true, strategy: group, group_size: 32}\n"
    "        rest:\n"
    "          targets: [Linear]\n"
    "          weights: {num_bits: 4, type: int, symmetric: false, strategy: group, group_size: 64}\n";

constexpr const char* pair_of_presets =
    "default_stage:\n  default_modifiers:\n    AWQModifier: {duo_scaling: false, n_grid: 4}\n"
    "    QuantizationModifier: {scheme: {W8A16: ['re:.*down_proj'], W3A16: ['re:.*up_proj']}, ignore: [lm_head]}\n";

constexpr const char* rounding =
    "default_stage:\n  default_modifiers:\n    QuantizationModifier:\n      ignore: [lm_head]\n"
    "      config_groups: {a: {targets: [Linear], weights: {num_bits: 4, strategy: channel}}}\n";

struct workplace {
  test::temporary_directory root;
  test::fs::path model = root / "model";

  workplace() {
    test::model_spec spec;
    spec.hidden = 128;
    test::write_model(spec, model);
  }

  std::string recipe(const std::string& name, const std::string& text) const {
    test::write_bytes(root / name, text);
    return (root / name).string();
  }
  test::outcome run(const std::string& output, const words& more) const {
    words arguments = {"--model",
                       model.string(),
                       "--output",
                       (root / output).string(),
                       "--max-seq-length",
                       "64",
                       "--num-calibration-samples",
                       "3"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return test::run_program("awq_mistral", arguments);
  }
  std::string quantize(const std::string& output, const words& more) const {
    const auto result = run(output, more);
    INFO(result.err);
    REQUIRE(result.status == 0);
    return result.err;
  }
};

/// How many targets and ignored names `text` says to match nothing.
size_t unmatched(const std::string& text) {
  size_t count = 0;
  for (size_t at = text.find("matches no"); at != text.npos; at = text.find("matches no", at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("each linear is packed as its group of the recipe says, and what is ignored keeps its bytes") {
  const workplace w;
  const std::string said = w.quantize("out", {"--recipe", w.recipe("recipe.yaml", two_groups)});
  CHECK_THAT(said, Contains("without effect here: AWQModifier.offload_device"));
  CHECK_THAT(said, Contains("vLLM will not load this model"));
  const config after = read_config(w.root / "out");
  const auto how = quantization::read(after, "config.json");
  const checkpoint before(w.model), packed(w.root / "out");
  REQUIRE(how);
  for (const index_t layer : {0, 1})
    for (const projection p : projections) {
      const std::string name = projection_name(layer, p);
      CAPTURE(name);
      if (layer == 1 && (p == projection::k || p == projection::down)) {
        CHECK_FALSE(how->of(name));
        CHECK_FALSE(packed.contains(name + ".weight_packed"));
        const tensor &was = before.at(name + ".weight"), &is = packed.at(name + ".weight", was.shape);
        CHECK(is.dtype == was.dtype);
        CHECK(std::memcmp(is.data, was.data, static_cast<size_t>(was.bytes)) == 0);
        continue;
      }
      const bool wide = p == projection::down;
      CHECK(how->of(name) == (wide ? packing{ct, 8, true, 32} : packing{ct, 4, false, 64}));
      const index_t in = inputs(after, p), out = outputs(after, p);
      CHECK(packed.at(name + ".weight_packed").shape == std::vector<index_t>{out, in * (wide ? 8 : 4) / 32});
      CHECK(packed.at(name + ".weight_scale").shape == std::vector<index_t>{out, in / (wide ? 32 : 64)});
      CHECK(packed.contains(name + ".weight_zero_point") == !wide);
    }
}

TEST_CASE("a run that follows the recipe of another gives the same bytes of weights") {
  const workplace w;
  const std::vector<words> runs = {{"--recipe", w.recipe("groups.yaml", two_groups)},
                                   {"--recipe", w.recipe("presets.yaml", pair_of_presets)},
                                   {"--recipe", w.recipe("rounding.yaml", rounding)},
                                   {"--n-grid", "6", "--group-size", "32", "--scheme", "W4A16"},
                                   {"--duo-scaling", "false", "--group-size", "-1", "--n-grid", "4"},
                                   {"--method", "rtn", "--group-size", "64", "--ignore", "lm_head,re:.*[.]mlp[.]"}};
  std::vector<std::string> seen;
  for (const words& each : runs) {
    CAPTURE(each);
    test::fs::remove_all(w.root / "first");
    test::fs::remove_all(w.root / "second");
    w.quantize("first", each);
    const std::string said = w.quantize("second", {"--recipe", (w.root / "first/recipe.yaml").string()});
    CHECK_THAT(said, !Contains("without effect"));  // what was written is all used
    for (const char* file : {"model.safetensors", "config.json", "recipe.yaml"}) {
      CAPTURE(file);
      CHECK((test::read_bytes(w.root / "first" / file) == test::read_bytes(w.root / "second" / file)));
    }
    const std::string bytes = test::read_bytes(w.root / "first/model.safetensors");
    CHECK(std::find(seen.begin(), seen.end(), bytes) == seen.end());
    seen.push_back(bytes);
  }
}

TEST_CASE("an option that the recipe decides is refused, and names both") {
  const workplace w;
  const std::string recipe = w.recipe("recipe.yaml", two_groups);
  const std::vector<words> options = {{"--scheme", "W4A16_ASYM"}, {"--group-size", "128"}, {"--ignore", "lm_head"},
                                      {"--method", "awq"},        {"--n-grid", "20"},      {"--duo-scaling", "both"}};
  for (const words& each : options) {
    const auto result = w.run("out", words{"--recipe", recipe, each[0], each[1]});
    CHECK(result.status == 2);
    CHECK_THAT(result.err, Contains(each[0] + " contradicts --recipe " + recipe));
    CHECK_FALSE(test::fs::exists(w.root / "out"));
  }
  const auto gemm = w.run("out", {"--recipe", recipe, "--format", "awq-gemm"});
  CHECK(gemm.status == 2);
  CHECK_THAT(gemm.err, Contains("--format awq-gemm"));
}

TEST_CASE(
    "a recipe's target and ignore that match no linear are told: a misspelt pattern quantizes what it was to keep") {
  const workplace w;
  const std::string said = w.quantize(
      "out",
      {"--recipe",
       w.recipe("recipe.yaml",
                "default_stage:\n  default_modifiers:\n    QuantizationModifier:\n"
                "      ignore: [lm_head, model.embed_tokens, 're:layers\\.1\\.', 'model.layers.0.self_attn.o_proj']\n"
                "      config_groups:\n"
                "        a: {targets: [Linear], weights: {num_bits: 4, group_size: 64}}\n"
                "        b: {targets: [down_proj], weights: {num_bits: 8, group_size: 64}}\n")});
  CHECK_THAT(said, Contains("\"re:layers\\.1\\.\" matches no linear of the model (patterns match from") &&
                       Contains("\"down_proj\" matches no linear"));
  CHECK(unmatched(said) == 2);
  CHECK(unmatched(w.quantize("uniform", {"--method", "rtn", "--group-size", "64"})) == 0);
}

TEST_CASE("a recipe that leaves nothing to quantize, or asks for the head, is refused before the work") {
  const workplace w;
  const auto with = [&](const std::string& ignore, const std::string& targets) {
    return w.run("out",
                 {"--recipe",
                  w.recipe("recipe.yaml", "default_stage: {default_modifiers: {AWQModifier: {scheme: W4A16, ignore: " +
                                              ignore + ", targets: " + targets + "}}}\n")});
  };
  const std::vector<std::tuple<const char*, const char*, const char*>> all = {
      {"[]", "[Linear]", "lm_head"},
      {"[lm_head]", "['re:.*']", "model.embed_tokens"},
      {"['re:.*']", "[Linear]", "leaves no linear"},
      {"[lm_head]", "['re:proj']", "leaves no linear"}};
  for (const auto& [ignore, targets, named] : all) {
    CAPTURE(ignore, targets);
    const auto result = with(ignore, targets);
    CHECK((result.status == 1 || result.status == 2));
    CHECK_THAT(result.err, Contains(named) && Contains("recipe.yaml"));
    CHECK_FALSE(test::fs::exists(w.root / "out"));
  }
}

TEST_CASE("the recipes that come with awq_mistral fit the model that comes with it") {
  const std::string folder = std::string(source_directory) + "/examples/awq_mistral/recipes/";
  const test::temporary_directory root;
  for (const char* name : {"mixed.yaml", "four_bits.yaml"}) {
    CAPTURE(name);
    const auto result =
        test::run_program("awq_mistral", {"--dry-run", "--output", (root / "out").string(), "--recipe", folder + name});
    INFO(result.err);
    CHECK(result.status == 0);
    CHECK(unmatched(result.err) == 0);
    CHECK_THAT(result.out, Contains("4 bits, asymmetric, groups of 128"));
  }
}

}  // namespace awq_mistral_recipe_tests
