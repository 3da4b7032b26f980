// SPDX-License-Identifier: Apache-2.0
/// @file
/// README.md of a quantized checkpoint as a hub and its reader meet it: metadata that parses, measured figures, and a
/// serving line that holds.
#include "mistral/model_card.hpp"

#include <catch2/catch.hpp>
#include <set>

#include "mistral/serving.hpp"
#include "mistral/sha256.hpp"
#include "mistral/source_card.hpp"
#include "mistral/yaml.hpp"
#include "support/model.hpp"
#include "support/program.hpp"
#include "support/run_json.hpp"

namespace model_card_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = test::run_json;

namespace {

/// What a hub reads of a card: the YAML between its first line "---" and the next.
json metadata_of(const std::string& card) {
  REQUIRE(card.rfind("---\n", 0) == 0);
  const size_t end = card.find("\n---\n", 3);
  REQUIRE(end != card.npos);
  return parse_yaml(card.substr(4, end - 3), "card");
}

config config_of(test::model_spec spec) {
  const test::temporary_directory root;
  test::write_model(spec, root / "model");
  return read_config(root / "model");
}

packing_lookup all(const packing& how) {
  return [how](const std::string&) { return how; };
}

packing packed(packed_format format, int bits, bool symmetric, index_t group) {
  return {format, bits, symmetric, group};
}

constexpr auto tensors = packed_format::compressed_tensors;

/// Which of 1, 2, 4, 8 ranks a checkpoint splits over.
std::string splits(const config& c, const packing_lookup& of) {
  std::string out;
  for (const index_t ranks : {1, 2, 4, 8})
    if (refused_over_ranks(c, of, ranks).empty()) out += std::to_string(ranks) + " ";
  return out;
}

}  // namespace

TEST_CASE("a card's metadata tells licence, base model and languages as the source does, and parses") {
  const json found = metadata_of(model_card(test::made_up_run(2)));
  CHECK(found["license"] == "apache-2.0");
  CHECK(found["base_model"] == "org/small");
  CHECK(found["base_model_relation"] == "quantized");
  CHECK(found["language"] == json({"en", "fr"}));
  CHECK(found["library_name"] == "transformers");
  CHECK(found["tags"] == json({"awq", "compressed-tensors", "quantized", "nibble"}));
  json unknown = test::made_up_run(2);
  unknown["source"] = {{"name", "small"}};
  const json bare = metadata_of(model_card(unknown));
  for (const char* key : {"license", "base_model", "base_model_relation", "language"}) CHECK(!bare.contains(key));
}

TEST_CASE("a card holds the measured figures, what made them, and the calibration text's hash") {
  const json run = test::made_up_run(2);
  const std::string card = model_card(run);
  CHECK_THAT(card, Contains("| AWQ | 3.7 MB | 4.16 | 35.295 | +0.180 ± 0.020 | 0.0123 | 0.1235 | 91.8 % |"));
  CHECK_THAT(card, Contains("| original | 8.4 MB |  | 35.115 |"));
  CHECK_THAT(card, Contains("105351 tokens in 206 windows of 512, stride 512"));
  CHECK_THAT(card, Contains("nibble 0.1.0, commit 0123456789abcdef.") && Contains("| shrinkage | 0.5 |"));
  CHECK_THAT(card, Contains("calibration.txt (SHA-256 `" + std::string(64, 'a') + "`)"));
  CHECK_THAT(card, Contains("```\nvllm serve small-W4\n```") && Contains("`--tensor-parallel-size` 2."));
  CHECK_THAT(card, Contains("**Warning:**") && Contains("`--tensor-parallel-size 4`: of a reason") &&
                       Contains("`--tensor-parallel-size 8`: of another"));
  CHECK_THAT(card, !Contains("/somewhere") && !Contains("/texts") && !Contains("2026-01-02"));
}

TEST_CASE("a card tells how prompts were answered where they were asked, under as many columns as its head has") {
  json run = test::made_up_run(2);
  CHECK_THAT(model_card(run), !Contains("answers right"));
  run["evaluation"]["questions"] = 17;
  for (const size_t model : {0, 2})
    run["models"][model].update({{"accuracy", 0.7123456}, {"exact_match", 0.4123456}, {"abstained", 0.0123456}});
  const std::string card = model_card(run);
  CHECK_THAT(card, Contains("| 91.8 % | 71.2 % | 41.2 % | 1.2 % |\n") && Contains("17 prompts were asked"));
  std::set<std::ptrdiff_t> columns;
  const size_t from = card.find("| | size");
  for (size_t at = from, end = 0; card[at] == '|'; at = end + 1) {
    end = card.find('\n', at);
    columns.insert(std::count(card.begin() + static_cast<std::ptrdiff_t>(at),
                              card.begin() + static_cast<std::ptrdiff_t>(end), '|'));
  }
  CHECK(columns == std::set<std::ptrdiff_t>{12});
}

