// SPDX-License-Identifier: Apache-2.0
/// @file
/// What awq_mistral writes: the same bytes whatever the threads, readable for every option and every kind of model, and
/// judged by perplexity's own reading of the files as the pass judged it.
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdio>

#include "mistral/quantization.hpp"
#include "mistral/weights.hpp"
#include "support/model.hpp"
#include "support/program.hpp"

namespace awq_mistral_bytes_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;
using test::words;
using test::operator+;

namespace {

/// A model, and outputs beside it.
struct workplace {
  test::temporary_directory root;
  test::fs::path model = root / "model";

  explicit workplace(const test::model_spec& spec = {}) { test::write_model(spec, model); }

  /// Quantizes `from`, which is the model unless given, into `name`.
  void quantize(const std::string& name, const words& more, const char* from = "model") const {
    const auto result = test::run_program(
        "awq_mistral", words{"--model", (root / from).string(), "--output", (root / name).string(), "--max-seq-length",
                             "64", "--num-calibration-samples", "3", "--n-grid", "4"} +
                           more);
    INFO(result.err);
    REQUIRE(result.status == 0);
  }
};

/// Two outputs of one name hold the same files.
void check_same_files(const test::fs::path& a, const test::fs::path& b) {
  REQUIRE(test::listing(a) == test::listing(b));
  for (const auto& entry : test::fs::directory_iterator(a)) {
    const std::string name = entry.path().filename().string();
    CAPTURE(name);
    CHECK((test::read_bytes(a / name) == test::read_bytes(b / name)));
  }
}

/// Every linear of `out` reads, and differs from the model's by what its scheme allows; all the rest is the model's.
void check_readable(const test::fs::path& model, const test::fs::path& out) {
  const config before = read_config(model), after = read_config(out);
  const checkpoint dense(model), packed(out);
  for (index_t layer = 0; layer < before.layers; ++layer) {
    const layer_weights was = load_layer(dense, before, layer), is = load_layer(packed, after, layer);
    for (const projection p : projections) {
      CAPTURE(layer, to_string(p));
      const auto& w = is.w[static_cast<size_t>(p)];
      CHECK(std::all_of(w.begin(), w.end(), [](float x) { return std::isfinite(x); }));
      CHECK(w.size() == was.w[static_cast<size_t>(p)].size());
    }
  }
}

}  // namespace

TEST_CASE("all files are the same bytes whatever the number of threads, for every option that changes the search") {
  const workplace w;
  const std::vector<words> variants = {
      {},
      {"--loss", "block"},
      {"--propagate", "quantized"},
      {"--clip", "gram", "--sweeps", "1"},
      {"--clip", "none", "--duo-scaling", "true"},
      {"--sweeps", "0", "--duo-scaling", "false"},
      {"--loss", "block", "--clip", "gram", "--propagate", "quantized", "--scheme", "W3A16"},
      {"--method", "rtn", "--format", "awq-gemm"},
      {"--num-calibration-samples", "1", "--max-seq-length", "16"},  // fewer tokens than inputs: no Gram matrix
  };
  for (size_t i = 0; i < variants.size(); ++i) {
    CAPTURE(variants[i]);
    const test::temporary_directory root;
    for (const char* threads : {"1", "2", "3"}) {
      test::fs::create_directory(root / threads);
      words arguments = {"--model",      w.model.string(),
                         "--output",     (root / (std::string(threads) + "/out")).string(),
                         "--threads",    threads,
                         "--group-size", "32",
                         "--n-grid",     "6"};
      if (variants[i].empty() || variants[i].front() != "--num-calibration-samples")
        arguments = arguments + words{"--num-calibration-samples", "5", "--max-seq-length", "64"};
      const auto result = test::run_program("awq_mistral", arguments + variants[i]);
      INFO(result.err);
      REQUIRE(result.status == 0);
    }
    check_same_files(root / "1/out", root / "2/out");
    check_same_files(root / "1/out", root / "3/out");
  }
}

