// SPDX-License-Identifier: Apache-2.0
#include "mistral/weights.hpp"
#include "support/places.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>

#include "mistral/json.hpp"
#include "mistral/quantization.hpp"
#include "nibble/scheme.hpp"
#include "support/files.hpp"

namespace weights_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;

namespace {

config with_quantization(json quantization) {
  config c;
  c.json["quantization_config"] = std::move(quantization);
  return c;
}

/// A golden directory: every linear NAME must read as NAME.expected, rounded to the dtype it was computed in.
index_t check_golden(const std::string& name) {
  const test::fs::path directory = test::fs::path(nibble::test::golden_directory) / "weights" / name;
  config c;
  c.json = read_json(directory / "config.json");
  const checkpoint files(directory);
  index_t checked = 0;
  for (const auto& [key, expected] : files.tensors()) {
    const auto at = key.rfind(".expected");
    if (at == key.npos) continue;
    const std::string linear = key.substr(0, at);
    CAPTURE(linear);
    const index_t n = expected.shape[0], k = expected.shape[1];
    const auto weights = open_linear(files, c, linear, n, k);
    CHECK(weights->outputs() == n);
    CHECK(weights->inputs() == k);
    std::vector<float> want(static_cast<size_t>(n * k)), got(want.size());
    read_floats(expected, 0, n * k, want.data());
    const dtype rounded = expected.dtype == "F32" ? dtype::f32 : expected.dtype == "F16" ? dtype::f16 : dtype::bf16;
    for (const index_t step : {n, index_t{1}, index_t{5}}) {
      for (index_t first = 0; first < n; first += step)
        weights->rows(first, min(step, n - first), got.data() + first * k);
      index_t differ = 0;
      for (size_t i = 0; i < want.size(); ++i) differ += round_to(rounded, got[i]) == want[i] ? 0 : 1;
      CHECK(differ == 0);
      weights->release();
    }
    ++checked;
  }
  return checked;
}

}  // namespace

TEST_CASE("linears that compressed-tensors packed read as it reads them, every width, symmetry and group") {
  CHECK(check_golden("compressed_tensors") == 14);
}

TEST_CASE("linears that compressed-tensors stored a byte a code, integers and fp8, read as it reads them") {
  CHECK(check_golden("coded") == 5);
}

TEST_CASE("linears that AutoAWQ packed read as it reads them, in each of its versions") {
  CHECK(check_golden("awq_gemm") == 2);
  CHECK(check_golden("awq_gemv") == 2);
  CHECK(check_golden("awq_gemv_fast") == 1);
  CHECK(check_golden("marlin") == 1);
}

TEST_CASE("linears that GPTQModel packed read as it reads them, every width, both versions, groups in any order") {
  CHECK(check_golden("gptq") == 14);
  CHECK(check_golden("gptq_v2") == 8);
}

TEST_CASE("dense linears and vectors read as stored, and a wrong shape, dtype or a missing tensor is refused by name") {
  const test::temporary_directory model;
  const float w[] = {1, 2, 3, 4, 5, 6};
  const std::int32_t words[] = {1, 2, 3, 4};
  {
    safetensors_writer writer(model.path(), 1 << 20);
    writer.add("w.weight", "F32", {3, 2}, w, sizeof(w));
    writer.add("i.weight", "I32", {2, 2}, words, sizeof(words));
    writer.add("biased.weight", "F32", {3, 2}, w, sizeof(w));
    writer.add("biased.bias", "F32", {2}, w, 8);
    writer.add("norm.weight", "F32", {6}, w, sizeof(w));
    writer.finish();
  }
  const checkpoint files(model.path());
  const config c;
  float out[4];
  open_linear(files, c, "w", 3, 2)->rows(1, 2, out);
  CHECK(std::memcmp(out, w + 2, sizeof(out)) == 0);
  CHECK(read_vector(files, "norm.weight", 6) == std::vector<float>(w, w + 6));
  CHECK_THAT(test::refusal([&] { open_linear(files, c, "w", 2, 3); }), Contains("\"w.weight\"") && Contains("[3, 2]"));
  CHECK_THAT(test::refusal([&] { open_linear(files, c, "x", 2, 3); }), Contains("\"x.weight\""));
  CHECK_THAT(test::refusal([&] { open_linear(files, c, "i", 2, 2); }), Contains("\"i.weight\"") && Contains("I32"));
  CHECK_THAT(test::refusal([&] { open_linear(files, c, "biased", 3, 2); }), Contains("\"biased\"") && Contains("bias"));
  CHECK_THAT(test::refusal([&] { read_vector(files, "norm.weight", 5); }), Contains("\"norm.weight\""));
  CHECK_THAT(test::refusal([&] { read_vector(files, "i.weight", 4); }), Contains("\"i.weight\""));
}

