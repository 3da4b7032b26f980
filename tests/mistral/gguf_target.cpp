// SPDX-License-Identifier: Apache-2.0
/// @file
/// Types chosen for a size: gguf_mistral --target-bpw and --target-size as a user runs them.
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "gguf/measure.hpp"
#include "gguf/sensitivity.hpp"
#include "mistral/forward.hpp"
#include "mistral/gguf.hpp"
#include "mistral/weights.hpp"
#include "support/gguf_run.hpp"
#include "support/model.hpp"
#include "support/program.hpp"

namespace gguf_target_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;
using test::words;

namespace {

/// Types by tensor.
std::map<std::string, std::string> types_of(const nlohmann::json& run) {
  std::map<std::string, std::string> out;
  for (const auto& t : run["tensors"]) out[t["name"]] = t["type"];
  return out;
}

double divergence(const fs::path& model, const fs::path& from) {
  const auto result =
      test::run_program("perplexity", {"--model", model.string(), "--against", from.string(), "--text",
                                       test::embedded("text/heldout-persuasion.txt").string(), "--window", "256",
                                       "--stride", "256", "--max-windows", "6", "--json"});
  CAPTURE(result.err);
  REQUIRE(result.status == 0);
  return nlohmann::json::parse(result.out)["kl_divergence"];
}

}  // namespace

TEST_CASE("a file has at most the size that is asked for, little less, and the less error the larger it may be") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.hidden = 256, spec.intermediate = 512, spec.head_dim = 64, spec.tied = GENERATE(false, true);
  test::write_model(spec, root / "model");
  double before = std::numeric_limits<double>::infinity();
  std::set<std::string> seen;
  for (const std::uint64_t size : {1'000'000u, 1'103'457u, 1'300'000u, 1'500'001u, 2'300'000u}) {
    const auto run = test::converted_to_gguf(root / "model", root / "a.gguf", {"--target-size", std::to_string(size)});
    CAPTURE(size, run["bytes"].get<std::uint64_t>());
    CHECK(run["bytes"] == fs::file_size(root / "a.gguf"));
    CHECK(run["bytes"].get<std::uint64_t>() <= size);
    CHECK(run["bytes"].get<std::uint64_t>() > size - size / 50);
    const double expected = run["target"]["divergence"];
    CHECK(expected < before);
    before = expected;
    double sum = 0;
    for (const auto& t : run["tensors"]) {
      if (t.contains("divergence")) sum += t["divergence"].get<double>();
      seen.insert(t["type"]);
    }
    CHECK(sum == Approx(expected));
    const gguf_file file(root / "a.gguf");
    for (const gguf_tensor& t : file.tensors()) CHECK(types_of(run).at(t.name) == info_of(t.type).name);
  }
  CHECK(seen.size() > 4);
  for (const char* bits : {"3", "4.25", "5.7"}) {
    const auto run = test::converted_to_gguf(root / "model", root / "a.gguf", {"--target-bpw", bits});
    CAPTURE(bits);
    CHECK(run["bits_per_weight"].get<double>() <= std::stod(bits));
    CHECK(run["bits_per_weight"].get<double>() > std::stod(bits) * 0.98);
    CHECK(run["type"] == "mixed");
  }
}

TEST_CASE("the divergence that is expected of a choice is what comes, and less than a mix has of the same size") {
  const test::temporary_directory root;
  const fs::path model = test::embedded("model");
  test::converted_to_gguf(model, root / "mix.gguf", {"--type", "Q3_K_S"});
  const auto size = fs::file_size(root / "mix.gguf");
  const auto run = test::converted_to_gguf(model, root / "a.gguf", {"--target-size", std::to_string(size)});
  CHECK(fs::file_size(root / "a.gguf") <= size);
  const double came = divergence(root / "a.gguf", model), expected = run["target"]["divergence"];
  CHECK(came > 0.7 * expected);  // 0.93 was measured on 15 windows
  CHECK(came < 1.4 * expected);
  CHECK(came < 0.8 * divergence(root / "mix.gguf", model));
}

TEST_CASE("the same file is written by any number of threads") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  test::converted_to_gguf(root / "model", root / "a.gguf", {"--target-bpw", "6", "--threads", "1"});
  for (const char* threads : {"2", "5"}) {
    test::converted_to_gguf(root / "model", root / "b.gguf", {"--target-bpw", "6", "--threads", threads});
    CHECK(test::read_bytes(root / "a.gguf") == test::read_bytes(root / "b.gguf"));
  }
}

