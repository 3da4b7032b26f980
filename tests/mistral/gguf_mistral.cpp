// SPDX-License-Identifier: Apache-2.0
/// @file
/// gguf_mistral as a user runs it, and GGUF files as models of our own programs.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "gguf/mix.hpp"
#include "mistral/forward.hpp"
#include "mistral/gguf_blocks.hpp"
#include "mistral/gguf_model.hpp"
#include "mistral/gguf_writer.hpp"
#include "mistral/json.hpp"
#include "mistral/tokenizer.hpp"
#include "support/gguf_run.hpp"
#include "support/limits.hpp"
#include "support/model.hpp"
#include "support/program.hpp"
#include "support/tokens.hpp"
#include "support/victim.hpp"

namespace gguf_mistral_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;
using test::words;

namespace {

/// Runs the program, which is to succeed; its JSON.
std::vector<float> all_of(const tensor& t) {
  std::vector<float> values(static_cast<size_t>(t.size()));
  read_floats(t, 0, t.size(), values.data());
  return values;
}

/// The type that a run's JSON gives a tensor.
std::string type_of(const nlohmann::json& run, const std::string& name) {
  for (const auto& t : run["tensors"])
    if (t["name"] == name) return t["type"];
  return "";
}

double perplexity_of(const fs::path& model, const fs::path& text) {
  const auto result = test::run_program("perplexity", {"--model", model.string(), "--text", text.string(), "--window",
                                                       "64", "--stride", "64", "--max-windows", "2", "--json"});
  CAPTURE(result.err);
  REQUIRE(result.status == 0);
  return nlohmann::json::parse(result.out)["perplexity"];
}

void write_importance(const fs::path& path, const gguf_metadata& keys,
                      const std::vector<std::pair<gguf_tensor_info, std::vector<float>>>& tensors) {
  std::vector<gguf_tensor_info> infos;
  for (const auto& each : tensors) infos.push_back(each.first);
  gguf_writer out(path, keys, infos);
  for (const auto& each : tensors) out.append(each.second.data(), each.second.size() * sizeof(float));
  out.finish();
}

const gguf_metadata importance_keys = {{"general.type", "imatrix"}};

}  // namespace

TEST_CASE("a checkpoint as F32 in GGUF is the same model: settings, every weight, ids, perplexity and answers") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.tied = GENERATE(false, true);
  spec.rope_theta = 1e6;
  test::write_model(spec, root / "model");
  test::converted_to_gguf(root / "model", root / "a.gguf", {"--type", "F32"});
  CHECK(test::listing(root.path()) == "a.Modelfile a.gguf model");
  CHECK_THAT(test::read_bytes(root / "a.Modelfile"), Contains("}}[INST]{{") && Contains("}}{{ .Content }}</s>"));
  const config own = read_config(root / "model"), theirs = read_config(root / "a.gguf");
  CHECK(theirs.tied_embeddings == own.tied_embeddings);
  CHECK(std::tie(theirs.hidden, theirs.intermediate, theirs.layers, theirs.heads, theirs.kv_heads, theirs.head_dim) ==
        std::tie(own.hidden, own.intermediate, own.layers, own.heads, own.kv_heads, own.head_dim));
  CHECK(std::tie(theirs.vocabulary, theirs.context, theirs.rms_norm_eps, theirs.rope_theta, theirs.bos, theirs.eos) ==
        std::tie(own.vocabulary, own.context, own.rms_norm_eps, own.rope_theta, own.bos, own.eos));
  const checkpoint before(root / "model"), after(root / "a.gguf");
  CHECK(before.tensors().size() == after.tensors().size());
  for (const auto& [name, t] : before.tensors()) {
    CAPTURE(name);
    const tensor& other = after.at(name, t.shape);
    CHECK(all_of(other) == all_of(t));
    after.release(other);
  }
  const auto tokens = open_tokenizer(root / "model"), tokens_there = open_tokenizer(root / "a.gguf");
  for (const auto& text : test::golden_tokens("strings.json")["strings"]) {
    const auto ids = tokens->encode_framed(text.get<std::string>());
    CHECK(tokens_there->encode_framed(text.get<std::string>()) == ids);
    CHECK(tokens_there->decode(ids) == tokens->decode(ids));
  }
  const fs::path text = test::embedded("text/heldout-persuasion.txt");
  CHECK(perplexity_of(root / "model", text) == perplexity_of(root / "a.gguf", text));
  const words prompt = {"--prompt", "The state of the Union", "--max-new-tokens", "8", "--model"};
  const auto answer = [&](const fs::path& model) {
    words arguments = prompt;
    arguments.push_back(model.string());
    return test::run_program("generate", arguments).out;
  };
  CHECK(answer(root / "model") == answer(root / "a.gguf"));
  CHECK(!answer(root / "model").empty());
}

