// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a recipe cannot say: one sentence that names the file, the modifier and the key, whatever the file holds.
#include <catch2/catch.hpp>
#include <chrono>

#include "mistral/recipe.hpp"
#include "mistral/yaml.hpp"
#include "support/files.hpp"
#include "support/places.hpp"

namespace recipe_refusals_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;

namespace {

std::string refused(const std::string& bytes) {
  const test::temporary_directory root;
  test::write_bytes(root / "recipe.yaml", bytes);
  const auto start = std::chrono::steady_clock::now();
  const std::string sentence = test::refusal([&] { read_recipe(root / "recipe.yaml"); });
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
  CHECK_THAT(sentence, Contains("recipe.yaml"));
  CHECK(sentence.size() < 600);
  return sentence;
}

/// A recipe with these modifiers, in flow style: "{AWQModifier: …}".
std::string with(const std::string& modifiers) {
  return "default_stage: {default_modifiers: " + modifiers + "}\n";
}
std::string quantizer(const std::string& keys) {
  return with("{QuantizationModifier: {ignore: [lm_head], " + keys + "}}");
}
std::string weights(const std::string& keys) {
  return quantizer("config_groups: {group_0: {targets: [Linear], weights: {" + keys + "}}}");
}

std::string inputs(const std::string& keys, const std::string& dynamic,
                   const std::string& of_weights = "num_bits: 8, strategy: channel") {
  return quantizer("config_groups: {group_0: {targets: [Linear], weights: {" + of_weights + "}, input_activations: {" +
                   keys + ", " + dynamic + "}}}");
}
std::string smoothing(const std::string& keys) {
  return with("{SmoothQuantModifier: {" + keys + "}, QuantizationModifier: {scheme: W8A8, ignore: [lm_head]}}");
}

std::string times(size_t count, const std::string& text) {
  std::string all;
  for (size_t i = 0; i < count; ++i) all += text;
  return all;
}

}  // namespace