TEST_CASE("a tensor gets a type that its columns allow, norms are F32, and the file type is what most bytes have") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.hidden = 64, spec.intermediate = 80;  // blocks of 32; none
  test::write_model(spec, root / "model");
  const auto result = test::run_program("gguf_mistral", {"--model", (root / "model").string(), "--output",
                                                         (root / "a.gguf").string(), "--dry-run", "--target-bpw", "7"});
  CHECK(result.status == 0);
  CHECK_THAT(result.out, Contains("blk.0.ffn_down.weight") && Contains("expected KL divergence"));
  CHECK_THAT(result.err, !Contains("in the place of Q8_0") || Contains("2 of 21"));
  CHECK(test::listing(root.path()) == "model");
  const auto run = test::converted_to_gguf(root / "model", root / "a.gguf", {"--target-bpw", "5.5"});
  std::map<std::string, std::uint64_t> bytes;
  for (const auto& t : run["tensors"]) {
    const std::string name = t["name"], type = t["type"];
    CAPTURE(name, type);
    if (name.find("norm") != name.npos)
      CHECK(type == "F32");
    else if (name.find("ffn_down") != name.npos)
      CHECK(type == "F16");
    else
      CHECK((type == "IQ4_NL" || type == "Q8_0" || type == "F16" || type.substr(0, 3) == "Q4_" ||
             type.substr(0, 3) == "Q5_"));
    bytes[type] += t["bytes"].get<std::uint64_t>();
  }
  std::string most = "F32";
  for (const auto& [type, count] : bytes)
    if (count > bytes[most]) most = type;
  const gguf_file file(root / "a.gguf");
  CHECK(file.get<std::uint32_t>("general.file_type") == find_mix(most)->number);
  CHECK(candidate_types(512).size() == 9);
  CHECK(candidate_types(80) == std::vector<gguf_type>{gguf_type::f16});
}

TEST_CASE("a target that no choice of types meets is refused with the range, and so is one of two kinds at once") {
  const test::temporary_directory root;
  const std::string model = (root / "model").string();
  test::write_model({}, root / "model");
  const auto says = [&](words more, int status) {
    more.insert(more.end(), {"--model", model});
    return test::refused_gguf(root.path(), more, status);
  };
  CHECK_THAT(says({"--target-bpw", "3"}, 1),
             Contains("--target-bpw 3 is less than") && Contains("this model can have 4.5"));
  CHECK_THAT(says({"--target-bpw", "20"}, 1), Contains("more than F16 takes") && Contains("--type F16"));
  const std::string small = says({"--target-size", "1kB"}, 1);
  CHECK_THAT(small, Contains("--target-size 1000 bytes is less than"));
  CHECK_THAT(says({"--target-size", "5GB"}, 1), Contains("more than F16 takes"));
  // The ends of the range that it tells are met.
  const std::string least = small.substr(small.find("can have ") + 9, small.find(" to ") - small.find("can have ") - 9);
  const auto run = test::converted_to_gguf(root / "model", root / "least.gguf", {"--target-size", least});
  CHECK(std::to_string(run["bytes"].get<std::uint64_t>()) == least);
  CHECK_THAT(says({"--target-size", "big"}, 2), Contains("--target-size big is not a size"));
  CHECK_THAT(says({"--target-bpw", "nan"}, 2), Contains("--target-bpw"));
  CHECK_THAT(says({"--target-bpw", "5", "--type", "Q8_0"}, 2), Contains("exclude each other"));
  CHECK_THAT(says({"--target-bpw", "5", "--target-size", "1GB"}, 2), Contains("exclude each other"));
  for (const float wrong : {std::numeric_limits<float>::quiet_NaN(), 70000.0f}) {
    fs::remove_all(root / "model");
    test::write_model({}, root / "model", [&](test::made_tensor& t) {
      if (t.name == "model.layers.1.mlp.up_proj.weight") t.values[70] = wrong;
    });
    CHECK_THAT(says({"--target-bpw", "6"}, 1), Contains("model.layers.1.mlp.up_proj.weight"));
  }
}