TEST_CASE("rows of q and k are written in pairs and every row in blocks of its tensor's type") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.hidden = 256, spec.intermediate = 256, spec.head_dim = 64;
  test::write_model(spec, root / "model");
  const std::string type = GENERATE(as<std::string>(), "Q4_0", "Q2_K", "Q4_K_M", "IQ4_XS", "Q8_0", "F16", "BF16");
  CAPTURE(type);
  const auto run = test::converted_to_gguf(root / "model", root / "a.gguf", {"--type", type});
  CHECK(run["notes"].empty());
  const gguf_file file(root / "a.gguf");
  const checkpoint before(root / "model"), after(root / "a.gguf");
  std::uint64_t bytes = 0;
  for (const gguf_tensor& t : file.tensors()) {
    CAPTURE(t.name, info_of(t.type).name);
    const tensor& original = before.at(checkpoint_name(t.name));
    const auto columns = static_cast<index_t>(t.dims[0]), rows = original.size() / columns;
    std::vector<float> values = all_of(original), moved = values;
    if (rows_are_paired(t.name))
      for (index_t row = 0; row < rows; ++row)
        std::copy_n(values.data() + row * columns, columns, moved.data() + paired_row(row, spec.head_dim) * columns);
    std::vector<std::byte> expected(static_cast<size_t>(t.size));
    encode_rows(t.type, {moved.data(), rows, columns}, nullptr, expected.data());
    CHECK(std::memcmp(expected.data(), t.data, expected.size()) == 0);
    // What a program reads is what the blocks hold, in the checkpoint's order, from anywhere in a row.
    std::vector<float> held(moved.size());
    decode_blocks(t.type, t.data, original.size() / static_cast<index_t>(info_of(t.type).elements), held.data());
    const std::vector<float> read = all_of(after.at(original.name));
    for (index_t row = 0; row < rows; ++row) {
      const index_t there = rows_are_paired(t.name) ? paired_row(row, spec.head_dim) : row;
      REQUIRE(
          std::equal(read.data() + row * columns, read.data() + (row + 1) * columns, held.data() + there * columns));
    }
    float few[3] = {};
    read_floats(after.at(original.name), columns - 2, min(index_t(3), original.size() - columns + 2), few);
    CHECK(few[0] == read[static_cast<size_t>(columns - 2)]);
    bytes += t.size;
  }
  CHECK(run["bits_per_weight"].get<double>() ==
        Approx(8.0 * static_cast<double>(bytes) / run["weights"].get<double>()));
  CHECK(std::isfinite(perplexity_of(root / "a.gguf", test::embedded("text/heldout-persuasion.txt"))));
}

TEST_CASE("a checkpoint that our passes packed becomes the GGUF file of the floats that it stands for") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  const auto packed =
      test::run_program("awq_mistral", {"--model", (root / "model").string(), "--output", (root / "packed").string(),
                                        "--method", "rtn", "--group-size", "32"});
  CAPTURE(packed.err);
  REQUIRE(packed.status == 0);
  test::converted_to_gguf(root / "packed", root / "a.gguf", {"--type", "F32"});
  const checkpoint before(root / "packed"), after(root / "a.gguf");
  const config c = read_config(root / "packed");
  for (const projection p : projections) {
    const auto linear = open_linear(before, c, projection_name(1, p), outputs(c, p), inputs(c, p));
    std::vector<float> expected(static_cast<size_t>(outputs(c, p) * inputs(c, p)));
    linear->rows(0, outputs(c, p), expected.data());
    CHECK(all_of(after.at(projection_name(1, p) + ".weight")) == expected);
  }
}