TEST_CASE("other options give other bytes: none is ignored") {
  const workplace w;
  std::vector<std::string> seen;
  const std::vector<words> variants = {{},
                                       {"--loss", "block"},
                                       {"--propagate", "quantized"},
                                       {"--clip", "mse"},
                                       {"--clip", "none"},
                                       {"--sweeps", "0"},
                                       {"--shrinkage", "0"},
                                       {"--duo-scaling", "false"},
                                       {"--method", "rtn"},
                                       {"--scheme", "W4A16"},
                                       {"--scheme", "W3A16_ASYM"},
                                       {"--group-size", "-1"},
                                       {"--ignore", "lm_head,model.layers.1.mlp.up_proj"},
                                       {"--format", "awq-gemm"},
                                       {"--format", "awq-gemv"},
                                       {"--format", "awq-gemv-fast"},
                                       {"--format", "gptq"},
                                       {"--format", "gptq-v2"}};
  for (const words& each : variants) {
    CAPTURE(each);
    const words group = !each.empty() && each.front() == "--group-size" ? words{} : words{"--group-size", "32"};
    test::fs::remove_all(w.root / "out");
    w.quantize("out", group + each);
    const std::string bytes = test::read_bytes(w.root / "out/model.safetensors");
    CHECK(std::find(seen.begin(), seen.end(), bytes) == seen.end());
    seen.push_back(bytes);
  }
}

TEST_CASE("every scheme, group size and format is written so that it reads back, on every kind of model") {
  test::model_spec heads;  // o's inputs are v's outputs one to one: its scale is searched
  heads.kv_heads = heads.heads;
  heads.tied = true;
  heads.stored = dtype::f16;
  test::model_spec wide;  // head_dim is not hidden / heads
  wide.head_dim = 32;
  wide.kv_heads = 1;
  wide.sliding_window = 20;
  wide.stored = dtype::f32;
  test::model_spec llama;
  llama.llama = true;
  llama.layers = 1;
  const std::vector<words> packings = {
      {"--scheme", "W4A16_ASYM", "--group-size", "32"},   {"--scheme", "W4A16", "--group-size", "64"},
      {"--scheme", "W8A16", "--group-size", "-1"},        {"--scheme", "W8A16_ASYM", "--group-size", "32"},
      {"--scheme", "W3A16_ASYM", "--group-size", "64"},   {"--scheme", "W3A16", "--group-size", "32"},
      {"--scheme", "W2A16_ASYM", "--group-size", "-1"},   {"--group-size", "32", "--format", "awq-gemm"},
      {"--group-size", "64", "--format", "awq-gemv"},     {"--group-size", "32", "--format", "gptq-v2"},
      {"--group-size", "64", "--format", "awq-gemv-fast"}};
  for (const test::model_spec& spec : {test::model_spec{}, heads, wide, llama}) {
    CAPTURE(spec.kv_heads, spec.head_dim, spec.llama, test::stored_name(spec.stored));
    const workplace w(spec);
    for (size_t i = 0; i < packings.size(); ++i) {
      CAPTURE(packings[i]);
      const std::string name = "out" + std::to_string(i);
      w.quantize(name, packings[i]);
      check_readable(w.model, w.root / name);
      const config after = read_config(w.root / name);
      const bool awq = packings[i][packings[i].size() - 2] == "--format";  // these hold fp16
      CHECK(after.dtype == (awq || spec.stored == dtype::f16 ? "float16"
                            : spec.stored == dtype::f32      ? "float32"
                                                             : "bfloat16"));
      const checkpoint files(w.root / name);
      CHECK(files.contains("lm_head.weight") == !spec.tied);
      CHECK(files.at("model.embed_tokens.weight").dtype == (awq ? "F16" : test::stored_name(spec.stored)));
      CHECK(files.at("model.layers.0.input_layernorm.weight").dtype == (awq ? "F16" : test::stored_name(spec.stored)));
    }
  }
}

