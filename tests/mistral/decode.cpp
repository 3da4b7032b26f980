// SPDX-License-Identifier: Apache-2.0
/// @file
/// The decoder against the forward pass, for every way a checkpoint stores weights, and against itself: alone and in a
/// batch, at once and token by token, on any number of threads.
#include "mistral/decode.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>

#include "mistral/generation.hpp"
#include "nibble/host/parallel.hpp"
#include "support/activations.hpp"
#include "support/model.hpp"
#include "support/program.hpp"

namespace decode_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;

namespace {

/// A model and its decoder.
struct opened {
  config settings;
  checkpoint files;
  decoder model;
  explicit opened(const test::fs::path& directory)
      : settings(read_config(directory)), files(directory), model(files, settings) {}
};

std::vector<int32_t> random_ids(index_t length, std::uint64_t seed, index_t vocabulary = 2048) {
  std::vector<int32_t> ids;
  for (index_t i = 0; i < length; ++i)
    ids.push_back(static_cast<int32_t>(test::mixed(seed * 1000 + static_cast<std::uint64_t>(i)) %
                                       static_cast<std::uint64_t>(vocabulary)));
  return ids;
}

batch batch_of(const std::vector<std::vector<int32_t>>& prompts) {
  batch b;
  for (const auto& ids : prompts) b.append(ids.data(), static_cast<index_t>(ids.size()));
  return b;
}

std::vector<float> row_of(matrix<const float> logits, index_t row) {
  return {logits.row(row), logits.row(row) + logits.cols};
}

std::vector<float> logits_of(decoder& model, const std::vector<int32_t>& ids) {
  return row_of(model.prefill(batch_of({ids})), 0);
}

/// Logits after `ids` by the forward pass, which reads weights as floats, and a head summed in double.
std::vector<double> forward_logits(const opened& o, const std::vector<int32_t>& ids) {
  const config& c = o.settings;
  const batch b = batch_of({ids});
  std::vector<float> data(static_cast<size_t>(b.tokens() * c.hidden)),
      head(static_cast<size_t>(c.vocabulary * c.hidden));
  const matrix<float> x(data.data(), b.tokens(), c.hidden);
  embed(o.files, c, b, x);
  for (index_t layer = 0; layer < c.layers; ++layer) forward_layer(c, load_layer(o.files, c, layer), x, b.starts);
  const lm_head last = load_head(o.files, c);
  const auto row = x.rows_at(b.tokens() - 1, 1);
  rms_norm(row, last.norm, c.rms_norm_eps, row);
  last.weights->rows(0, c.vocabulary, head.data());
  std::vector<double> logits(static_cast<size_t>(c.vocabulary), 0.0);
  for (size_t v = 0; v < logits.size(); ++v)
    for (index_t i = 0; i < c.hidden; ++i)
      logits[v] += static_cast<double>(row(0, i)) *
                   static_cast<double>(head[v * static_cast<size_t>(c.hidden) + static_cast<size_t>(i)]);
  return logits;
}

/// @param within  of the largest logit.
void check_as_forward(const test::fs::path& directory, double within) {
  CAPTURE(directory.filename());
  opened o(directory);
  for (const index_t length : {1, 2, 40, 150}) {
    const auto ids = random_ids(length, 3);
    const auto own = logits_of(o.model, ids);
    const auto expected = forward_logits(o, ids);
    double worst = 0, largest = 0;
    for (size_t i = 0; i < own.size(); ++i) {
      worst = std::max(worst, std::fabs(static_cast<double>(own[i]) - expected[i]));
      largest = std::max(largest, std::fabs(expected[i]));
    }
    CHECK(worst < within * largest);
  }
}

// Two fp32 passes over a few thousand products each; packed weights meet inputs rounded to 16 bits, which of a run's
// largest is half of 2^-15 and in all of a layer's linears a few times that. One code that is off by one moves logits by
// 1e-2 and more.
constexpr double dense = 1e-4, packed = 3e-4;

struct quantized {
  test::temporary_directory root;
  /// Writes the model as `format`, round to nearest.
  test::fs::path write(const test::model_spec& spec, const std::string& name, const std::vector<std::string>& options) {
    if (!test::fs::exists(root / "model")) test::write_model(spec, root / "model");
    std::vector<std::string> all = {
        "--model", (root / "model").string(), "--output", (root / name).string(), "--method", "rtn"};
    all.insert(all.end(), options.begin(), options.end());
    const auto result = test::run_program("awq_mistral", all);
    INFO(result.err);
    REQUIRE(result.status == 0);
    return root / name;
  }
};

}  // namespace