TEST_CASE("what a recipe asks for and this project does not do is refused by modifier and key") {
  struct wrong {
    std::string text;
    std::vector<std::string> named;
  };
  const std::vector<wrong> all = {
      {with("{SpinQuantModifier: {scheme: W4A16}}"), {"SpinQuantModifier", "AWQModifier", "GPTQModifier"}},
      {with("{GPTQModifier: {scheme: W4A16}, QuantizationModifier: {scheme: W4A16}}"), {"both quantize"}},
      {with("{GPTQModifier: {scheme: W4A16}, AWQModifier: {}}"), {"GPTQModifier", "before AWQModifier"}},
      {with("{GPTQModifier: {}}"), {"GPTQModifier", "scheme", "config_groups"}},
      {with("{GPTQModifier: {scheme: W4A16, actorder: sideways}}"), {"actorder", "sideways", "static"}},
      {with("{GPTQModifier: {scheme: W4A16, actorder: true}}"), {"actorder", "true", "static"}},
      {with("{GPTQModifier: {scheme: W4A16, dampening_frac: 1.5}}"), {"dampening_frac", "1.5"}},
      {with("{GPTQModifier: {scheme: W4A16, dampening_frac: much}}"), {"dampening_frac", "much"}},
      {with("{GPTQModifier: {scheme: W4A16, damping: 0.1}}"), {"GPTQModifier", "damping", "dampening_frac"}},
      {with("{AWQModifier: {}, SmoothQuantModifier: {}}"), {"AWQModifier and SmoothQuantModifier", "one of them"}},
      {with("{SmoothQuantModifier: {}}"), {"SmoothQuantModifier", "followed by QuantizationModifier or GPTQModifier"}},
      {with("{QuantizationModifier: {scheme: W8A8}, SmoothQuantModifier: {}}"), {"before SmoothQuantModifier"}},
      {smoothing("smoothing_strength: 1.5"), {"SmoothQuantModifier", "smoothing_strength", "1.5"}},
      {smoothing("smoothing_strength: .nan"), {".nan"}},
      {smoothing("smoothing_strength: -0.1"), {"smoothing_strength", "-0.1"}},
      {smoothing("smoothing_strength: strong"), {"smoothing_strength", "strong"}},
      {smoothing("algorithm: log_equalization"), {"algorithm", "log_equalization"}},
      {smoothing("ignore: ['re:.*layers.0.*']"), {"SmoothQuantModifier", "ignore", "alike"}},
      {smoothing("alpha: 0.5"), {"SmoothQuantModifier", "alpha", "smoothing_strength"}},
      {smoothing("mappings: 7"), {"mappings", "input_layernorm"}},
      {smoothing("mappings: [[['re:.*q_proj'], 're:.*input_layernorm']]"), {"mappings", "q, k and v"}},
      {smoothing("mappings: [[['re:.*q_proj', 're:.*k_proj', 're:.*v_proj'], 're:.*input_layernorm']]"),
       {"mappings", "post_attention_layernorm"}},
      {smoothing("mappings: [[['re:.*fc1'], 're:.*final_layer_norm']]"), {"mappings", "differ"}},
      {smoothing("mappings: [[5, 6]]"), {"mappings"}},
      {with("{AWQModifier: {clip: true}, QuantizationModifier: {scheme: W4A16}}"),
       {"AWQModifier", "\"clip\"", "n_grid"}},
      {with("{AWQModifier: {scheme: W4A16}, QuantizationModifier: {scheme: W4A16}}"), {"AWQModifier", "\"scheme\""}},
      {with("{AWQModifier: {}}"), {"AWQModifier", "scheme", "config_groups"}},
      {with("{QuantizationModifier: {scheme: W4A16}, AWQModifier: {}}"), {"before AWQModifier"}},
      {with("{AWQModifier: {n_grid: 3, scheme: W4A16}}"), {"n_grid", "3", "4"}},
      {with("{AWQModifier: {n_grid: 0, scheme: W4A16}}"), {"n_grid", "1000"}},
      {with("{AWQModifier: {n_grid: 2.5, scheme: W4A16}}"), {"n_grid", "2.5"}},
      {with("{AWQModifier: {duo_scaling: neither, scheme: W4A16}}"), {"duo_scaling", "neither", "both"}},
      {with("{AWQModifier: {mappings: [{smooth_layer: 're:.*norm', balance_layers: ['re:.*q_proj']}], scheme: W4A16}}"),
       {"AWQModifier", "mappings", "input_layernorm"}},
      {with("{AWQModifier: {mappings: 7, scheme: W4A16}}"), {"mappings", "7"}},
      {quantizer("schema: W4A16"), {"QuantizationModifier", "schema", "config_groups"}},
      {quantizer("targets: [Linear]"), {"QuantizationModifier", "scheme"}},
      {quantizer("scheme: W4A8"), {"W4A8", "W8A8"}},
      {quantizer("scheme: W4AFP8"), {"W4AFP8", "FP8_BLOCK"}},
      {quantizer("scheme: MXFP8"), {"MXFP8"}},
      {quantizer("scheme: W9A16"), {"W9A16"}},
      {quantizer("scheme: NVFP4"), {"NVFP4"}},
      {quantizer("scheme: [W4A16]"), {"scheme"}},
      {quantizer("scheme: {W4A16: 5}"), {"W4A16", "5"}},
      {quantizer("scheme: W4A16, targets: 5"), {"targets", "5"}},
      {quantizer("scheme: W4A16, config_groups: {a: {targets: [Linear], weights: {num_bits: 4, group_size: 32}}}"),
       {"scheme", "config_groups"}},
      {quantizer("scheme: W4A16, kv_cache_scheme: {num_bits: 8}"), {"kv_cache_scheme"}},
      {quantizer("config_groups: [1]"), {"config_groups"}},
      {quantizer("config_groups: {group_0: 5}"), {"group_0", "5"}},
      {quantizer("config_groups: {group_0: {targets: [Linear]}}"), {"group_0", "weights"}},
      {quantizer("config_groups: {group_0: {weights: {num_bits: 4}}}"), {"group_0", "targets"}},
      {quantizer("config_groups: {group_0: {targets: [Linear], weights: {num_bits: 4, group_size: 32}, "
                 "input_activations: {num_bits: 8}}}"),
       {"group_0", "input_activations", "8 bits"}},
      {inputs("num_bits: 8, strategy: token", "dynamic: true", "num_bits: 8, strategy: channel, symmetric: false"),
       {"input_activations", "symmetric"}},
      {inputs("num_bits: 8, strategy: token, symmetric: false", "dynamic: true"), {"input_activations", "zero points"}},
      {inputs("num_bits: 8, strategy: token", "dynamic: false"), {"input_activations", "by token (dynamic: true)"}},
      {inputs("num_bits: 8, strategy: tensor", "dynamic: true"), {"input_activations", "by tensor (dynamic: false)"}},
      {inputs("num_bits: 8, strategy: group, group_size: 128", "dynamic: true"),
       {"input_activations", "groups of 128"}},
      {inputs("num_bits: 4, strategy: token", "dynamic: true"), {"input_activations", "8 bits"}},
      {inputs("num_bits: 8, type: float, strategy: token", "dynamic: true"), {"input_activations", "same type"}},
      {inputs("num_bits: 8, strategy: token, actorder: static", "dynamic: true"), {"input_activations", "actorder"}},
      {inputs("num_bits: 8, strategy: token, size: 3", "dynamic: true"), {"input_activations", "size"}},
      {inputs("num_bits: 8, strategy: token", "dynamic: true", "num_bits: 8, group_size: 128"),
       {"input_activations", "channel"}},
      {inputs("num_bits: 8, strategy: token", "dynamic: true}, output_activations: {num_bits: 8"),
       {"output_activations"}},
      {inputs("num_bits: 8, strategy: token", "dynamic: true}, format: {pack-quantized: 1"), {"format"}},
      {quantizer(
           "config_groups: {group_0: {targets: [Linear], weights: {num_bits: 4, group_size: 32}, format: dense}}"),
       {"format", "dense", "pack-quantized"}},
      {weights("num_bits: 9, group_size: 32"), {"num_bits", "9", "8"}},
      {weights("num_bits: 1, group_size: 32"), {"num_bits", "1"}},
      {weights("num_bits: four, group_size: 32"), {"num_bits", "four"}},
      {weights("num_bits: true, group_size: 32"), {"num_bits", "true"}},
      {weights("num_bits: 4"), {"tensor", "group_size"}},
      {weights("num_bits: 4, strategy: block, group_size: 32"), {"block"}},
      {weights("num_bits: 4, strategy: group"), {"group_size"}},
      {weights("num_bits: 4, strategy: channel, group_size: 32"), {"channel", "32"}},
      {weights("num_bits: 4, group_size: 1e30"), {"group_size", "1e30"}},
      {weights("num_bits: 4, group_size: 99999999999999999999"), {"group_size"}},
      {weights("num_bits: 4, group_size: -7"), {"group_size", "-7"}},
      {weights("num_bits: 4, group_size: 32, symmetric: maybe"), {"symmetric", "maybe"}},
      {weights("num_bits: 4, group_size: 32, type: float"), {"num_bits", "4", "8 bits"}},
      {weights("num_bits: 8, group_size: 32, type: float"), {"floats", "channel", "block"}},
      {weights("num_bits: 8, type: float, strategy: block"), {"floats", "block of [128, 128]"}},
      {weights("num_bits: 8, type: float, strategy: block, block_structure: [64, 64]"), {"block of [128, 128]"}},
      {weights("num_bits: 8, type: float, strategy: channel, symmetric: false"), {"symmetric"}},
      {weights("num_bits: 8, type: float, strategy: channel, actorder: static"), {"actorder"}},
      {weights("num_bits: 8, type: double, strategy: channel"), {"type", "double"}},
      {weights("num_bits: 4, group_size: 32, actorder: weight"), {"actorder", "weight"}},
      {weights("num_bits: 4, group_size: 32, dynamic: true"), {"dynamic"}},
      {weights("num_bits: 4, group_size: 32, block_structure: [128, 128]"), {"block_structure"}},
      {weights("num_bits: 4, group_size: 32, scale_dtype: torch.float8_e4m3fn"), {"scale_dtype"}},
      {weights("num_bits: 4, group_size: 32, sparsity: 0.5"), {"group_0", "sparsity", "num_bits"}},
      {"test_stage: {pruning: {}}", {"test_stage", "pruning"}},
      {"modifiers: {}\nmodifier: {}", {"\"modifier\""}},
      {with("{AWQModifier: 5}"), {"AWQModifier", "5"}},
      {"one_stage: " + with("{AWQModifier: {}}").substr(15) + "two_stage: " + with("{AWQModifier: {}}").substr(15),
       {"AWQModifier", "twice"}},
      {"default_stage: {}", {"no modifier"}},
  };
  for (const wrong& each : all) {
    CAPTURE(each.text);
    const std::string sentence = refused(each.text);
    for (const std::string& part : each.named) CHECK_THAT(sentence, Contains(part));
  }
}

