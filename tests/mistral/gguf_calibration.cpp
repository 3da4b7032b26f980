// SPDX-License-Identifier: Apache-2.0
/// @file
/// gguf_mistral's own calibration: importance matrices written and found.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "gguf/calibrate.hpp"
#include "mistral/gguf_model.hpp"
#include "support/model.hpp"
#include "support/program.hpp"

namespace gguf_calibration_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;
using test::words;

namespace {

calibration_set some_samples(index_t sequences, index_t length) {
  calibration_set set;
  for (index_t i = 0; i < sequences; ++i) {
    set.sequences.emplace_back();
    for (index_t j = 0; j < length + i; ++j)
      set.sequences.back().push_back(
          static_cast<std::int32_t>(test::mixed(static_cast<std::uint64_t>(100 * i + j)) % 2048));
  }
  return set;
}

/// What calibration adds up, by the names of the file.
importance_sums sums_of(const fs::path& model, const calibration_set& samples, host::matmul_precision precision) {
  const checkpoint files(model);
  const config c = read_config(model);
  importance_sums sums;
  sums.tokens = samples.tokens();
  calibration_listener told;
  told.layer = [&](index_t layer, const layer_weights&, const layer_statistics& seen) { add_layer(sums, layer, seen); };
  told.head = [&](const std::vector<double>& squares) { sums.of[head_name(c)] = squares; };
  calibrate(files, c, samples, precision, told);
  return sums;
}

test::outcome convert(const fs::path& model, const fs::path& output, words more) {
  words arguments = {"--model", model.string(), "--output", output.string()};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return test::run_program("gguf_mistral", arguments);
}

bool same_tensors(const fs::path& one, const fs::path& other) {
  const gguf_file a(one), b(other);
  return std::equal(a.tensors().begin(), a.tensors().end(), b.tensors().begin(), b.tensors().end(),
                    [](const gguf_tensor& x, const gguf_tensor& y) {
                      return x.name == y.name && x.type == y.type && x.dims == y.dims && x.size == y.size &&
                             std::memcmp(x.data, y.data, static_cast<size_t>(x.size)) == 0;
                    });
}

}  // namespace

TEST_CASE("an importance matrix that was written is read back the same") {
  const test::temporary_directory root;
  importance_sums sums = {"a text.txt", 7, 512, 3001, {}};
  for (const char* name : {"blk.0.attn_q.weight", "blk.11.ffn_down.weight", "output.weight"})
    for (const float value : test::random_values(3, name, 37, 100.0f, 100.0f))
      sums.of[name].push_back(static_cast<double>(value) * 1.0000001);
  sums.of["output.weight"][3] = 0.0;
  sums.of["output.weight"][4] = 3e38;
  write_importance(root / "i.gguf", sums);
  CHECK(test::listing(root.path()) == "i.gguf");
  const importance_matrix read = read_importance(root / "i.gguf"), known = importance_of(sums);
  CHECK(read.weights == known.weights);
  CHECK(read.weights.size() == 3);
  CHECK(read.dataset == "a text.txt");
  CHECK(read.chunks == 7);
  const double sum = sums.of["output.weight"][8];
  CHECK(static_cast<double>(read.weights.at("output.weight")[8]) == Approx(sum / 3001).epsilon(1e-6));
  const gguf_file file(root / "i.gguf");
  CHECK(file.get<std::string>("general.type") == "imatrix");
  CHECK(file.get<std::uint32_t>("imatrix.chunk_size") == 512);
  CHECK(file.find_tensor("blk.0.attn_q.weight.in_sum2")->dims == std::vector<std::uint64_t>{37, 1});
  CHECK(file.find_tensor("blk.0.attn_q.weight.counts")->dims == std::vector<std::uint64_t>{1, 1});
  for (const double bad : {1e39, std::numeric_limits<double>::infinity(), std::nan("")}) {
    sums.of["output.weight"][4] = bad;
    CHECK_THROWS_WITH(write_importance(root / "bad.gguf", sums), Contains("output.weight") && Contains("beyond"));
  }
  CHECK(test::listing(root.path()) == "i.gguf");
}