TEST_CASE(
    "the decoder's logits are the forward pass's: dense in each dtype, grouped and odd heads, windows, tied, Llama") {
  test::temporary_directory root;
  test::model_spec spec;
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
    spec.stored = type;
    spec.seed++;
    const auto directory = root / ("dense" + std::to_string(spec.seed));
    test::write_weights(spec, directory);
    check_as_forward(directory, dense);
  }
  spec.sliding_window = 5, spec.heads = 3, spec.kv_heads = 1, spec.head_dim = 14, spec.hidden = 52,
  spec.intermediate = 33;
  spec.tied = true;
  test::write_weights(spec, root / "odd");
  check_as_forward(root / "odd", dense);
  spec = {};
  spec.llama = true, spec.kv_heads = 4;
  test::write_weights(spec, root / "llama");
  check_as_forward(root / "llama", dense);
}

TEST_CASE(
    "the decoder's logits are the forward pass's on every scheme, group size and format that awq_mistral writes") {
  quantized outputs;
  test::model_spec spec;
  spec.hidden = 256, spec.intermediate = 384, spec.head_dim = 64, spec.layers = 1;
  for (const char* scheme : {"W4A16_ASYM", "W4A16", "W8A16", "W8A16_ASYM", "W3A16_ASYM", "W3A16", "W2A16_ASYM"})
    for (const char* group : {"128", "32", "-1"})
      check_as_forward(outputs.write(spec, std::string(scheme) + group, {"--scheme", scheme, "--group-size", group}),
                       packed);
  for (const char* format : {"awq-gemm", "awq-gemv"})
    for (const char* group : {"128", "64"})
      check_as_forward(outputs.write(spec, std::string(format) + group, {"--format", format, "--group-size", group}),
                       packed);
}

TEST_CASE("a sequence's logits are the same bits alone and in a batch, at once and token by token, on any threads") {
  quantized outputs;
  test::model_spec spec;
  spec.hidden = 128, spec.head_dim = 32, spec.sliding_window = 30, spec.layers = 2;
  for (const std::string name : {"model", "W4A16_ASYM", "W3A16"}) {
    CAPTURE(name);
    const auto directory = name == "model" ? (test::write_model(spec, outputs.root / name), outputs.root / name)
                                           : outputs.write(spec, name, {"--scheme", name});
    opened o(directory);
    std::vector<std::vector<int32_t>> prompts;
    std::vector<std::vector<float>> alone;
    for (const index_t length : {1, 7, 150, 33, 2, 64}) {
      prompts.push_back(random_ids(length, static_cast<std::uint64_t>(length)));
      alone.push_back(logits_of(o.model, prompts.back()));
    }
    const auto together = o.model.prefill(batch_of(prompts));
    for (size_t i = 0; i < prompts.size(); ++i) CHECK((row_of(together, static_cast<index_t>(i)) == alone[i]));

    o.model.prefill(batch_of({{prompts[2][0]}}));
    for (size_t at = 1; at + 1 < prompts[2].size(); ++at) o.model.step({prompts[2][at]});
    CHECK((row_of(o.model.step({prompts[2].back()}), 0) == alone[2]));
    CHECK(same_for_any_threads([&] { return logits_of(o.model, prompts[2]); }));
  }
}

TEST_CASE("sequences that end leave the others' cache as it was") {
  test::temporary_directory root;
  test::write_weights({}, root / "model");
  opened o(root / "model");
  const auto a = random_ids(9, 1), b = random_ids(20, 2), c = random_ids(3, 3);
  o.model.prefill(batch_of({a, b, c}));
  o.model.keep({1, 2});
  CHECK(o.model.sequences() == 2);
  CHECK(o.model.length(0) == 20);
  const auto next = o.model.step({5, 6});
  auto longer_b = b, longer_c = c;
  longer_b.push_back(5), longer_c.push_back(6);
  const auto of_b = row_of(next, 0), of_c = row_of(next, 1);
  CHECK((of_b == logits_of(o.model, longer_b)));
  CHECK((of_c == logits_of(o.model, longer_c)));
}