TEST_CASE("a file that is no recipe at all ends as one sentence, in seconds") {
  struct wrong {
    std::string bytes, named;
  };
  std::string bomb = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n";
  for (int i = 1; i < 30; ++i) {
    const std::string of = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + of + times(8, ", " + of) + "]\n";
  }
  const std::string wide = "a: &a '" + times(1000, "x") + "'\nb: [" + times(90000, "*a,") + "]\n";
  const std::vector<wrong> all = {
      {"", "empty"},
      {"\n\n# nothing\n", "empty"},
      {"just words", "mapping of stages"},
      {"- a\n- b\n", "mapping of stages"},
      {"42", "42"},
      {"~", "null"},
      {times(100000, "[") + times(100000, "]"), "deeper than 64"},
      {times(100000, "{a: ") + times(100000, "}"), "deeper than 64"},
      {times(100000, "["), "line 1"},
      {times(100000, "{a: "), "line 1"},
      {times(100000, "- "), "deeper than 64"},
      {times(100000, "? "), "line 1"},
      {bomb, "aliases"},
      {wide, "aliases"},
      {"a: &a [*a]", "alias"},
      {"a: *nowhere", "line 1"},
      {"default_stage:\n\tdefault_modifiers: {}\n", "line 2"},
      {"a: [1, 2", "line 1"},
      {"a: 'open", "line 1"},
      {"a: b: c", "line 1"},
      {"a: \"\\q\"", "line 1"},
      {"default_stage: 5", "default_stage"},
      {"default_stage: {default_modifiers: [AWQModifier]}", "default_modifiers"},
      {"default_modifiers: AWQModifier", "default_modifiers"},
      {"a: {b: .nan}", ".nan"},
      {weights("num_bits: .inf"), ".inf"},
      {weights("num_bits: nan, group_size: 32"), "nan"},
      {"a: 1\na: 2\n", "twice"},
      {"<<: {a: 1}", "<<"},
      {"[a]: b", "key"},
      {"{a: 1}: b", "key"},
      {"~: b", "key"},
      {"a: !custom b", "!custom"},
      {"a: !!binary aGk=", "!!binary"},
      {"a: 1\n---\nb: 2\n", "more than one document"},
      {"%YAML 9.9\n---\na: 1\n", "line 1"},
      {std::string("a: \0b", 5), "NUL"},
      {"a: caf\xe9", "UTF-8"},
      {"\xff\xfe"
       "a\0:\0",
       "UTF-8"},
      {std::string(max_yaml_bytes + 1, 'a'), "more than"},
      {with("{!!python/object/apply:os.system [reboot]: 5}"), "line 1"},
      {with("{AWQModifier: !!python/object/apply:os.system [reboot]}"), "reboot"},
  };
  for (const wrong& each : all) {
    CAPTURE(each.bytes.substr(0, 80));
    CHECK_THAT(refused(each.bytes), Contains(each.named));
  }
  const test::temporary_directory root;
  CHECK_THAT(test::refusal([&] { read_recipe(root / "absent.yaml"); }), Contains("absent.yaml"));
  CHECK_THAT(test::refusal([&] { read_recipe(root.path()); }), Contains("directory"));
}