TEST_CASE("packed tensors that are missing or do not fit are refused by name") {
  const packing how{packed_format::compressed_tensors, 4, false, 8};
  const config c = with_quantization(quantization_json(how, {"lm_head"}));
  struct part {
    std::string name, dtype;
    std::vector<index_t> shape;
    std::string bytes;
  };
  const auto shape_bytes = [](std::int64_t n, std::int64_t k) {
    const std::int64_t both[] = {n, k};
    return std::string(reinterpret_cast<const char*>(both), 16);
  };
  const std::vector<part> good = {{"q.weight_packed", "I32", {8, 2}, std::string(64, '\x12')},
                                  {"q.weight_scale", "F32", {8, 2}, std::string(64, '\x3f')},
                                  {"q.weight_zero_point", "I32", {1, 2}, std::string(8, '\x21')},
                                  {"q.weight_shape", "I64", {2}, shape_bytes(8, 16)}};
  const auto open = [&](const std::vector<part>& parts) {
    const test::temporary_directory model;
    {
      safetensors_writer writer(model.path(), 1 << 20);
      for (const part& p : parts) writer.add(p.name, p.dtype, p.shape, p.bytes.data(), p.bytes.size());
      writer.finish();
    }
    const checkpoint files(model.path());
    float row[16];
    open_linear(files, c, "q", 8, 16)->rows(0, 1, row);
    return row[0];
  };
  const float scale = bit_cast<float>(0x3f3f3f3f);
  CHECK(open(good) == (2 - 1) * scale);  // code 2, zero point of row 0 is 1
  for (size_t i = 0; i < good.size(); ++i) {
    std::vector<part> parts = good;
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i));
    CHECK_THAT(test::refusal([&] { open(parts); }), Contains("\"" + good[i].name + "\""));
    parts = good;
    parts[i].shape.push_back(1);
    CHECK_THAT(test::refusal([&] { open(parts); }), Contains("\"" + good[i].name + "\""));
    parts = good;
    parts[i].dtype = "F64";
    parts[i].bytes += parts[i].bytes;
    if (parts[i].name == "q.weight_shape") parts[i].bytes.resize(16);
    CHECK_THAT(test::refusal([&] { open(parts); }), Contains("\"" + good[i].name + "\""));
  }
  std::vector<part> parts = good;
  parts[3].bytes = shape_bytes(16, 8);
  CHECK_THAT(test::refusal([&] { open(parts); }), Contains("\"q.weight_shape\"") && Contains("[16, 8]"));
  parts = good;
  parts[1].bytes = std::string(60, '\x3f') + "\xff\xff\xff\xff";
  CHECK_THAT(test::refusal([&] { open(parts); }), Contains("\"q.weight_scale\"") && Contains("NaN"));
}

namespace {

json good_quantization() {
  return quantization_json({packed_format::compressed_tensors, 4, false, 128}, {"lm_head", "re:.*layers\\.0\\..*"});
}

std::optional<packing> packing_of(const json& quantization, const std::string& name) {
  return quantization::read(with_quantization(quantization), "config.json")->of(name);
}

std::string refused(const json& quantization) {
  const std::string what = test::refusal([&] { packing_of(quantization, "model.layers.1.mlp.up_proj"); });
  CHECK_THAT(what, Contains("config.json, quantization_config"));
  return what;
}

}  // namespace

TEST_CASE("ignored names, patterns and the embedding stay dense, the rest is packed as its group says") {
  const json q = good_quantization();
  CHECK_FALSE(packing_of(q, "lm_head"));
  CHECK(packing_of(q, "lm_head2"));
  CHECK_FALSE(packing_of(q, "model.layers.0.mlp.up_proj"));
  CHECK(packing_of(q, "model.layers.10.mlp.up_proj"));
  CHECK_FALSE(packing_of(q, "model.embed_tokens"));
  const auto how = packing_of(q, "model.layers.1.mlp.up_proj");
  REQUIRE(how);
  CHECK(how->bits == 4);
  CHECK(how->group == 128);
  CHECK_FALSE(how->symmetric);
  CHECK_FALSE(quantization::read(config{}, "config.json"));
}

TEST_CASE("patterns match as Python's re.match does: from the start, not to the end") {
  json q = good_quantization();
  q["ignore"] = {"re:model\\.layers\\.1", "re:up_proj", "re:a*"};
  CHECK_FALSE(packing_of(q, "model.layers.1.mlp.up_proj"));
  CHECK_FALSE(packing_of(q, "model.layers.17.mlp.up_proj"));
  q["ignore"] = {"re:up_proj", "re:mlp|.*down_proj$"};
  CHECK(packing_of(q, "model.layers.1.mlp.up_proj"));
  CHECK_FALSE(packing_of(q, "model.layers.1.mlp.down_proj"));
  CHECK(packing_of(q, "model.layers.1.mlp.down_proj.x"));
  q["ignore"] = {"re:(unclosed"};
  CHECK_THAT(refused(q), Contains("config.json"));
}