TEST_CASE("columns that are no whole blocks get another type, and the user is told of it") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.hidden = 64, spec.intermediate = 80;  // 64: blocks of 32; 80: none
  test::write_model(spec, root / "model");
  const auto result = test::run_program(
      "gguf_mistral", {"--model", (root / "model").string(), "--output", (root / "a.gguf").string(), "--dry-run"});
  CHECK(result.status == 0);
  CHECK_THAT(result.err, Contains("note: 16 of 21 tensors have rows that are no whole blocks") && Contains("Q5_0"));
  CHECK_THAT(result.out, Contains("bits per weight") && Contains("blk.0.ffn_down.weight"));
  CHECK(test::listing(root.path()) == "model");
  const auto run = test::converted_to_gguf(root / "model", root / "a.gguf", {});
  CHECK(type_of(run, "blk.0.attn_q.weight") == "Q5_0");
  CHECK(type_of(run, "blk.0.ffn_down.weight") == "F16");
  CHECK(type_of(run, "output.weight") == "Q8_0");
  CHECK(type_of(run, "output_norm.weight") == "F32");
}

TEST_CASE("each mix gives attn_v, ffn_down, attn_output and the output the types of llama.cpp") {
  const auto types = [](const char* name, const mixed_model& model, const char* role) {
    std::string all;
    for (index_t i = 0; i < model.layers; ++i)
      all += std::string(i > 0 ? " " : "") +
             info_of(mixed_type(*find_mix(name), model, "blk." + std::to_string(i) + "." + role + ".weight")).name;
    return all;
  };
  const mixed_model eight{8, 4, false, false}, with{8, 4, true, false}, alone{8, 1, false, false};
  CHECK(types("Q4_K_M", eight, "attn_v") == "Q6_K Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K Q6_K");
  CHECK(types("Q4_K_M", eight, "ffn_down") == types("Q4_K_M", eight, "attn_v"));
  CHECK(types("Q4_K_M", eight, "attn_q") == "Q4_K Q4_K Q4_K Q4_K Q4_K Q4_K Q4_K Q4_K");
  CHECK(types("Q4_K_M", eight, "attn_output") == types("Q4_K_M", eight, "attn_q"));
  CHECK(types("Q4_K_S", eight, "attn_v") == "Q5_K Q5_K Q5_K Q5_K Q4_K Q4_K Q4_K Q4_K");
  CHECK(types("Q4_K_S", eight, "ffn_down") == "Q5_K Q4_K Q4_K Q4_K Q4_K Q4_K Q4_K Q4_K");
  CHECK(types("Q5_K_M", eight, "attn_v") == "Q6_K Q5_K Q5_K Q6_K Q5_K Q5_K Q6_K Q6_K");
  CHECK(types("Q3_K_M", eight, "attn_v") == "Q5_K Q5_K Q4_K Q4_K Q4_K Q4_K Q4_K Q4_K");
  CHECK(types("Q3_K_M", {32, 4, false, false}, "ffn_down").substr(0, 14) == "Q5_K Q5_K Q4_K");
  CHECK(types("Q3_K_L", alone, "attn_output") == "Q5_K Q5_K Q5_K Q5_K Q5_K Q5_K Q5_K Q5_K");
  CHECK(types("Q2_K", eight, "attn_v") == "Q4_K Q4_K Q4_K Q4_K Q4_K Q4_K Q4_K Q4_K");
  CHECK(types("Q2_K", alone, "attn_v") == "Q3_K Q3_K Q3_K Q3_K Q3_K Q3_K Q3_K Q3_K");
  CHECK(types("Q2_K", alone, "ffn_down") == types("Q2_K", alone, "attn_v"));
  CHECK(types("IQ4_XS", eight, "attn_v") == "Q5_K Q5_K Q5_K Q5_K Q5_K Q5_K Q5_K Q5_K");
  CHECK(types("IQ4_XS", eight, "ffn_down").substr(0, 11) == "Q5_K IQ4_XS");
  CHECK(types("IQ4_NL", with, "ffn_down").substr(0, 6) == "IQ4_NL");
  CHECK(types("Q4_0", with, "ffn_down").substr(0, 9) == "Q4_1 Q4_0");
  CHECK(types("Q4_0", eight, "ffn_down").substr(0, 9) == "Q4_0 Q4_0");
  CHECK(types("Q5_0", with, "ffn_down").substr(0, 9) == "Q5_1 Q5_0");
  CHECK(types("Q4_K_S", {80, 8, false, false}, "attn_v") == types("Q5_K_S", {80, 8, false, false}, "attn_v"));
  CHECK(types("Q3_K_S", {80, 2, false, false}, "attn_v") == types("Q5_K_S", {80, 2, false, false}, "attn_v"));
  CHECK(types("Q3_K_S", {80, 1, false, false}, "attn_v") == types("Q3_K_S", {80, 1, false, false}, "attn_q"));
  for (const mix& m : mixes()) {
    CHECK(mixed_type(m, eight, "blk.3.attn_norm.weight") == gguf_type::f32);
    CHECK(mixed_type(m, eight, "output.weight") == m.head);
    CHECK(mixed_type(m, eight, "token_embd.weight") == m.base);
    CHECK(mixed_type(m, {8, 4, false, true}, "token_embd.weight") == m.head);
    CHECK(find_mix(m.name) == &m);
  }
  CHECK(find_mix("Q4_K") == nullptr);
}