TEST_CASE("importance is the mean square of what each linear reads, over all tokens") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.tied = GENERATE(false, true);
  const auto precision = spec.tied ? host::matmul_precision::bfloat16 : host::matmul_precision::float32;
  test::write_weights(spec, root / "model");
  const checkpoint files(root / "model");
  const config c = read_config(root / "model");
  const calibration_set samples = some_samples(3, 40);
  batch all;
  for (const auto& ids : samples.sequences) all.append(ids.data(), static_cast<index_t>(ids.size()));
  const index_t m = all.tokens();
  std::vector<float> data(static_cast<size_t>(m * c.hidden));
  const matrix<float> x(data.data(), m, c.hidden);
  embed(files, c, all, x);
  std::map<std::string, std::vector<double>> expected;
  const auto expect = [&](const std::string& name, matrix<const float> rows) {
    auto& sums = expected[name];
    sums.resize(static_cast<size_t>(rows.cols));
    for (index_t row = 0; row < rows.rows; ++row)
      for (index_t col = 0; col < rows.cols; ++col)
        sums[static_cast<size_t>(col)] +=
            static_cast<double>(rows(row, col)) * static_cast<double>(rows(row, col)) / static_cast<double>(m);
  };
  const auto named = [](index_t layer, const std::string& role) {
    return "blk." + std::to_string(layer) + "." + role + ".weight";
  };
  for (index_t layer = 0; layer < c.layers; ++layer) {
    layer_weights w = load_layer(files, c, layer);
    w.precision = precision;
    forward_layer(c, w, x, all.starts, [&](layer_input input, matrix<const float> rows) {
      if (input == layer_input::attention)
        for (const char* role : {"attn_q", "attn_k", "attn_v"}) expect(named(layer, role), rows);
      if (input == layer_input::o) expect(named(layer, "attn_output"), rows);
      if (input == layer_input::mlp)
        for (const char* role : {"ffn_gate", "ffn_up"}) expect(named(layer, role), rows);
      if (input == layer_input::down) expect(named(layer, "ffn_down"), rows);
    });
  }
  std::vector<float> normed(data.size());
  const matrix<float> last(normed.data(), m, c.hidden);
  rms_norm(x, read_vector(files, "model.norm.weight", c.hidden), c.rms_norm_eps, last);
  expect(spec.tied ? "token_embd.weight" : "output.weight", last);

  const importance_matrix found = importance_of(sums_of(root / "model", samples, precision));
  REQUIRE(found.weights.size() == expected.size());
  for (const auto& [name, weights] : expected) {
    CAPTURE(name);
    const auto& own = found.weights.at(name);
    REQUIRE(own.size() == weights.size());
    // Sums in double, in another order, then two roundings to float: within 2^-22 of each other.
    for (size_t i = 0; i < own.size(); ++i)
      CHECK(std::abs(static_cast<double>(own[i]) - weights[i]) <= 0x1p-22 * weights[i]);
  }
  const auto& q = found.weights.at("blk.1.attn_q.weight");
  CHECK(*std::max_element(q.begin(), q.end()) > 1.2f * *std::min_element(q.begin(), q.end()));
  CHECK(blank_importance(files, c, "t.txt", samples).weights.size() == expected.size());
}