TEST_CASE("a target's name goes before a pattern, and a pattern before the class") {
  json q = good_quantization();
  const auto group = [&](int bits, const char* target) {
    json g = good_quantization()["config_groups"]["group_0"];
    g["weights"]["num_bits"] = bits;
    g["targets"] = {target};
    return g;
  };
  q["ignore"] = json::array();
  q["config_groups"] = {{"a", group(2, "Linear")}, {"b", group(3, "re:.*v_proj")}, {"c", group(8, "layers.0.v_proj")}};
  CHECK(packing_of(q, "layers.0.v_proj")->bits == 8);
  CHECK(packing_of(q, "layers.1.v_proj")->bits == 3);
  CHECK(packing_of(q, "layers.1.q_proj")->bits == 2);
  q["config_groups"].erase("a");
  CHECK_FALSE(packing_of(q, "layers.1.q_proj"));
}

TEST_CASE("what written configs say reads back") {
  for (const int bits : {2, 3, 4, 8})
    for (const bool symmetric : {false, true})
      for (const index_t group : {-1, 32, 64, 128}) {
        const packing how{packed_format::compressed_tensors, bits, symmetric, group};
        const auto read = packing_of(quantization_json(how, {"lm_head"}), "model.layers.0.mlp.up_proj");
        REQUIRE(read);
        CHECK(read->bits == bits);
        CHECK(read->symmetric == symmetric);
        CHECK(read->group == group);
      }
  for (const packed_format format : {packed_format::awq_gemm, packed_format::awq_gemv, packed_format::awq_gemv_fast}) {
    const json q = quantization_json({format, 4, false, 64}, {"lm_head", "layers.3.mlp"});
    const auto read = packing_of(q, "model.layers.0.mlp.up_proj");
    REQUIRE(read);
    CHECK(read->format == format);
    CHECK(read->group == 64);
    CHECK_FALSE(packing_of(q, "model.layers.3.mlp.up_proj"));
    CHECK_FALSE(packing_of(q, "lm_head"));
    CHECK(quantization_json({format, 4, false, 64}, {"lm_head"})["modules_to_not_convert"].is_null());
    CHECK_THROWS_AS(quantization_json({format, 4, false, 64}, {"re:.*"}), usage_error);
  }
}

TEST_CASE("a quantization that cannot be read is refused by what it asks for") {
  const auto broken = [](const char* pointer, const json& value) {
    json q = good_quantization();
    q[json::json_pointer(pointer)] = value;
    return refused(q);
  };
  CHECK_THAT(broken("/quant_method", "aqlm"), Contains("aqlm"));
  CHECK_THAT(broken("/quant_method", nullptr), Contains("quant_method"));
  CHECK_THAT(broken("/format", "float-quantized"), Contains("float-quantized"));
  CHECK_THAT(broken("/kv_cache_scheme", {{"num_bits", 8}}), Contains("kv_cache_scheme"));
  CHECK_THAT(broken("/transform_config", {{"x", 1}}), Contains("transform_config"));
  CHECK_THAT(broken("/sparsity_config", {{"format", "sparse-24-bitmask"}}), Contains("sparse-24"));
  CHECK_THAT(broken("/ignore", {1}), Contains("ignore"));
  CHECK_THAT(broken("/config_groups", json::object()), Contains("config_groups"));
  CHECK_THAT(broken("/config_groups/group_0", 3), Contains("group_0"));
  const std::string group = "/config_groups/group_0/";
  CHECK_THAT(broken((group + "input_activations").c_str(), {{"num_bits", 8}}), Contains("input_activations"));
  CHECK_THAT(broken((group + "format").c_str(), "int-quantized"), Contains("int-quantized"));
  CHECK_THAT(broken((group + "targets").c_str(), "Linear"), Contains("targets"));
  CHECK_THAT(broken((group + "weights").c_str(), nullptr), Contains("weights"));
  const std::string weights = group + "weights/";
  CHECK_THAT(broken((weights + "type").c_str(), "float"), Contains("float"));
  for (const json& bad : {json(0), json(9), json(-4), json("4"), json(4.5), json(1e30)})
    CHECK_THAT(broken((weights + "num_bits").c_str(), bad), Contains("num_bits"));
  for (const json& bad : {json(0), json(-1), json("128"), json(1ll << 40)})
    CHECK_THAT(broken((weights + "group_size").c_str(), bad), Contains("group_size"));
  CHECK_THAT(broken((weights + "strategy").c_str(), "tensor"), Contains("tensor"));
  CHECK_THAT(broken((weights + "dynamic").c_str(), true), Contains("dynamic"));
  CHECK_THAT(broken((weights + "symmetric").c_str(), 1), Contains("symmetric"));
}

TEST_CASE("an AutoAWQ config that cannot be read is refused by what it asks for") {
  const auto broken = [](const char* key, const json& value) {
    json q = quantization_json({packed_format::awq_gemm, 4, false, 128}, {});
    q[key] = value;
    return refused(q);
  };
  CHECK_THAT(broken("bits", 8), Contains("bits"));
  CHECK_THAT(broken("group_size", 0), Contains("group_size"));
  CHECK_THAT(broken("zero_point", false), Contains("zero_point"));
  CHECK_THAT(broken("version", "exllama"), Contains("exllama"));
  CHECK_THAT(broken("version", "marlin"), Contains("zero_point"));
  CHECK_THAT(broken("modules_to_not_convert", "lm_head"), Contains("modules_to_not_convert"));
}

}  // namespace weights_tests