TEST_CASE("8 bits change the weights by half a step at most, whatever scales were folded where") {
  for (const index_t kv_heads : {2, 4}) {
    test::model_spec spec;
    spec.kv_heads = kv_heads;
    spec.stored = dtype::f32;
    const workplace w(spec);
    w.quantize("out", {"--scheme", "W8A16_ASYM", "--group-size", "32", "--sweeps", "0", "--clip", "none"});
    const config c = read_config(w.model), after = read_config(w.root / "out");
    const checkpoint dense(w.model), packed(w.root / "out");
    // One token sees nothing but itself: attention is o(v(x)), and the block's outputs compare whole.
    const std::vector<index_t> starts = {0, 5, 12};
    std::vector<float> x_data = test::random_values(3, "x", 12 * spec.hidden, 0.0f, 1.0f), y_data = x_data;
    const matrix<float> x(x_data.data(), 12, spec.hidden), y(y_data.data(), 12, spec.hidden);
    for (index_t layer = 0; layer < c.layers; ++layer) {
      forward_layer(c, load_layer(dense, c, layer), x, starts);
      forward_layer(after, load_layer(packed, after, layer), y, starts);
    }
    double error = 0, power = 0;
    for (size_t i = 0; i < x_data.size(); ++i) {
      const double difference = static_cast<double>(x_data[i]) - static_cast<double>(y_data[i]);
      error += difference * difference;
      power += static_cast<double>(x_data[i]) * static_cast<double>(x_data[i]);
    }
    // A step of 8 bits is 1/255 of a group's range of about 2·scale, where weights have an rms of scale/√3: noise over
    // signal is (2/255)/√12 · √3 = 0.4 % a linear. Scales stretch it, seven linears and two layers add to it; a scale
    // folded into the wrong place would be off by tens of percent.
    CHECK(std::sqrt(error / power) < 0.04);
    CHECK(error > 0);
  }
}

TEST_CASE("sharded outputs hold the same tensors as one file") {
  const workplace w;
  w.quantize("single", {"--group-size", "32"});
  w.quantize("sharded", {"--group-size", "32", "--max-shard-size", "100KB"});
  CHECK(test::fs::exists(w.root / "sharded/model.safetensors.index.json"));
  CHECK_FALSE(test::fs::exists(w.root / "sharded/model.safetensors"));
  const checkpoint single(w.root / "single"), sharded(w.root / "sharded");
  REQUIRE(single.tensors().size() == sharded.tensors().size());
  std::vector<std::string> files;
  for (const auto& [name, t] : single.tensors()) {
    const tensor& other = sharded.at(name, t.shape);
    CHECK(other.dtype == t.dtype);
    CHECK(std::equal(t.data, t.data + t.bytes, other.data, other.data + other.bytes));
    files.push_back(other.file.filename().string());
  }
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  CHECK(files.size() > 3);
  for (const std::string& file : files) {
    const auto largest = test::fs::file_size(w.root / "sharded" / file);
    // An embedding of 256 kB is never split; every other shard keeps to the limit, but for its header.
    CHECK(largest < 262144 + 300000);
  }
}

TEST_CASE("a model in shards quantizes to the bytes of the model in one file") {
  const workplace w;
  test::write_model({}, w.root / "shards", nullptr, 100000);
  REQUIRE_FALSE(test::fs::exists(w.root / "shards/model.safetensors"));
  w.quantize("out", {"--group-size", "32"});
  w.quantize("other", {"--group-size", "32"}, "shards");
  CHECK(test::read_bytes(w.root / "out/model.safetensors") == test::read_bytes(w.root / "other/model.safetensors"));
}

TEST_CASE("losses of rows that the next linear's scale was divided out of are those of the rows as they were") {
  const test::temporary_directory root;
  const std::string figures = (root / "figures.json").string();
  // Without gate_proj nothing scales up_proj's own inputs, and what min-max ranges lose of a row does not depend on its size.
  const auto result = test::run_program(
      "awq_mistral", {"--output", (root / "out").string(), "--ignore", "lm_head,re:.*gate_proj", "--clip", "none",
                      "--sweeps", "0", "--num-calibration-samples", "4", "--max-seq-length", "128", "--json", figures});
  INFO(result.err);
  REQUIRE(result.status == 0);
  int divided = 0;
  const json run = json::parse(test::read_bytes(figures));
  for (const json& layer : run.at("layers")) {
    if (layer.at("scales").at("down").at("ratio") == 0) continue;
    ++divided;
    const json& up = layer.at("linears").at("mlp.up_proj");
    CHECK(up.at("loss").get<double>() / up.at("round_to_nearest_loss").get<double>() == Approx(1).margin(0.03));
  }
  CHECK(divided > 0);
}