TEST_CASE("tokenizer.json and tokenizer.model of one tokenizer give the same tokens, scores and types") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  test::converted_to_gguf(root / "model", root / "of_model.gguf", {"--type", "BF16"});
  fs::remove(root / "model/tokenizer.model");
  test::converted_to_gguf(root / "model", root / "of_json.gguf", {"--type", "BF16"});
  const gguf_file a(root / "of_model.gguf"), b(root / "of_json.gguf");
  CHECK(a.metadata() == b.metadata());
  CHECK(a.get<std::string>("tokenizer.ggml.model") == "llama");
  CHECK(a.get_array<std::string>("tokenizer.ggml.tokens").size() == 2048);
  CHECK(a.find("tokenizer.chat_template") != nullptr);
}

TEST_CASE("a byte-level tokenizer becomes gpt2 with merges and the pattern's name, and gives the same ids again") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.vocabulary = 4096;
  test::write_weights(spec, root / "model");
  auto file = read_json<nlohmann::json>(test::golden_tokenizer("byte-level.json"));
  test::write_bytes(root / "model/tokenizer.json", file.dump());
  test::converted_to_gguf(root / "model", root / "a.gguf", {"--type", "BF16"});
  const gguf_file written(root / "a.gguf");
  CHECK(written.get<std::string>("tokenizer.ggml.model") == "gpt2");
  CHECK(written.get<std::string>("tokenizer.ggml.pre") == "tekken");
  CHECK(written.get_array<std::string>("tokenizer.ggml.tokens").back() == "[PAD4095]");
  const auto own = open_tokenizer(root / "model"), there = open_tokenizer(root / "a.gguf");
  for (const auto& text : test::golden_tokens("strings.json")["strings"]) {
    const auto ids = own->encode_framed(text.get<std::string>());
    CHECK(there->encode_framed(text.get<std::string>()) == ids);
    CHECK(there->decode(ids) == own->decode(ids));
  }
  file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[a-z]+";
  test::write_bytes(root / "model/tokenizer.json", file.dump());
  CHECK_THAT(test::refused_gguf(root.path(), {"--model", (root / "model").string()}),
             Contains("neither Tekken's nor Llama 3's"));
}

