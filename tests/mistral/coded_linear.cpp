// SPDX-License-Identifier: Apache-2.0
/// @file
/// Linears of a byte a code, and inputs that are rounded before they are multiplied.
#include "mistral/coded_linear.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "mistral/json.hpp"
#include "mistral/rounding.hpp"
#include "nibble/float_code.hpp"
#include "support/files.hpp"
#include "support/model.hpp"
#include "support/places.hpp"
#include "support/program.hpp"

namespace coded_linear_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;
using test::words;

namespace {

constexpr const char* name = "model.layers.0.mlp.up_proj";
constexpr auto ct = packed_format::compressed_tensors;

const std::vector<packing>& packings() {
  static const std::vector<packing> all = {{ct, 8, true, -1, code_type::integer, 1, input_rounding::token},
                                           {ct, 8, true, -1, code_type::integer, 1, input_rounding::tensor},
                                           {ct, 8, true, -1, code_type::e4m3, -1, input_rounding::tensor},
                                           {ct, 8, true, -1, code_type::e4m3, 1, input_rounding::token},
                                           {ct, 8, true, 128, code_type::e4m3, 128, input_rounding::token_block}};
  return all;
}

std::vector<float> values(index_t count, float scale = 0.1f) {
  return test::random_values(3, "values", count, 0.01f, scale);
}

config config_of(const packing& how) {
  config c;
  c.json["quantization_config"] = quantization_json(how, {"lm_head"});
  return c;
}

/// What a linear reads of x (k), by the formulas alone, in double.
std::vector<double> rounded_by_formula(const std::vector<float>& x, const rounded_inputs& how) {
  std::vector<double> out;
  const size_t width = how.how == input_rounding::token_block ? 128 : x.size();
  for (size_t j = 0; j < x.size(); ++j) {
    double amax = 0;
    for (size_t i = j / width * width; i < std::min(x.size(), (j / width + 1) * width); ++i)
      amax = std::max(amax, std::fabs(static_cast<double>(x[i])));
    const bool integer = how.type == code_type::integer;
    const double levels = integer ? 127 : 448;
    const auto scale = how.how == input_rounding::tensor ? how.scale : static_cast<float>(amax / levels);
    const double ratio = static_cast<double>(x[j] / scale);
    if (integer) {
      out.push_back(std::clamp(std::nearbyint(ratio), -127.0, 127.0) * static_cast<double>(scale));
      continue;
    }
    const double clamped = std::clamp(ratio, -448.0, 448.0);
    const int exponent = std::max(clamped == 0.0 ? -6 : std::ilogb(clamped), -6);
    const double unit = std::ldexp(1.0, exponent - 3);
    out.push_back(std::nearbyint(clamped / unit) * unit * static_cast<double>(scale));
  }
  return out;
}

struct stored_linear {
  test::temporary_directory directory;
  quantized_linear q;

  stored_linear(const packing& how, index_t n, index_t k) {
    const std::vector<float> w = values(n * k);
    q = round_weights({w.data(), n, k}, how, dtype::bf16);
    if (how.inputs == input_rounding::tensor) q.input_scale = 0.03125f;
    safetensors_writer out(directory.path(), 1 << 30);
    write_packed(out, name, q, how, dtype::bf16);
    CHECK(out.finish() > packed_bytes(n, k, how, dtype::bf16));
  }
};

}  // namespace