TEST_CASE(
    "option --imatrix auto writes the file that the matrix it wrote gives, dense or packed, for any number of "
    "threads") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  fs::path model = root / "model";
  if (GENERATE(false, true)) {
    const words pack = {"--model",  model.string(), "--output",     (root / "packed").string(),
                        "--method", "rtn",          "--group-size", "32"};
    REQUIRE(test::run_program("awq_mistral", pack).status == 0);
    model = root / "packed";
  }
  const words few = {"--type", "Q4_0", "--num-calibration-samples", "3", "--max-seq-length", "64"};
  words automatic = few;
  automatic.insert(automatic.end(), {"--imatrix", "auto", "--imatrix-output", (root / "i.gguf").string()});
  const auto first = convert(model, root / "a.gguf", automatic);
  CAPTURE(first.err);
  REQUIRE(first.status == 0);
  CHECK_THAT(first.err, Contains("note: there are 3 calibration samples"));
  CHECK_THAT(first.err, !Contains("tells nothing of"));
  const auto from_file = convert(model, root / "b.gguf", {"--type", "Q4_0", "--imatrix", (root / "i.gguf").string()});
  CAPTURE(from_file.err);
  REQUIRE(from_file.status == 0);
  CHECK(same_tensors(root / "a.gguf", root / "b.gguf"));
  REQUIRE(convert(model, root / "c.gguf", {"--type", "Q4_0"}).status == 0);
  CHECK(!same_tensors(root / "a.gguf", root / "c.gguf"));
  const gguf_file written(root / "a.gguf");
  CHECK(written.get<std::string>("quantize.imatrix.dataset") == "calibration-state-of-the-union-2000-2012.txt");
  CHECK(written.get<std::int32_t>("quantize.imatrix.entries_count") == 15);
  CHECK(written.get<std::int32_t>("quantize.imatrix.chunks_count") == 3);

  words again = automatic;
  again.insert(again.end(), {"--overwrite", "--threads", "1"});
  REQUIRE(convert(model, root / "d.gguf", again).status == 0);
  CHECK(same_tensors(root / "a.gguf", root / "d.gguf"));
  again.insert(again.end(), {"--calibration", test::embedded("text/heldout-persuasion.txt").string()});
  REQUIRE(convert(model, root / "d.gguf", again).status == 0);
  CHECK(!same_tensors(root / "a.gguf", root / "d.gguf"));
}

TEST_CASE(
    "option --matmul-precision decides what calibration multiplies, which otherwise is this machine's choice for a "
    "bfloat16 checkpoint and float32 for any other") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  const auto run = [&](const fs::path& model, const std::string& matrix, const words& more) {
    words arguments = {"--type",
                       "Q4_0",
                       "--num-calibration-samples",
                       "3",
                       "--max-seq-length",
                       "64",
                       "--imatrix",
                       "auto",
                       "--overwrite",
                       "--imatrix-output",
                       (root / matrix).string(),
                       "--json",
                       (root / "figures.json").string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const auto result = convert(model, root / "a.gguf", arguments);
    CAPTURE(result.err);
    REQUIRE(result.status == 0);
    CHECK((result.err.find("AVX512_BF16") != std::string::npos) ==
          (!more.empty() && more.back() == "bfloat16" && !host::has_bfloat16()));
    return nlohmann::json::parse(test::read_bytes(root / "figures.json")).at("matmul_precision").get<std::string>();
  };
  const bool rounds = host::fastest_precision() == host::matmul_precision::bfloat16;
  CHECK(run(root / "model", "auto.gguf", {}) == (rounds ? "bfloat16" : "float32"));
  for (const std::string word : {"float32", "bfloat16"})
    CHECK(run(root / "model", word + ".gguf", {"--matmul-precision", word}) == word);
  CHECK(same_tensors(root / "auto.gguf", root / (rounds ? "bfloat16.gguf" : "float32.gguf")));
  const importance_matrix one = read_importance(root / "float32.gguf"), other = read_importance(root / "bfloat16.gguf");
  CHECK(one.weights != other.weights);
  for (const auto& [name, weights] : one.weights) {
    CAPTURE(name);
    for (size_t i = 0; i < weights.size(); ++i) CHECK(other.weights.at(name)[i] == Approx(weights[i]).epsilon(0.02));
  }

  test::model_spec spec;
  spec.stored = dtype::f16;
  test::write_model(spec, root / "half");
  CHECK(run(root / "half", "half.gguf", {}) == "float32");
  const words pack = {
      "--model", (root / "model").string(), "--output", (root / "packed").string(), "--method", "rtn", "--group-size",
      "32"};
  REQUIRE(test::run_program("awq_mistral", pack).status == 0);
  CHECK(run(root / "packed", "packed.gguf", {}) == "float32");
  words some = pack;
  some.insert(some.end(), {"--ignore", "lm_head,re:.*layers.0.*", "--overwrite"});
  REQUIRE(test::run_program("awq_mistral", some).status == 0);
  CHECK(run(root / "packed", "packed.gguf", {}) == "float32");

  const auto loss_in = [&](const std::string& word) {
    run(root / "model", "awq.gguf", {"--awq", "--matmul-precision", word});
    return nlohmann::json::parse(test::read_bytes(root / "figures.json")).at("awq").at(0).at("loss").get<double>();
  };
  const double exact = loss_in("float32"), rounded = loss_in("bfloat16");
  CHECK(rounded != exact);
  CHECK(rounded == Approx(exact).epsilon(0.05));
}