TEST_CASE("an importance matrix weighs columns, and is refused where it is not the model's") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  const words options = {"--type", "Q4_0", "--imatrix", (root / "i.gguf").string()};
  const std::string name = "blk.0.attn_v.weight";
  std::vector<float> sums(64, 3.0f);
  sums[5] = 3000.0f;
  write_importance(
      root / "i.gguf", importance_keys,
      {{{name + ".in_sum2", {64, 1}, gguf_type::f32}, sums}, {{name + ".counts", {1, 1}, gguf_type::f32}, {3.0f}}});
  const auto run = test::converted_to_gguf(root / "model", root / "a.gguf", options);
  CHECK_THAT(run["notes"].dump(), Contains("tells nothing of"));
  const gguf_file file(root / "a.gguf");
  const checkpoint before(root / "model");
  for (float& sum : sums) sum /= 3.0f;
  const tensor& original = before.at("model.layers.0.self_attn.v_proj.weight");
  const std::vector<float> values = all_of(original);
  std::vector<std::byte> expected(static_cast<size_t>(file.find_tensor(name)->size)), plain = expected;
  encode_rows(gguf_type::q4_0, {values.data(), original.shape[0], 64}, sums.data(), expected.data());
  encode_rows(gguf_type::q4_0, {values.data(), original.shape[0], 64}, nullptr, plain.data());
  CHECK(std::memcmp(expected.data(), file.find_tensor(name)->data, expected.size()) == 0);
  CHECK(expected != plain);
  // With more search the columns count as they do without, in what was encoded and in what the file has.
  std::vector<std::byte> searched(expected.size());
  encode_rows(gguf_type::q4_0, {values.data(), original.shape[0], 64}, sums.data(), searched.data(),
              block_search_kind::exhaustive);
  const auto error = [&](const std::vector<std::byte>& of) {
    std::vector<float> read(values.size());
    decode_blocks(gguf_type::q4_0, of.data(), static_cast<index_t>(values.size()) / 32, read.data());
    double sum = 0;
    for (size_t i = 0; i < read.size(); ++i)
      sum += static_cast<double>(sums[i % 64]) * std::pow(static_cast<double>(read[i] - values[i]), 2);
    return sum;
  };
  CHECK(error(searched) < 0.98 * error(expected));
  words with_search = options;
  with_search.insert(with_search.end(), {"--search", "exhaustive"});
  test::converted_to_gguf(root / "model", root / "searched.gguf", with_search);
  const gguf_file there(root / "searched.gguf");
  CHECK(std::memcmp(searched.data(), there.find_tensor(name)->data, searched.size()) == 0);
  fs::remove(root / "searched.gguf");
  fs::remove(root / "searched.Modelfile");

  fs::remove(root / "a.gguf");
  const auto refuses = [&](const gguf_metadata& keys, std::uint64_t width, float value, std::uint64_t counts) {
    write_importance(root / "i.gguf", keys,
                     {{{name + ".in_sum2", {width, 1}, gguf_type::f32}, std::vector<float>(width, value)},
                      {{name + ".counts", {1, counts}, gguf_type::f32}, std::vector<float>(counts, 1.0f)}});
    words all = {"--model", (root / "model").string()};
    all.insert(all.end(), options.begin(), options.end());
    return test::refused_gguf(root.path(), all);
  };
  CHECK_THAT(refuses({}, 64, 1.0f, 1), Contains("is no importance matrix"));
  CHECK_THAT(refuses(importance_keys, 32, 1.0f, 1), Contains("of 32 columns") && Contains(name));
  CHECK_THAT(refuses(importance_keys, 64, std::numeric_limits<float>::infinity(), 1),
             Contains("NaN, infinite or negative"));
  CHECK_THAT(refuses(importance_keys, 64, -1.0f, 1), Contains("NaN, infinite or negative"));
  CHECK_THAT(refuses(importance_keys, 64, 1.0f, 2), Contains("must hold one number"));
}