TEST_CASE("linears of a byte a code read back as what was written, and multiply by it as they lie in memory") {
  for (const packing& how : packings()) {
    CAPTURE(to_string(how));
    const index_t n = how.rows > 1 ? 256 : 70, k = how.rows > 1 ? 128 : 40;
    const stored_linear stored(how, n, k);
    const checkpoint files(stored.directory.path());
    std::uint64_t bytes = 0;
    for (const auto& [each, t] : files.tensors()) bytes += static_cast<std::uint64_t>(t.bytes);
    CHECK(bytes == packed_bytes(n, k, how, dtype::bf16));
    std::vector<float> want(static_cast<size_t>(n * k)), got(want.size());
    unround(stored.q, how, dtype::bf16, {want.data(), n, k});
    const auto linear = open_linear(files, config_of(how), name, n, k);
    CHECK(linear->rounded() == rounded_inputs{how.inputs, how.type, stored.q.input_scale});
    for (const index_t step : {n, index_t(7)}) {
      std::fill(got.begin(), got.end(), 0.0f);
      for (index_t first = 0; first < n; first += step)
        linear->rows(first, min(step, n - first), got.data() + first * k);
      CHECK(got == want);
    }
    // A product's error: k roundings of its largest term in fp32, inputs rounded alike.
    const std::vector<float> x = values(k, 3.0f);
    std::vector<float> y(static_cast<size_t>(n));
    linear->resident().multiply({x.data(), 1, k}, {y.data(), 1, n});
    const std::vector<double> read = rounded_by_formula(x, linear->rounded());
    for (index_t i = 0; i < n; ++i) {
      double sum = 0, size = 0;
      for (index_t j = 0; j < k; ++j) {
        const double term = read[static_cast<size_t>(j)] * static_cast<double>(want[static_cast<size_t>(i * k + j)]);
        sum += term, size += std::fabs(term);
      }
      CHECK(std::fabs(static_cast<double>(y[static_cast<size_t>(i)]) - sum) <= 1e-4 * size);
    }
  }
}

TEST_CASE("inputs are rounded as the formulas say, but for tokens that hold NaN or infinity") {
  for (const packing& how : packings()) {
    CAPTURE(to_string(how));
    const rounded_inputs rounding = {how.inputs, how.type, how.inputs == input_rounding::tensor ? 0.03125f : 0.0f};
    std::vector<float> x = values(300, 5.0f);
    x[7] = 0, x[8] = 1e-12f, x[9] = -5.5f;
    const std::vector<double> want = rounded_by_formula(x, rounding);
    std::vector<float> got = x;
    round_inputs({got.data(), 1, 300}, rounding);
    for (size_t j = 0; j < x.size(); ++j)
      CHECK(static_cast<double>(got[j]) == Approx(want[j]).epsilon(1e-6).margin(1e-9));
    std::vector<float> zeros(300, 0.0f);
    round_inputs({zeros.data(), 1, 300}, rounding);
    CHECK(zeros == std::vector<float>(300, 0.0f));
    for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      std::vector<float> three = x;
      three.insert(three.end(), x.begin(), x.end());
      three.insert(three.end(), x.begin(), x.end());
      three[430] = bad;
      round_inputs({three.data(), 3, 300}, rounding);
      CHECK(std::equal(got.begin(), got.end(), three.begin()));
      CHECK(std::equal(x.begin(), x.begin() + 130, three.begin() + 300));
      CHECK_FALSE(std::isfinite(three[430]));
      CHECK(std::equal(got.begin(), got.end(), three.begin() + 600));
    }
  }
}

TEST_CASE("a layer multiplies what it rounded, each linear's inputs its own way") {
  test::model_spec spec;
  spec.layers = 1;
  const test::temporary_directory directory;
  test::write_weights(spec, directory / "model");
  const config c = read_config(directory / "model");
  const checkpoint files(directory / "model");
  layer_weights w = load_layer(files, c, 0);
  const auto at = [&](projection p) -> rounded_inputs& { return w.rounded[static_cast<size_t>(p)]; };
  at(projection::gate) = {input_rounding::token, code_type::integer, 0};
  at(projection::up) = {input_rounding::token, code_type::e4m3, 0};
  at(projection::down) = {input_rounding::tensor, code_type::integer, 0.01f};
  const std::vector<float> x = values(c.hidden, 1.0f);
  std::vector<float> got(x.size()), gated(static_cast<size_t>(c.intermediate));
  mlp_block(c, w, {x.data(), 1, c.hidden}, {got.data(), 1, c.hidden});
  const auto product = [&](const std::vector<double>& read, projection p, index_t row) {
    double sum = 0;
    for (index_t j = 0; j < static_cast<index_t>(read.size()); ++j)
      sum += read[static_cast<size_t>(j)] * static_cast<double>(w.at(c, p)(row, j));
    return sum;
  };
  const auto for_gate = rounded_by_formula(x, at(projection::gate)), for_up = rounded_by_formula(x, at(projection::up));
  for (index_t i = 0; i < c.intermediate; ++i) {
    const double gate = product(for_gate, projection::gate, i);
    gated[static_cast<size_t>(i)] =
        static_cast<float>(gate / (1 + std::exp(-gate)) * product(for_up, projection::up, i));
  }
  const auto for_down = rounded_by_formula(gated, at(projection::down));
  double moved = 0;  // a value next to a tie may be rounded the other way: a step times a weight, seldom
  for (index_t i = 0; i < c.hidden; ++i)
    moved += std::fabs(static_cast<double>(got[static_cast<size_t>(i)]) - product(for_down, projection::down, i));
  CHECK(moved <= 0.01 * 0.25 * static_cast<double>(c.hidden));
}