TEST_CASE("noise has the size that it is said to have, and its signs differ from row to row") {
  std::vector<float> w(3 * 80);
  for (size_t i = 0; i < w.size(); ++i) w[i] = std::sin(static_cast<float>(i)) + 0.1f;
  std::vector<float> noisy = w, one = w;
  add_noise({noisy.data(), 3, 80}, 7);
  add_noise({one.data() + 80, 1, 80}, 8);
  CHECK(std::equal(one.begin() + 80, one.begin() + 160, noisy.begin() + 80));  // whatever rows are taken together
  double own = 0, off = 0;
  int same = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const double d = static_cast<double>(noisy[i]) - static_cast<double>(w[i]);
    own += static_cast<double>(w[i]) * static_cast<double>(w[i]), off += d * d;
    if (i >= 80) same += (noisy[i] > w[i]) == (noisy[i - 80] > w[i - 80]);
  }
  CHECK(off / own == Approx(static_cast<double>(noise_size * noise_size)).epsilon(1e-4));
  CHECK(same > 50);
  CHECK(same < 110);
}

TEST_CASE("types for a size are chosen under the importance that calibration finds, and scaled by AWQ afterwards") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.hidden = 256, spec.intermediate = 512, spec.head_dim = 64;
  test::write_model(spec, root / "model");
  const words few = {"--target-bpw", "4.5", "--num-calibration-samples", "3", "--max-seq-length", "64"};
  const auto with = [&](const char* file, words more) {
    more.insert(more.begin(), few.begin(), few.end());
    return test::converted_to_gguf(root / "model", root / file, std::move(more));
  };
  const fs::path matrix = root / "matrix.gguf";
  const auto own = with("own.gguf", {"--imatrix", "auto", "--imatrix-output", matrix.string()});
  const auto given = test::converted_to_gguf(root / "model", root / "given.gguf",
                                             {"--target-bpw", "4.5", "--imatrix", matrix.string()});
  CHECK(types_of(given) == types_of(own));
  CHECK(given["target"]["divergence"] == own["target"]["divergence"]);
  const auto none = test::converted_to_gguf(root / "model", root / "none.gguf", {"--target-bpw", "4.5"});
  CHECK(none["target"]["divergence"] != own["target"]["divergence"]);

  const auto scaled = with("scaled.gguf", {"--imatrix", "auto", "--awq"});
  CHECK(types_of(scaled) == types_of(own));
  CHECK(scaled["awq"].size() == 8);
  CHECK(scaled["bytes"] == own["bytes"]);

  fs::remove(matrix);
  const auto dry = with("dry.gguf", {"--imatrix", "auto", "--imatrix-output", matrix.string(), "--dry-run"});
  CHECK(types_of(dry) == types_of(own));
  CHECK(!fs::exists(matrix));
  CHECK(!fs::exists(root / "dry.gguf"));
  const auto other = test::converted_to_gguf(
      root / "model", root / "other.gguf",
      {"--target-bpw", "4.5", "--calibration", test::embedded("text/heldout-persuasion.txt").string()});
  CHECK(other["target"]["divergence"] != none["target"]["divergence"]);
}

TEST_CASE(
    "types for a size of a packed checkpoint hold its weights rounded, or its codes where they are of their type") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.hidden = 256, spec.intermediate = 512, spec.head_dim = 64;
  test::write_model(spec, root / "model");
  REQUIRE(test::run_program("awq_mistral", {"--model", (root / "model").string(), "--output",
                                            (root / "packed").string(), "--method", "rtn", "--scheme", "W8A16"})
              .status == 0);
  const auto run = test::converted_to_gguf(root / "packed", root / "a.gguf", {"--target-bpw", "7.5"});
  const checkpoint before(root / "packed"), after(root / "a.gguf");
  const config c = read_config(root / "packed");
  std::set<std::string> types;
  for (const auto& t : run["tensors"]) types.insert(t["type"]);
  CHECK(types.count("Q8_0") == 1);
  CHECK(types.size() > 3);
  for (index_t layer = 0; layer < c.layers; ++layer)
    for (const projection p : projections) {
      const std::string name = projection_name(layer, p);
      CAPTURE(name);
      std::vector<float> own(static_cast<size_t>(outputs(c, p) * inputs(c, p))), theirs = own;
      open_linear(before, c, name, outputs(c, p), inputs(c, p))->rows(0, outputs(c, p), own.data());
      open_linear(after, read_config(root / "a.gguf"), name, outputs(c, p), inputs(c, p))
          ->rows(0, outputs(c, p), theirs.data());
      double error = 0, square = 0;
      for (size_t i = 0; i < own.size(); ++i)
        error += std::pow(double(own[i]) - double(theirs[i]), 2), square += std::pow(double(own[i]), 2);
      CHECK(error < 0.1 * square);
    }
}

}  // namespace gguf_target_tests