TEST_CASE("an exhaustive search writes blocks of less error in as many bytes") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  const auto plain = test::converted_to_gguf(root / "model", root / "plain.gguf", {"--type", "Q4_0"});
  const auto better =
      test::converted_to_gguf(root / "model", root / "better.gguf", {"--type", "Q4_0", "--search", "exhaustive"});
  CHECK(plain["search"] == "ggml");
  CHECK(better["search"] == "exhaustive");
  CHECK(plain["bits_per_weight"] == better["bits_per_weight"]);
  const checkpoint before(root / "model");
  const std::vector<float> values = all_of(before.at("model.layers.0.self_attn.v_proj.weight"));
  const auto error = [&](const fs::path& path) {
    const gguf_file file(path);
    const auto* t = file.find_tensor("blk.0.attn_v.weight");
    std::vector<float> read(values.size());
    decode_blocks(gguf_type::q4_0, t->data, static_cast<index_t>(values.size()) / 32, read.data());
    double sum = 0;
    for (size_t i = 0; i < read.size(); ++i) {
      const double off = static_cast<double>(read[i]) - static_cast<double>(values[i]);
      sum += off * off;
    }
    return sum;
  };
  CHECK(error(root / "better.gguf") < 0.98 * error(root / "plain.gguf"));
  CHECK_THAT(test::refused_gguf(root.path(), {"--model", (root / "model").string(), "--search", "best"}, 2),
             Contains("--search"));
}

TEST_CASE("gguf_mistral refuses what it cannot write in one sentence, and leaves nothing") {
  const test::temporary_directory root;
  const std::string model = (root / "model").string();
  const auto make = [&](float value) {
    fs::remove_all(root / "model");
    test::write_model({}, root / "model", [&](test::made_tensor& t) {
      if (t.name == "model.layers.1.mlp.up_proj.weight") t.values[70] = value;
    });
  };
  make(std::numeric_limits<float>::quiet_NaN());
  CHECK_THAT(test::refused_gguf(root.path(), {"--model", model}),
             Contains("model.layers.1.mlp.up_proj.weight") && Contains("NaN"));
  make(70000.0f);
  CHECK_THAT(test::refused_gguf(root.path(), {"--model", model, "--type", "F16"}), Contains("beyond what F16 holds"));
  test::converted_to_gguf(root / "model", root / "big.gguf", {"--type", "BF16"});
  make(0.0f);
  CHECK_THAT(test::refused_gguf(root.path(), {"--model", model, "--type", "Q9"}, 2), Contains("Q9 is not one of"));
  CHECK_THAT(test::refused_gguf(root.path(), {"--model", (root / "none").string()}), Contains("no model directory"));
  CHECK_THAT(test::refused_gguf(root.path(), {"--model", (root / "big.gguf").string()}),
             Contains("no model directory"));
  CHECK_THAT(test::refused_by("gguf_mistral", {"--model", model, "--output", (root / "a.bin").string()}, 2),
             Contains("must end in .gguf"));
  CHECK_THAT(test::refused_by("gguf_mistral", {"--model", model, "--output", (root / "big.gguf").string()}, 1),
             Contains("exists already; --overwrite"));
  CHECK_THAT(test::refused_by("gguf_mistral", {"--model", model, "--output", (root / "no/a.gguf").string()}, 1),
             Contains("there is no directory"));
  CHECK_THAT(
      test::refused_by("awq_mistral", {"--model", (root / "big.gguf").string(), "--output", (root / "o").string()}, 1),
      Contains("is a GGUF file; give the directory"));
  fs::remove_all(root / "model");
  test::model_spec small;
  small.vocabulary = 2000;
  test::write_model(small, root / "model");
  CHECK_THAT(test::refused_gguf(root.path(), {"--model", model}), Contains("vocab_size is 2000"));
}

TEST_CASE("figures are not written over the GGUF file, its Modelfile or the matrix, however their names are spelt") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  const std::string model = (root / "model").string(), output = (root / "a.gguf").string();
  const auto refused = [&](const std::string& json, words more = {}) {
    more.insert(more.end(), {"--model", model, "--output", output, "--json", (root / json).string()});
    return test::refused_by("gguf_mistral", more, 2);
  };
  CHECK_THAT(refused("a.gguf"), Contains("--json") && Contains(output));
  CHECK_THAT(refused("model/../a.gguf"), Contains(output));
  CHECK_THAT(refused("a.Modelfile"), Contains("a.Modelfile"));
  CHECK_THAT(refused("m.gguf", {"--imatrix", "auto", "--imatrix-output", (root / "m.gguf").string()}),
             Contains("m.gguf"));
  CHECK(test::listing(root.path()) == "model");
}