TEST_CASE("a card without an evaluation says that nothing was measured, and one that vLLM refuses says why") {
  json run = test::made_up_run(2);
  run.erase("evaluation");
  run["serving"]["vllm"] = {{"loads", false}, {"why", "of a version"}};
  const std::string card = model_card(run);
  json rare = test::made_up_run(2);
  rare["serving"]["vllm"]["needs"] = "it has few bits";
  CHECK_THAT(model_card(rare), Contains("> **Note:** it has few bits.\n") && Contains("vllm serve"));
  CHECK_THAT(card, Contains("Nothing was measured") && Contains("vLLM does not load it: of a version"));
  CHECK_THAT(card, !Contains("vllm serve") && !Contains("| AWQ |"));
}

TEST_CASE("names from a file system neither break a card's metadata nor its Markdown nor its commands") {
  json run = test::made_up_run(2);
  run["options"]["output"] = "/out/a b'; rm -rf \"$HOME\" `x`";
  run["source"]["license"] = "mit\"\n- : {";
  run["source"]["name"] = "<script>\n# x](y)|";
  run["calibration"]["file"] = "/texts/`|\n<b>.txt";
  const std::string card = model_card(run);
  CHECK(metadata_of(card)["license"] == "mit\"\n- : {");
  CHECK_THAT(card, Contains("vllm serve 'a b__ rm -rf __HOME_ _x_'\n"));
  CHECK_THAT(card, Contains("\\<script\\> \\# x\\](y)\\|"));
  CHECK_THAT(card, !Contains("<script>") && !Contains("<b>"));
}

TEST_CASE("a model's name, licence and languages come from its card, its configuration and its place") {
  const test::temporary_directory root;
  const auto describe = [&](const test::fs::path& place, const std::string& card, const std::string& name_or_path) {
    test::write_model({}, place);
    if (!card.empty()) test::write_bytes(place / "README.md", card);
    config c = read_config(place);
    c.json["_name_or_path"] = name_or_path;
    return describe_source(place, c);
  };
  CHECK(describe(root / "plain", "", "") == json({{"name", "plain"}}));
  CHECK(describe(root / "plain2", "", "/home/me/plain") == json({{"name", "plain2"}}));
  CHECK(describe(root / "named", "---\nlicense: mit\nlanguage: [en, fr]\nmodel_name: x\n---\n# y\n", "org/name") ==
        json({{"name", "name"}, {"base_model", "org/name"}, {"license", "mit"}, {"language", {"en", "fr"}}}));
  CHECK(describe(root / "models--org--cached" / "snapshots" / "0f", "---\nlanguage: de\n---\n", "") ==
        json({{"name", "cached"}, {"base_model", "org/cached"}, {"language", {"de"}}}));
  for (const char* unreadable :
       {"---\nlicense: [\n---\n", "---\nlicense: mit\n", "# no metadata\n", "---\n- a\n---\n"}) {
    CAPTURE(unreadable);
    CHECK(describe(root / ("m" + std::to_string(std::hash<std::string>{}(unreadable))), unreadable, "").size() == 1);
  }
}

TEST_CASE("a checkpoint splits over the ranks whose share of every linear is whole groups, words and heads") {
  test::model_spec spec;  // 64 hidden, 128 intermediate, 4 heads of 16, 2 key-value heads
  const config c = config_of(spec);
  CHECK(splits(c, all(packed(tensors, 4, false, 32))) == "1 2 ");
  CHECK(splits(c, all(packed(tensors, 4, false, 64))) == "1 ");
  CHECK(splits(c, all(packed(tensors, 4, true, -1))) == "1 2 4 ");
  CHECK_THAT(refused_over_ranks(c, all(packed(tensors, 4, false, 64)), 2),
             Contains("o_proj has 32 inputs a rank over 2 ranks, not a whole number of groups of 64"));
  CHECK_THAT(refused_over_ranks(c, all(packed(tensors, 4, true, -1)), 8), Contains("4 attention heads"));
  // Zero points lie along the outputs: 16 of 3 bits are no whole number of words, of 4 bits they are two.
  CHECK(splits(c, all(packed(tensors, 3, true, 16))) == "1 2 ");
  CHECK_THAT(refused_over_ranks(c, all(packed(tensors, 3, false, 16)), 2),
             Contains("k_proj has 16 outputs a rank") && Contains("3 bits"));
  CHECK_THAT(refused_over_ranks(c, all(packed(tensors, 3, true, -1)), 4), Contains("whole number of words"));
  CHECK_THAT(refused_over_ranks(c, all(packed(packed_format::awq_gemm, 4, false, -1)), 2), Contains("its only group"));
}

TEST_CASE("key-value heads fewer than the ranks are repeated, and others must divide them") {
  test::model_spec spec;
  spec.heads = 12, spec.kv_heads = 3, spec.intermediate = 192;
  const config c = config_of(spec);
  CHECK(refused_over_ranks(c, all(packed(tensors, 4, true, -1)), 3).empty());
  CHECK_THAT(refused_over_ranks(c, all(packed(tensors, 4, true, -1)), 2), Contains("3 key-value heads"));
  CHECK_THAT(refused_over_ranks(c, all(packed(tensors, 4, true, -1)), 4), Contains("3 key-value heads"));
}