TEST_CASE("prompts that cannot be read are refused by what is wrong with them") {
  test::temporary_directory root;
  test::model_spec spec;
  spec.context = 16;
  test::write_weights(spec, root / "model");
  opened o(root / "model");
  const auto reason = [&](const std::vector<int32_t>& ids) {
    return test::refusal([&] { o.model.prefill(batch_of({{1}, ids})); });
  };
  CHECK_THAT(reason({}), Contains("at least one token"));
  CHECK_THAT(reason(random_ids(17, 1)), Contains("17 tokens") && Contains("16"));
  CHECK_THAT(reason({2048}), Contains("the id 2048") && Contains("vocab_size"));
  CHECK_THAT(reason({-1}), Contains("-1"));
  CHECK(logits_of(o.model, random_ids(16, 1)).size() == 2048);
}

TEST_CASE("greedy takes the most probable id until a stop id, the length or the context ends it, in any batch") {
  test::temporary_directory root;
  test::model_spec spec;
  spec.context = 40;
  test::write_weights(spec, root / "model");
  opened o(root / "model");
  std::vector<std::vector<int32_t>> prompts;
  for (const index_t length : {3, 1, 36, 12, 40})
    prompts.push_back(random_ids(length, static_cast<std::uint64_t>(length)));
  const auto free = greedy(o.model, prompts, 10, {}, 2);
  CHECK(free == greedy(o.model, prompts, 10, {}, 1));
  CHECK(free == greedy(o.model, prompts, 10, {}, 5));
  CHECK(free[0].size() == 10);
  CHECK(free[2].size() == 5);  // of 40, 36 are the prompt; the id after the last is still predicted
  CHECK(free[4].size() == 1);
  auto ids = prompts[0];
  for (const int32_t id : free[0]) {
    const auto logits = logits_of(o.model, ids);
    CHECK(id == static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    ids.push_back(id);
  }
  const int32_t stop = free[0][4];
  const auto first = std::find(free[0].begin(), free[0].end(), stop);
  CHECK(greedy(o.model, prompts, 10, {stop}, 3)[0] == std::vector<int32_t>(free[0].begin(), first));
  generation_options options;
  options.max_new_tokens = 10, options.stop = {stop};
  const auto answers = generate(o.model, prompts, options);
  CHECK(answers[0].why == ending::stop);
  CHECK(answers[4].why == ending::context);
  options.stop = {};
  CHECK(generate(o.model, prompts, options)[0].why == ending::length);
  options.max_new_tokens = 0;
  CHECK(generate(o.model, prompts, options)[0].ids.empty());
}

TEST_CASE(
    "draws follow the seed, keep to the most probable ids of top_p, and to the greedy id as the temperature falls") {
  test::temporary_directory root;
  test::write_weights({}, root / "model");
  opened o(root / "model");
  const std::vector<std::vector<int32_t>> prompts = {random_ids(4, 1), random_ids(9, 2), random_ids(4, 1)};
  generation_options options;
  options.max_new_tokens = 12, options.temperature = 1.5, options.seed = 7, options.batch = 2;
  const auto ids = [&] {
    std::vector<std::vector<int32_t>> all;
    for (const answer& a : generate(o.model, prompts, options)) all.push_back(a.ids);
    return all;
  };
  const auto drawn = ids();
  CHECK(drawn == ids());
  CHECK(drawn[0] != drawn[2]);  // one prompt twice: streams of their own
  options.batch = 1;
  CHECK(drawn == ids());
  options.seed = 8;
  CHECK(drawn != ids());
  const auto most_probable = greedy(o.model, prompts, 12, {});
  options.top_p = 1e-9;
  CHECK(ids() == most_probable);
  options.top_p = 1, options.temperature = 1e-6;
  CHECK(ids() == most_probable);
}

TEST_CASE("the ids that end a text are generation_config.json's, else config.json's") {
  test::temporary_directory root;
  test::write_weights({}, root / "model");
  const auto read = [&] { return stop_ids(root / "model", read_config(root / "model")); };
  CHECK(read() == std::vector<int32_t>{2});
  const auto file = root / "model/generation_config.json";
  test::write_bytes(file, R"({"eos_token_id": [7, 2]})");
  CHECK(read() == std::vector<int32_t>{7, 2});
  test::write_bytes(file, R"({"eos_token_id": 9})");
  CHECK(read() == std::vector<int32_t>{9});
  test::write_bytes(file, R"({"eos_token_id": null})");
  CHECK(read() == std::vector<int32_t>{2});
  for (const char* wrong : {R"("two")", "-1", "[1, 2.5]", "{}"}) {
    test::write_bytes(file, std::string(R"({"eos_token_id": )") + wrong + "}");
    CHECK_THAT(test::refusal(read), Contains("generation_config.json") && Contains("eos_token_id"));
  }
}

}  // namespace decode_tests