TEST_CASE("a Modelfile that cannot be written is found before the model is") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  test::fs::create_directory(root / "a.Modelfile.partial");
  const auto result =
      test::run_program("gguf_mistral", {"--model", (root / "model").string(), "--output", (root / "a.gguf").string()});
  CHECK(result.status == 1);
  CHECK_THAT(test::sentence_of("gguf_mistral", result.err), Contains("a.Modelfile.partial"));
  CHECK(test::listing(root.path()) == "a.Modelfile.partial model");
}

TEST_CASE("a model's directory whose name is no UTF-8 has a GGUF file and figures all the same") {
  const test::temporary_directory root;
  test::write_model({}, root / "m\xff");
  const auto run = test::converted_to_gguf(root / "m\xff", root / "a.gguf", {"--type", "F16"});
  CHECK(run["output"] == (root / "a.gguf").string());
  const gguf_file file(root / "a.gguf");
  CHECK(std::get<std::string>(*file.find("general.name")) == "m\xef\xbf\xbd");
}

TEST_CASE("a GGUF file that a full disk cuts short never appears") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  const std::string before = test::listing(root.path());
  const auto result = test::run_program(
      "gguf_mistral", {"--model", (root / "model").string(), "--output", (root / "a.gguf").string()}, root.path(), [] {
        const struct rlimit limit = {100000, 100000};
        ::setrlimit(RLIMIT_FSIZE, &limit);
      });
  CHECK(result.status == 1);
  CHECK_THAT(result.err, Contains("cannot write") && Contains("a.gguf.partial"));
  CHECK(test::listing(root.path()) == before);
}

TEST_CASE("a GGUF file of another architecture, or of settings that no forward pass here has, is refused by its key") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  test::converted_to_gguf(root / "model", root / "a.gguf", {"--type", "BF16"});
  const gguf_file whole(root / "a.gguf");
  std::vector<gguf_tensor_info> infos(whole.tensors().begin(), whole.tensors().end());
  const auto says = [&](const std::string& key, const gguf_value& value) {
    gguf_metadata keys = whole.metadata();
    const auto at = std::find_if(keys.begin(), keys.end(), [&](const auto& each) { return each.first == key; });
    if (at == keys.end())
      keys.emplace_back(key, value);
    else
      at->second = value;
    gguf_writer out(root / "b.gguf", keys, infos);
    for (const gguf_tensor& t : whole.tensors()) out.append(t.data, t.size);
    out.finish();
    return test::refused_by(
        "perplexity",
        {"--model", (root / "b.gguf").string(), "--text", test::embedded("text/heldout-persuasion.txt").string()}, 1);
  };
  using u32 = std::uint32_t;
  CHECK_THAT(says("general.architecture", "gemma"), Contains("\"gemma\" is not supported"));
  CHECK_THAT(says("llama.expert_count", u32{8}), Contains("llama.expert_count"));
  CHECK_THAT(says("llama.rope.scaling.type", "yarn"), Contains("llama.rope.scaling.type"));
  CHECK_THAT(says("llama.block_count", u32{0}), Contains("llama.block_count"));
  CHECK_THAT(says("llama.block_count", u32{9}), Contains("model.layers.2"));
  CHECK_THAT(says("llama.embedding_length", 64.0f), Contains("must be a whole number"));
  CHECK_THAT(says("llama.attention.value_length", u32{8}), Contains("llama.attention.value_length"));
  CHECK_THAT(says("llama.attention.key_length", u32{7}), Contains("head_dim"));
  CHECK_THAT(says("tokenizer.ggml.model", "bert"), Contains("tokenizer.ggml.model"));
  CHECK_THAT(says("tokenizer.ggml.bos_token_id", u32{2048}), Contains("tokenizer.ggml.bos_token_id"));
  CHECK_THAT(says("tokenizer.ggml.scores", gguf_array(std::vector<float>{1.0f})), Contains("not one a token"));
  CHECK_THAT(says("tokenizer.ggml.token_type", gguf_array(std::vector<std::int32_t>(2048, 7))),
             Contains("from 1 to 6"));
}

}  // namespace gguf_mistral_tests