TEST_CASE("ignored linears, norms, embedding and head come through as they were") {
  const workplace w;
  w.quantize("out", {"--group-size", "32", "--ignore", "lm_head,re:.*layers\\.0\\..*,model.layers.1.mlp.down_proj"});
  const checkpoint before(w.model), after(w.root / "out");
  const auto same = [&](const std::string& name) {
    CAPTURE(name);
    const tensor &a = before.at(name), &b = after.at(name);
    CHECK((a.dtype == b.dtype && a.shape == b.shape));
    CHECK(std::equal(a.data, a.data + a.bytes, b.data, b.data + b.bytes));
  };
  for (const char* name :
       {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight", "model.layers.1.mlp.down_proj.weight"})
    same(name);
  for (const projection p : projections) same(projection_name(0, p) + ".weight");
  CHECK(after.contains("model.layers.1.mlp.up_proj.weight_packed"));
  CHECK_FALSE(after.contains("model.layers.1.mlp.up_proj.weight"));
  check_readable(w.model, w.root / "out");
}

TEST_CASE("beside the weights lie the tokenizer, the configs, the recipe and a card, never what names another format") {
  const workplace w;
  test::write_bytes(w.model / "params.json", "{}");
  test::write_bytes(w.model / "consolidated.safetensors", "x");
  test::write_bytes(w.model / "tekken.json", "{}");
  test::write_bytes(w.model / "chat_template.jinja", "x");
  w.quantize("out", {"--group-size", "32"});
  CHECK(test::listing(w.root / "out") ==
        "README.md chat_template.jinja config.json generation_config.json model.safetensors recipe.yaml "
        "special_tokens_map.json tekken.json tokenizer.json tokenizer.model tokenizer_config.json");
  CHECK(test::listing(w.root.path()) == "model out");
  CHECK_THAT(test::read_bytes(w.root / "out/README.md"), Contains("W4A16_ASYM") && Contains("groups of 32"));
  const std::string weights = test::read_bytes(w.root / "out/model.safetensors");
  CHECK_THAT(weights.substr(0, 300000), Contains("\"__metadata__\":{\"format\":\"pt\"}"));
}

TEST_CASE("perplexity reads from an output's files what the pass measured, and both AWQ formats are the same model") {
  const test::temporary_directory root;
  const test::fs::path text = root / "text.txt";
  test::write_bytes(text, test::read_bytes(test::embedded("text/heldout-persuasion.txt")).substr(0, 9000));
  const auto quantized = [&](const std::string& name, const words& more) {
    const auto result = test::run_program(
        "awq_mistral", words{"--output", (root / name).string(), "--evaluate", text.string(), "--json",
                             (root / (name + ".json")).string(), "--num-calibration-samples", "4", "--n-grid", "4"} +
                           more);
    INFO(result.err);
    REQUIRE(result.status == 0);
    return json::parse(test::read_bytes(root / (name + ".json")));
  };
  const auto measured = [&](const test::fs::path& model, const json& evaluation) {
    const auto result =
        test::run_program("perplexity", {"--model", model.string(), "--text", text.string(), "--window",
                                         std::to_string(evaluation.at("window").get<index_t>()), "--stride",
                                         std::to_string(evaluation.at("stride").get<index_t>()), "--against",
                                         test::embedded("model").string(), "--json"});
    INFO(result.err);
    REQUIRE(result.status == 0);
    return json::parse(result.out);
  };
  std::vector<double> awq;
  for (const auto& [name, options] : std::vector<std::pair<std::string, words>>{
           {"ct", {"--scheme", "W3A16"}}, {"gemm", {"--format", "awq-gemm"}}, {"gemv", {"--format", "awq-gemv"}}}) {
    CAPTURE(name);
    const json figures = quantized(name, options);
    const json own = measured(root / name, figures.at("evaluation"));
    const json &original = figures.at("models").front(), &last = figures.at("models").back();
    CHECK(own.at("perplexity") == last.at("perplexity"));
    CHECK(own.at("standard_error") == last.at("standard_error"));
    CHECK(own.at("increase") == last.at("increase"));
    CHECK(own.at("increase_standard_error") == last.at("increase_standard_error"));
    for (const char* key : {"kl_divergence", "kl_divergence_99", "top_token_agreement", "kl_by_position"})
      CHECK(own.at(key) == last.at(key));
    CHECK(own.at("against").at("perplexity") == original.at("perplexity"));
    CHECK(own.at("tokens") == figures.at("evaluation").at("tokens"));
    CHECK(figures.at("peak_resident_bytes").get<std::uint64_t>() > 1000000);
    const auto size = test::fs::file_size(root / name / "model.safetensors");
    CHECK(last.at("bytes").get<std::uint64_t>() == size);
    if (name != "ct") awq.push_back(last.at("perplexity").get<double>());
  }
  CHECK(awq.at(0) == awq.at(1));
}

}  // namespace awq_mistral_bytes_tests