TEST_CASE("tensors of a byte a code that cannot be are refused in a sentence that names them") {
  struct fault {
    std::function<void(safetensors_writer&, const quantized_linear&)> write;
    const char* says;
  };
  const auto weight = [](safetensors_writer& out, const quantized_linear& q, const char* type) {
    out.add(std::string(name) + ".weight", type, {q.n, q.k}, q.codes.data(), q.codes.size());
  };
  const auto scales = [](safetensors_writer& out, const char* suffix, float value, index_t count) {
    const std::vector<float> all(static_cast<size_t>(count), value);
    out.add(std::string(name) + suffix, "F32", count == 1 ? std::vector<index_t>{1} : std::vector<index_t>{count, 1},
            all.data(), all.size() * sizeof(float));
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const fault faults[] = {
      {[&](auto& out, const auto& q) { weight(out, q, "U8"), scales(out, ".weight_scale", 1, q.n); }, "where I8 is"},
      {[&](auto& out, const auto& q) { weight(out, q, "I8"); }, "weight_scale"},
      {[&](auto& out, const auto& q) { weight(out, q, "I8"), scales(out, ".weight_scale", 1, q.n + 1); },
       "weight_scale"},
      {[&](auto& out, const auto& q) { weight(out, q, "I8"), scales(out, ".weight_scale", nan, q.n); },
       "not a positive number"},
      {[&](auto& out, const auto& q) { weight(out, q, "I8"), scales(out, ".weight_scale", -1, q.n); },
       "not a positive number"},
      {[&](auto& out, const auto& q) { weight(out, q, "I8"), scales(out, ".weight_scale", 1, q.n); }, "input_scale"},
      {[&](auto& out, const auto& q) {
         weight(out, q, "I8"), scales(out, ".weight_scale", 1, q.n), scales(out, ".input_scale", 0, 1);
       },
       "not a positive number"},
      {[&](auto& out, const auto& q) {
         weight(out, q, "I8"), scales(out, ".weight_scale", 1, q.n), scales(out, ".input_scale", 1, 2);
       },
       "2 numbers where one"}};
  const packing how = packings()[1];
  const std::vector<float> w = values(6 * 8);
  const quantized_linear q = round_weights({w.data(), 6, 8}, how, dtype::f32);
  for (const fault& each : faults) {
    const test::temporary_directory directory;
    safetensors_writer out(directory.path(), 1 << 30);
    each.write(out, q);
    out.finish();
    const checkpoint files(directory.path());
    CHECK_THROWS_WITH(open_linear(files, config_of(how), name, 6, 8), Contains(each.says) && Contains(name));
  }
  const packing fp8 = packings()[3];
  quantized_linear nan_code = round_weights({w.data(), 6, 8}, fp8, dtype::f32);
  nan_code.codes[11] = 0xff;
  const test::temporary_directory directory;
  safetensors_writer out(directory.path(), 1 << 30);
  write_packed(out, name, nan_code, fp8, dtype::f32);
  out.finish();
  CHECK_THROWS_WITH(open_linear(checkpoint(directory.path()), config_of(fp8), name, 6, 8), Contains("holds NaN"));
}

TEST_CASE(
    "quantization_config says how inputs are rounded, is read as what was written, and what is not done is refused") {
  for (const packing& how : packings()) {
    CAPTURE(to_string(how));
    const config c = config_of(how);
    const auto again = quantization::read(c, "config.json");
    REQUIRE(again);
    CHECK(again->of(name) == how);
    CHECK(again->rounds_inputs());
    CHECK_FALSE(again->of("lm_head"));
  }
  const auto broken = [](const packing& how, const std::function<void(json&)>& change) {
    config c = config_of(how);
    change(c.json["quantization_config"]["config_groups"]["group_0"]);
    return c;
  };
  const auto refused = [&](size_t which, const std::function<void(json&)>& change, const std::string& says) {
    CHECK_THROWS_WITH(quantization::read(broken(packings()[which], change), "config.json"), Contains(says));
  };
  refused(
      0, [](json& g) { g["input_activations"]["num_bits"] = 4; }, "\"num_bits\" must be 8");
  refused(
      0, [](json& g) { g["input_activations"]["symmetric"] = false; }, "only symmetric inputs");
  refused(
      0, [](json& g) { g["input_activations"]["strategy"] = "channel"; }, "token and group are");
  refused(
      0, [](json& g) { g["input_activations"]["type"] = "float"; }, "but only \"int\" is supported");
  refused(
      0, [](json& g) { g["weights"]["num_bits"] = 4; }, "must have 8 bits");
  refused(
      0, [](json& g) { g["format"] = "pack-quantized"; }, "the whole file's is \"int-quantized\"");
  refused(
      1, [](json& g) { g["input_activations"]["strategy"] = "token"; }, "of scales that are fixed, tensor is");
  refused(
      2, [](json& g) { g["weights"]["num_bits"] = 4; }, "floats of 4 bits");
  refused(
      2, [](json& g) { g["weights"]["strategy"] = "group"; }, "tensor, channel and block are");
  refused(
      4,
      [](json& g) {
        g["weights"]["block_structure"] = {64, 128};
      },
      "must be [128, 128]");
  refused(
      4, [](json& g) { g["input_activations"]["group_size"] = 64; }, "must be 128");
}

TEST_CASE("awq_mistral rounds weights and inputs to 8 bits, and what it writes predicts as well as it says") {
  const test::temporary_directory root;
  for (const std::string scheme : {"W8A8", "FP8_DYNAMIC"}) {
    CAPTURE(scheme);
    const test::fs::path text = root / "text.txt", out = root / scheme, figures = root / (scheme + ".json");
    test::write_bytes(text, test::read_bytes(test::embedded("text/heldout-persuasion.txt")).substr(20000, 3000));
    const auto made = test::run_program("awq_mistral", {"--method", "rtn", "--scheme", scheme, "--output", out.string(),
                                                        "--evaluate", text.string(), "--json", figures.string()});
    CAPTURE(made.err);
    REQUIRE(made.status == 0);
    const json told = json::parse(test::read_bytes(figures));
    const double original = told["models"][0]["perplexity"], own = told["models"][1]["perplexity"];
    CHECK(own != original);
    CHECK(std::fabs(own / original - 1) < 0.01);
    const auto measured = test::run_program("perplexity", {"--model", out.string(), "--text", text.string(), "--window",
                                                           "512", "--stride", "512", "--json"});
    CAPTURE(measured.err);
    REQUIRE(measured.status == 0);
    CHECK(json::parse(measured.out)["perplexity"].get<double>() == Approx(own).epsilon(0.02));
  }
  const auto refused = [&](words more) {
    words all = {"--output", (root / "refused").string()};
    all.insert(all.end(), more.begin(), more.end());
    const std::string sentence = test::refused_by("awq_mistral", all, 2);
    CHECK_FALSE(test::fs::exists(root / "refused"));
    return sentence;
  };
  CHECK_THAT(refused({"--scheme", "W8A8"}), Contains("smoothquant_mistral rounds inputs"));
  CHECK_THAT(refused({"--method", "rtn", "--scheme", "FP8"}), Contains("smoothquant_mistral does it"));
  CHECK_THAT(refused({"--method", "rtn", "--scheme", "W8A8", "--format", "awq-gemm"}), Contains("--format awq-gemm"));
  CHECK_THAT(refused({"--method", "rtn", "--scheme", "W8A8", "--format", "gptq"}), Contains("--format gptq"));
}

}  // namespace coded_linear_tests