TEST_CASE("a calibration that cannot be is refused in one sentence, and leaves nothing") {
  const test::temporary_directory root;
  const fs::path model = root / "model", text = root / "t.txt";
  test::write_model({}, model);
  test::write_bytes(text, "The state of the Union is strong.");
  test::write_bytes(root / "there.gguf", "x");
  const auto refuses = [&](int status, words more) {
    const std::string before = test::listing(root.path());
    const auto result = convert(model, root / "a.gguf", more);
    CHECK(result.status == status);
    CHECK(result.out.empty());
    CHECK(test::listing(root.path()) == before);
    return result.err;
  };
  const std::string matrix = (root / "i.gguf").string();
  CHECK_THAT(refuses(2, {"--imatrix-output", matrix}), Contains("--imatrix auto"));
  CHECK_THAT(refuses(2, {"--imatrix", (root / "there.gguf").string(), "--imatrix-output", matrix}),
             Contains("--imatrix auto"));
  CHECK_THAT(refuses(2, {"--calibration", text.string()}), Contains("--calibration is for --imatrix auto"));
  CHECK_THAT(refuses(2, {"--seed", "3"}), Contains("--seed is for --imatrix auto"));
  CHECK_THAT(refuses(2, {"--matmul-precision", "float32"}), Contains("--matmul-precision is for --imatrix auto"));
  CHECK_THAT(refuses(2, {"--imatrix", "auto", "--matmul-precision", "int8"}), Contains("--matmul-precision"));
  const auto with = [&](int status, words more) {
    more.insert(more.end(), {"--imatrix", "auto"});
    return refuses(status, more);
  };
  CHECK_THAT(with(2, {"--imatrix-output", (root / "i.dat").string()}), Contains("must end in .gguf"));
  CHECK_THAT(with(2, {"--imatrix-output", (root / "a.gguf").string()}), Contains("the same file"));
  CHECK_THAT(with(1, {"--imatrix-output", (root / "no/i.gguf").string()}), Contains("there is no directory"));
  CHECK_THAT(with(1, {"--imatrix-output", (root / "there.gguf").string()}), Contains("exists already; --overwrite"));
  CHECK_THAT(with(1, {"--calibration", (root / "none.txt").string()}), Contains("there is no calibration file"));
  CHECK_THAT(with(1, {"--calibration", (root / "there.gguf").string()}), Contains("must end in .txt"));
  CHECK_THAT(with(2, {"--num-calibration-samples", "0"}), Contains("--num-calibration-samples"));
  test::write_bytes(text, "");
  CHECK_THAT(with(1, {"--calibration", text.string()}), Contains("gives no tokens"));

  test::write_bytes(text, "The state of the Union is strong.");
  fs::remove_all(model);
  test::write_model({}, model, [](test::made_tensor& t) {
    if (t.name == "model.layers.1.mlp.up_proj.weight") t.values[70] = std::numeric_limits<float>::quiet_NaN();
  });
  CHECK_THAT(with(1, {"--calibration", text.string(), "--imatrix-output", matrix}),
             Contains("layer 1 turns the calibration text into NaN") && Contains("up_proj"));
}

TEST_CASE("a dry run checks the calibration text and writes neither file nor matrix") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  const auto result = convert(root / "model", root / "a.gguf",
                              {"--imatrix", "auto", "--imatrix-output", (root / "i.gguf").string(), "--dry-run"});
  CHECK(result.status == 0);
  CHECK_THAT(result.err, !Contains("calibrating"));
  CHECK(test::listing(root.path()) == "model");
  CHECK(convert(root / "model", root / "a.gguf", {"--imatrix", "auto", "--calibration", "none.txt", "--dry-run"})
            .status == 1);
}

}  // namespace gguf_calibration_tests