TEST_CASE("linears that are left as they were split as their channels do, and fused ones must be packed alike") {
  const config c = config_of({});
  const packing coarse = packed(tensors, 4, false, 64);
  const auto only_gate = [&](const std::string& name) {
    return name.find("gate_proj") == name.npos ? std::optional<packing>() : coarse;
  };
  CHECK(splits(c, only_gate) == "1 2 4 ");
  const json serving = serving_json(c, only_gate);
  CHECK(serving["vllm"]["loads"] == false);
  CHECK_THAT(serving["vllm"]["why"].get<std::string>(), Contains("gate_proj and mlp.up_proj are packed differently"));
  CHECK(serving_json(c, all(packed(packed_format::awq_gemv, 4, false, 32)))["vllm"]["loads"] == false);
  const auto refusal_of = [&](const packing& how) {
    const json vllm = serving_json(c, all(how))["vllm"];
    return vllm["loads"] == true ? std::string() : vllm["why"].get<std::string>();
  };
  CHECK_THAT(refusal_of(packed(packed_format::awq_gemv_fast, 4, false, 32)), Contains("this is gemv_fast"));
  CHECK_THAT(refusal_of(packed(packed_format::marlin, 4, true, 128)), Contains("this is marlin"));
  CHECK(refusal_of(packed(packed_format::gptq, 4, true, 32)).empty());
  CHECK_THAT(refusal_of(packed(packed_format::gptq_v2, 4, false, 32)), Contains("without zero points only"));
  CHECK_THAT(refusal_of(packed(packed_format::gptq, 3, true, 32)), Contains("of 4 and 8 bits, and this has 3 bits"));
  packing ordered = packed(packed_format::gptq, 4, true, 32);
  ordered.reordered = true;
  CHECK_THAT(refusal_of(ordered), Contains("desc_act"));
  const json whole = serving_json(c, all(packed(tensors, 4, false, 32)));
  CHECK(whole["vllm"] == json({{"loads", true}}));
  CHECK(serving_json(c, all(packed(tensors, 8, true, 32)))["vllm"] == json({{"loads", true}}));
  for (const auto& [bits, symmetric] : {std::pair(3, true), std::pair(8, false)})
    CHECK_THAT(serving_json(c, all(packed(tensors, bits, symmetric, 32)))["vllm"]["needs"].get<std::string>(),
               Contains("q_proj has " + std::to_string(bits) + " bits") && Contains("NVIDIA GPUs only"));
  CHECK_THAT(serving_json(c, all(packed(tensors, 4, false, 16)))["vllm"]["needs"].get<std::string>(),
             Contains("q_proj has groups of 16") && Contains("Humming"));
  CHECK(whole["tensor_parallel"][0] == json({{"ranks", 2}, {"works", true}}));
  CHECK(whole["tensor_parallel"][1]["works"] == false);
}

TEST_CASE("awq_mistral writes the card of what --json says, the same bytes at every run") {
  const test::temporary_directory root;
  const test::fs::path model = root / "it's a <model>";
  test::write_model({}, model);
  test::write_bytes(model / "README.md", "---\nlicense: cc0-1.0\n---\n# about\n");
  test::write_bytes(root / "text.txt", "The state of the union is strong. " + std::string(3000, 'a'));
  test::write_bytes(root / "other.txt", "Let every nation know. " + std::string(2000, 'b'));
  const auto run = [&](const char* output) {
    const auto result = test::run_program(
        "awq_mistral", {"--model", model, "--output", root / output / "named", "--group-size", "32", "--n-grid", "4",
                        "--num-calibration-samples", "2", "--max-seq-length", "64", "--calibration", root / "text.txt",
                        "--evaluate", root / "other.txt", "--json", root / "run.json"});
    CAPTURE(result.err);
    REQUIRE(result.status == 0);
    return test::read_bytes(root / output / "named" / "README.md");
  };
  test::fs::create_directory(root / "a"), test::fs::create_directory(root / "b");
  const std::string card = run("a");
  CHECK(card == run("b"));
  CHECK(metadata_of(card)["license"] == "cc0-1.0");
  const json said = json::parse(test::read_bytes(root / "run.json"));
  CHECK(said["calibration"]["sha256"] == sha256(test::read_bytes(root / "text.txt")));
  CHECK_THAT(card, Contains("`" + said["calibration"]["sha256"].get<std::string>() + "`"));
  CHECK_THAT(card, Contains("it's a \\<model\\> with its linear layers quantized to W4A16_ASYM, groups of 32") &&
                       Contains("vllm serve named\n") && !Contains(root.path().string()));
  char perplexity[32];
  std::snprintf(perplexity, sizeof(perplexity), "| %.3f |", said["models"].back()["perplexity"].get<double>());
  CHECK_THAT(card, Contains(perplexity));
}

}  // namespace model_card_tests