TEST_CASE("any cut and any changed byte of a recipe ends as a recipe or as a sentence") {
  const std::string whole = test::read_bytes(std::string(test::golden_directory) + "/recipe/groups.yaml");
  const test::temporary_directory root;
  size_t taken = 0, refused = 0;
  const auto read = [&](const std::string& bytes) {
    test::write_bytes(root / "recipe.yaml", bytes);
    try {
      read_recipe(root / "recipe.yaml");
      ++taken;
    } catch (const error& wrong) {
      ++refused;
      CHECK(std::string(wrong.what()).find('\n') == std::string::npos);
    }
  };
  for (size_t size = 0; size < whole.size(); size += 7) read(whole.substr(0, size));
  for (size_t at = 0; at < whole.size(); at += 17)
    for (const char byte : {'\0', '\t', '\n', '[', '&', '*', '!', '%', '"', ':', '\x80'}) {
      std::string changed = whole;
      changed[at] = byte;
      read(changed);
    }
  CHECK(taken > 50);
  CHECK(refused > 500);
}

TEST_CASE("scalars are what PyYAML takes them for") {
  const test::temporary_directory root;
  test::write_bytes(root / "a.yaml",
                    "a: [yes, Off, ~, '', \"no\", 12, +3, -4, 1.5, 1.0e+2, 1e5, 0x10, '7', !!str 8, !!int \"9\", .5]\n"
                    "b: &x {c: 1}\nd: *x\n? e\n: !!python/tuple [1, 2]\nf: !!python/object/apply:torch.device [cpu]\n"
                    "g: !!python/object/apply:a.B [1, 2]\nh:\n1: i\n");
  CHECK(read_yaml(root / "a.yaml") ==
        nlohmann::ordered_json::parse(R"({"a": [true, false, null, "", "no", 12, 3, -4, 1.5, 100.0, "1e5", "0x10", "7",
          "8", 9, 0.5], "b": {"c": 1}, "d": {"c": 1}, "e": [1, 2], "f": "cpu", "g": [1, 2], "h": null, "1": "i"})"));
}

}  // namespace recipe_refusals_tests
