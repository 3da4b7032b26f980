// SPDX-License-Identifier: Apache-2.0
/// @file
/// Every format that a checkpoint is written in: read back exactly, in the bytes of its own package, and refused by a
/// sentence where its tensors or its config do harm.
#include <catch2/catch.hpp>
#include <cstring>
#include <numeric>

#include "mistral/json.hpp"
#include "mistral/output.hpp"
#include "mistral/packed_writer.hpp"
#include "mistral/weights.hpp"
#include "nibble/fit.hpp"
#include "nibble/host/pack.hpp"
#include "support/files.hpp"
#include "support/model.hpp"
#include "support/places.hpp"
#include "support/program.hpp"

namespace formats_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;
using test::words;

namespace {

constexpr const char* name = "model.layers.0.mlp.up_proj";

config with_quantization(json quantization) {
  config c;
  c.json["quantization_config"] = std::move(quantization);
  return c;
}

/// Codes of all values, scales that fp16 holds, zero points from `least_zero` up, groups in an order of their own if asked.
quantized_linear made_up(index_t n, index_t k, const packing& how, int32_t least_zero) {
  quantized_linear q = quantized_linear::blank(n, k, how.group);
  const int32_t levels = 1 << how.bits;
  std::uint32_t state = 7;
  const auto draw = [&](std::uint32_t below) { return (state = state * 1664525u + 1013904223u) % 65521u % below; };
  for (uint8_t& code : q.codes) code = static_cast<uint8_t>(draw(static_cast<std::uint32_t>(levels)));
  for (params& p : q.parameters) {
    p.scale = static_cast<float>(fp16(0.001f + 0.0001f * static_cast<float>(draw(100))));
    p.zero = how.symmetric ? levels / 2
                           : least_zero + static_cast<int32_t>(draw(static_cast<std::uint32_t>(levels - least_zero)));
  }
  if (!how.reordered) return q;
  for (index_t j = 0; j < k; ++j)
    q.group_of.push_back(static_cast<int32_t>(j * 7 % k / how.group));  // 7 and k: coprime
  return q;
}

std::vector<float> dequantized(const quantized_linear& q, const packing& how) {
  std::vector<float> w(static_cast<size_t>(q.n * q.k));
  dequantize(q, how.group, scheme_of(how, dtype::f16), {w.data(), q.n, q.k});
  return w;
}

void write(const test::fs::path& directory, const quantized_linear& q, const packing& how,
           const std::string& linear = name) {
  safetensors_writer writer(directory, 1 << 24);
  write_packed(writer, linear, q, how, dtype::f16);
  writer.finish();
}

struct shape_of_case {
  packing how;
  index_t n, k;
};

std::vector<shape_of_case> all_cases() {
  std::vector<shape_of_case> all;
  for (const packed_format format : {packed_format::gptq, packed_format::gptq_v2})
    for (const int bits : {2, 3, 4, 8})
      for (const bool symmetric : {false, true})
        for (const index_t group : {-1, 32, 64}) {
          all.push_back({{format, bits, symmetric, group}, 96, 128});
          if (group < 0) continue;
          all.push_back(all.back());
          all.back().how.reordered = true;
        }
  for (const index_t group : {-1, 32, 64, 128})
    all.push_back({{packed_format::awq_gemv_fast, 4, false, group}, 24, 256});
  all.push_back({{packed_format::marlin, 4, true, 128}, 512, 256});
  all.push_back({{packed_format::marlin, 4, true, 128}, 256, 128});
  packing older{packed_format::compressed_tensors, 4, false, 32};
  all.push_back({older, 24, 128});
  return all;
}

}  // namespace

TEST_CASE(
    "what is written in a format reads back as exactly what its codes stand for, and takes the bytes that were told") {
  for (const auto& [how, n, k] : all_cases()) {
    CAPTURE(to_string(how.format), to_string(how));
    const quantized_linear q = made_up(n, k, how, how.format == packed_format::gptq ? 1 : 0);
    const std::vector<float> want = dequantized(q, how);
    const test::temporary_directory model;
    write(model.path(), q, how);
    const checkpoint files(model.path());
    std::uint64_t bytes = 0;
    for (const auto& [tensor_name, t] : files.tensors()) bytes += static_cast<std::uint64_t>(t.bytes);
    CHECK(bytes == packed_bytes(n, k, how, dtype::f16));
    const config c = with_quantization(quantization_json(how, {"lm_head"}));
    const auto read = open_linear(files, c, name, n, k);
    std::vector<float> got(want.size());
    for (const index_t step : {n, index_t{5}}) {
      for (index_t first = 0; first < n; first += step) read->rows(first, min(step, n - first), got.data() + first * k);
      CHECK((got == want));
    }
    // What decoding multiplies by: one input at a time gives a column of the weights.
    const resident_linear resident = read->resident();
    CHECK(resident.bits == how.bits);
    std::vector<float> x(static_cast<size_t>(k)), y(static_cast<size_t>(n));
    for (index_t j = 0; j < k; j += 11) {
      x[static_cast<size_t>(j)] = 1.0f;
      resident.multiply({x.data(), 1, k}, {y.data(), 1, n});
      x[static_cast<size_t>(j)] = 0.0f;
      index_t differ = 0;
      for (index_t i = 0; i < n; ++i)
        differ += y[static_cast<size_t>(i)] == want[static_cast<size_t>(i * k + j)] ? 0 : 1;
      CHECK(differ == 0);
    }
  }
}

namespace {

/// The codes and parameters of a golden linear, from its tensors and the weights that they stand for.
quantized_linear read_golden(const checkpoint& files, const std::string& linear, const packing& how, index_t n,
                             index_t k, const std::vector<float>& w) {
  quantized_linear q = quantized_linear::blank(n, k, how.group);
  const tensor& scales = files.at(linear + ".scales");
  std::vector<float> stored(static_cast<size_t>(scales.size())), plain(q.parameters.size());
  read_floats(scales, 0, scales.size(), stored.data());
  const auto unpacked_into = [&](auto layout, const std::vector<float>& from, std::vector<float>& to) {
    host::unpack_scales(layout, matrix<const float>(from.data(), scales.shape[0], scales.shape[1]),
                        matrix<float>(to.data(), n, q.groups));
  };
  std::vector<float> zeros(plain.size(), 8.0f);
  if (how.format == packed_format::marlin) {
    unpacked_into(layout::marlin{4}.scales(), stored, plain);
  } else if (how.format == packed_format::awq_gemv_fast) {
    unpacked_into(layout::awq_gemv_fast{how.group}.scales(), stored, plain);
    read_floats(files.at(linear + ".qzeros"), 0, scales.size(), stored.data());
    unpacked_into(layout::awq_gemv_fast{how.group}.scales(), stored, zeros);
    for (size_t i = 0; i < zeros.size(); ++i) zeros[i] = std::round(-zeros[i] / plain[i]);
  } else {
    const layout::gptq l{how.bits,
                         how.format == packed_format::gptq ? layout::gptq_version::v1 : layout::gptq_version::v2};
    unpacked_into(l.scales(), stored, plain);
    const tensor& t = files.at(linear + ".qzeros");
    std::vector<std::uint32_t> packed(static_cast<size_t>(t.size()));
    std::memcpy(packed.data(), t.data, packed.size() * 4);
    std::vector<uint8_t> codes(zeros.size());
    host::unpack(l.zeros(), matrix<const std::uint32_t>(packed.data(), t.shape[0], t.shape[1]),
                 matrix<uint8_t>(codes.data(), n, q.groups));
    std::copy(codes.begin(), codes.end(), zeros.begin());
    q.group_of.resize(static_cast<size_t>(k));
    std::memcpy(q.group_of.data(), files.at(linear + ".g_idx").data, q.group_of.size() * 4);
  }
  for (size_t i = 0; i < plain.size(); ++i) q.parameters[i] = {plain[i], static_cast<int32_t>(zeros[i])};
  const index_t width = how.group < 0 ? k : how.group;
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < k; ++j) {
      const index_t group = q.group_of.empty() ? j / width : q.group_of[static_cast<size_t>(j)];
      const params p = q.param_matrix()(i, group);
      q.code_matrix()(i, j) =
          static_cast<uint8_t>(std::round(w[static_cast<size_t>(i * k + j)] / p.scale) + static_cast<float>(p.zero));
    }
  return q;
}

/// Writes every linear of a golden directory again; its tensors must have the package's bytes.
index_t written_as_golden(const std::string& directory_name) {
  const test::fs::path directory = test::fs::path(nibble::test::golden_directory) / "weights" / directory_name;
  config c;
  c.json = read_json(directory / "config.json");
  const auto how_of = *quantization::read(c, "config.json");
  const checkpoint files(directory);
  index_t checked = 0;
  for (const auto& [key, expected] : files.tensors()) {
    const auto at = key.rfind(".expected");
    if (at == key.npos || !how_of.of(key.substr(0, at))) continue;
    const std::string linear = key.substr(0, at);
    CAPTURE(linear);
    const packing how = *how_of.of(linear);
    const index_t n = expected.shape[0], k = expected.shape[1];
    std::vector<float> w(static_cast<size_t>(n * k));
    open_linear(files, c, linear, n, k)->rows(0, n, w.data());
    const test::temporary_directory out;
    write(out.path(), read_golden(files, linear, how, n, k, w), how, linear);
    const checkpoint ours(out.path());
    CHECK(ours.tensors().size() == (is_gptq(how.format) ? 4 : how.symmetric ? 2 : 3));
    for (const auto& [own_name, own] : ours.tensors()) {
      CAPTURE(own_name);
      const tensor& theirs = files.at(own_name, own.shape);
      CHECK(theirs.dtype == own.dtype);
      CHECK(std::equal(own.data, own.data + own.bytes, theirs.data, theirs.data + theirs.bytes));
    }
    ++checked;
  }
  return checked;
}

}  // namespace

TEST_CASE("linears are written in the bytes that GPTQModel's and AutoAWQ's own packing gives") {
  CHECK(written_as_golden("gptq") == 12);
  CHECK(written_as_golden("gptq_v2") == 6);
  CHECK(written_as_golden("awq_gemv_fast") == 1);
  CHECK(written_as_golden("marlin") == 1);
}

TEST_CASE(
    "the first GPTQ format gets no zero point of 0: codes move up, or the scale grows and codes follow the weights") {
  const packing how{packed_format::gptq, 2, false, 4};
  const any_scheme scheme = scheme_of(how, dtype::f16);
  const float w[] = {0.0f, 0.1f, 0.2f, 0.1f, /**/ 0.0f, 0.1f, 0.2f, 0.3f, /**/ -0.1f, 0.0f, 0.1f, 0.2f};
  const float scale = static_cast<float>(fp16(0.1f));
  const auto fresh = [&] {
    quantized_linear q = quantized_linear::blank(1, 12, 4);
    q.codes = {0, 1, 2, 1, /**/ 0, 1, 2, 3, /**/ 0, 1, 2, 3};
    q.parameters = {{scale, 0}, {scale, 0}, {scale, 1}};
    return q;
  };
  quantized_linear q = fresh();
  avoid_zero_point_zero(how, scheme, {w, 1, 12}, q);
  CHECK(std::vector<uint8_t>(q.codes.begin(), q.codes.begin() + 4) == std::vector<uint8_t>{1, 2, 3, 2});
  CHECK((q.parameters[0].scale == scale && q.parameters[0].zero == 1));
  CHECK(q.parameters[1].zero == 1);
  CHECK(q.parameters[1].scale == stored_scale(scale * 1.5f, scheme));
  CHECK(std::vector<uint8_t>(q.codes.begin() + 4, q.codes.begin() + 8) == std::vector<uint8_t>{1, 2, 2, 3});
  CHECK(std::vector<uint8_t>(q.codes.begin() + 8, q.codes.end()) == std::vector<uint8_t>{0, 1, 2, 3});
  CHECK((q.parameters[2].scale == scale && q.parameters[2].zero == 1));
  for (const packed_format other : {packed_format::gptq_v2, packed_format::awq_gemm}) {
    quantized_linear same = fresh();
    avoid_zero_point_zero({other, 2, false, 4}, scheme, {w, 1, 12}, same);
    CHECK(same.codes == fresh().codes);
    CHECK(same.parameters[0].zero == 0);
  }
}

TEST_CASE(
    "a g_idx that names no group, or is none, is refused by tensor, in GPTQ files and compressed-tensors of old") {
  for (const packed_format format : {packed_format::gptq, packed_format::compressed_tensors}) {
    const bool gptq = format == packed_format::gptq;
    packing how{format, 4, false, 32};
    how.reordered = gptq;
    quantized_linear q = made_up(32, 64, how, 1);
    q.group_of.clear();
    const std::string order = std::string(name) + (gptq ? ".g_idx" : ".weight_g_idx");
    const auto open = [&](const std::vector<std::int32_t>& groups, const char* type) {
      const test::temporary_directory from, model;
      write(from.path(), q, how);
      const checkpoint made(from.path());
      {
        safetensors_writer writer(model.path(), 1 << 24);
        for (const auto& [key, t] : made.tensors())
          if (key != order) writer.add(key, t.dtype, t.shape, t.data, static_cast<std::uint64_t>(t.bytes));
        if (!groups.empty())
          writer.add(order, type, {static_cast<index_t>(groups.size())}, groups.data(), 4 * groups.size());
        writer.finish();
      }
      const checkpoint files(model.path());
      const auto read = open_linear(files, with_quantization(quantization_json(how, {})), name, 32, 64);
      std::vector<float> w(32 * 64), x(64, 0.0f), y(32);
      read->rows(0, 32, w.data());
      x[1] = 1.0f;
      read->resident().multiply({x.data(), 1, 64}, {y.data(), 1, 32});
      for (size_t i = 0; i < 32; ++i) REQUIRE(y[i] == w[i * 64 + 1]);
      return w;
    };
    std::vector<std::int32_t> halves(64), uneven(64, 1), unset(64, -1);
    for (size_t j = 0; j < 64; ++j) halves[j] = j % 2 == 0 ? 1 : 0;
    uneven[1] = 0;
    q.group_of = halves;
    CHECK((open(halves, "I32") == dequantized(q, how)));
    q.group_of = uneven;
    CHECK((open(uneven, "I32") == dequantized(q, how)));
    q.group_of.clear();
    CHECK((open(unset, "I32") == dequantized(q, how)));
    for (const std::int32_t bad : {2, -2, -1, 1 << 30, std::numeric_limits<std::int32_t>::min()}) {
      std::vector<std::int32_t> hostile = halves;
      hostile[63] = bad;
      CHECK_THAT(test::refusal([&] { open(hostile, "I32"); }),
                 Contains("\"" + order + "\"") && Contains("input 63 into group " + std::to_string(bad)));
    }
    CHECK_THAT(test::refusal([&] { open(std::vector<std::int32_t>(63, 0), "I32"); }), Contains("\"" + order + "\""));
    CHECK_THAT(test::refusal([&] { open(halves, "F32"); }), Contains("\"" + order + "\"") && Contains("I32"));
    if (gptq) CHECK_THAT(test::refusal([&] { open({}, "I32"); }), Contains("\"" + order + "\""));
  }
}

TEST_CASE(
    "GEMV-fast's zero points must be its scales times 0 to 15, and every tensor of a format must be there and fit") {
  for (const auto& [how, n, k] : {shape_of_case{{packed_format::awq_gemv_fast, 4, false, 64}, 8, 128},
                                  shape_of_case{{packed_format::marlin, 4, true, 128}, 256, 128},
                                  shape_of_case{{packed_format::gptq_v2, 3, true, 32}, 32, 64}}) {
    CAPTURE(to_string(how.format));
    const test::temporary_directory whole;
    write(whole.path(), made_up(n, k, how, 0), how);
    const checkpoint made(whole.path());
    const packing as = how;
    const index_t rows = n, cols = k;
    const auto open = [&](const std::string& changed,
                          const std::function<void(std::string&, std::vector<index_t>&, std::string&)>& change) {
      const test::temporary_directory model;
      {
        safetensors_writer writer(model.path(), 1 << 24);
        for (const auto& [key, t] : made.tensors()) {
          std::string type = t.dtype, bytes(reinterpret_cast<const char*>(t.data), static_cast<size_t>(t.bytes));
          std::vector<index_t> shape = t.shape;
          if (key == changed) change(type, shape, bytes);
          if (!type.empty()) writer.add(key, type, shape, bytes.data(), bytes.size());
        }
        writer.finish();
      }
      const checkpoint files(model.path());
      open_linear(files, with_quantization(quantization_json(as, {})), name, rows, cols);
    };
    for (const auto& [key, t] : made.tensors()) {
      CAPTURE(key);
      const std::string tensor_name = key;
      if (key.find("g_idx") == key.npos)
        CHECK_THAT(test::refusal([&] { open(tensor_name, [](auto& type, auto&, auto&) { type.clear(); }); }),
                   Contains("\"" + tensor_name + "\""));
      CHECK_THAT(test::refusal([&] { open(tensor_name, [](auto&, auto& shape, auto&) { shape.push_back(1); }); }),
                 Contains("\"" + tensor_name + "\""));
      CHECK_THAT(test::refusal([&] {
                   open(tensor_name, [](auto& type, auto& shape, auto& bytes) {
                     type = "I8";
                     bytes.resize(1);
                     for (const index_t extent : shape) bytes.resize(bytes.size() * static_cast<size_t>(extent));
                   });
                 }),
                 Contains("\"" + tensor_name + "\""));
    }
    if (how.format != packed_format::awq_gemv_fast) continue;
    const std::string zeros = std::string(name) + ".qzeros";
    const std::uint16_t between = fp16_bits(-7.5f * made_up(n, k, how, 0).parameters[0].scale);
    CHECK_THAT(
        test::refusal([&] { open(zeros, [&](auto&, auto&, auto& bytes) { std::memcpy(bytes.data(), &between, 2); }); }),
        Contains("\"" + zeros + "\"") && Contains("zero point from 0 to 15"));
    for (const char* wrong : {"\x00\x7c", "\x00\x7e", "\x00\x3c", "\x00\xbc"})  // ∞, NaN, 1, −1
      CHECK_THAT(test::refusal([&] {
                   open(zeros, [&](auto&, auto&, auto& bytes) { bytes.replace(0, 2, std::string(wrong, 2)); });
                 }),
                 Contains("\"" + zeros + "\"") && Contains("zero point from 0 to 15"));
  }
}

TEST_CASE("a GPTQ config reads as GPTQModel and vLLM match it: what is left out first, then the first rule of a name") {
  const json q = {{"quant_method", "gptq"},
                  {"bits", 4},
                  {"group_size", 128},
                  {"sym", true},
                  {"desc_act", false},
                  {"checkpoint_format", "gptq_v2"},
                  {"dynamic",
                   {{"+:.*\\.0\\.mlp", {{"bits", 8}, {"group_size", 64}}},
                    {"model\\.layers\\.0", {{"bits", 3}, {"sym", false}, {"desc_act", true}}},
                    {"mlp", {{"bits", 2}}},
                    {"-:.*down_proj", json::object()}}}};
  const auto of = [&](const json& from, const std::string& linear) {
    return quantization::read(with_quantization(from), "config.json")->of(linear);
  };
  const auto fine = of(q, "model.layers.0.mlp.up_proj"), coarse = of(q, "model.layers.0.self_attn.q_proj"),
             plain = of(q, "model.layers.1.mlp.up_proj");
  REQUIRE((fine && coarse && plain));
  CHECK((fine->bits == 8 && fine->group == 64 && fine->symmetric && !fine->reordered));
  CHECK((coarse->bits == 3 && coarse->group == 128 && !coarse->symmetric && coarse->reordered));
  CHECK((plain->bits == 4 && plain->format == packed_format::gptq_v2));
  CHECK_FALSE(of(q, "model.layers.0.mlp.down_proj"));
  CHECK_FALSE(of(q, "lm_head"));
  CHECK_FALSE(of(q, "model.embed_tokens"));
  json with_head = q;
  with_head["lm_head"] = true;
  CHECK(of(with_head, "lm_head"));
  json older = q;
  older.erase("checkpoint_format"), older.erase("dynamic");
  CHECK(of(older, "model.layers.1.mlp.up_proj")->format == packed_format::gptq);
  const auto refused = [&](const char* pointer, const json& value) {
    json bad = q;
    bad[json::json_pointer(pointer)] = value;
    const std::string what = test::refusal([&] { of(bad, "model.layers.1.mlp.up_proj"); });
    CHECK_THAT(what, Contains("config.json, quantization_config"));
    return what;
  };
  for (const json& bad : {json(5), json(0), json("4"), json(nullptr), json(1e30)})
    CHECK_THAT(refused("/bits", bad), Contains("\"bits\""));
  for (const json& bad : {json(0), json(-2), json("128"), json(1ll << 40)})
    CHECK_THAT(refused("/group_size", bad), Contains("\"group_size\""));
  CHECK_THAT(refused("/checkpoint_format", "marlin"), Contains("marlin"));
  CHECK_THAT(refused("/pack_dtype", "int8"), Contains("int8"));
  CHECK_THAT(refused("/sym", 1), Contains("\"sym\""));
  CHECK_THAT(refused("/desc_act", "yes"), Contains("\"desc_act\""));
  CHECK_THAT(refused("/dynamic", {1}), Contains("\"dynamic\""));
  CHECK_THAT(refused("/dynamic", {{"+:(", json::object()}}), Contains("dynamic"));
  CHECK_THAT(refused("/dynamic", {{"+:x", 4}}), Contains("+:x"));
  CHECK_THAT(refused("/dynamic", {{"+:x", {{"bits", 7}}}}), Contains("+:x") && Contains("bits"));
  CHECK_THAT(refused("/modules_in_block_to_quantize", {{"mlp.up_proj"}}), Contains("modules_in_block_to_quantize"));
}

TEST_CASE("a GPTQ config names each linear that is left out or packed otherwise, and vLLM's fused ones too") {
  const packing most{packed_format::gptq_v2, 4, true, 128}, other{packed_format::gptq_v2, 8, true, 64};
  std::vector<std::string> linears = {"lm_head"};
  for (const char* layer : {"0", "1", "10"})
    for (const char* each :
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"})
      linears.push_back(std::string("model.layers.") + layer + "." + each);
  const quantization q({{most, {"Linear"}}, {other, {"re:.*\\.1\\.self_attn"}}}, {"lm_head", "re:.*\\.0\\.mlp"},
                       "test");
  const json written = quantization_json(q, linears);
  CHECK(written["bits"] == 4);
  CHECK(written["checkpoint_format"] == "gptq_v2");
  const json& rules = written["dynamic"];
  CHECK(rules.contains("-:^model\\.layers\\.0\\.mlp\\.gate_proj$"));
  CHECK(rules.contains("-:^model\\.layers\\.0\\.mlp\\.gate_up_proj$"));
  CHECK(rules.contains("+:^model\\.layers\\.1\\.self_attn\\.qkv_proj$"));
  CHECK(rules["+:^model\\.layers\\.1\\.self_attn\\.v_proj$"] ==
        json({{"bits", 8}, {"group_size", 64}, {"sym", true}, {"desc_act", false}}));
  CHECK(rules.size() == 3 + 4);
  CHECK(rules.begin().key().rfind("-:", 0) == 0);
  const auto read = *quantization::read(with_quantization(written), "config.json");
  for (const std::string& linear : linears) {
    CAPTURE(linear);
    CHECK((read.of(linear) == q.of(linear)));
  }
}

namespace {

struct workplace {
  test::temporary_directory root;
  test::fs::path model = root / "model";

  workplace() { test::write_model({}, model); }
  test::outcome run(const char* program, const words& more) const {
    words all = {"--model",
                 model.string(),
                 "--output",
                 (root / "out").string(),
                 "--max-seq-length",
                 "64",
                 "--num-calibration-samples",
                 "5",
                 "--overwrite"};
    all.insert(all.end(), more.begin(), more.end());
    return test::run_program(program, all);
  }
  std::string done(const char* program, const words& more) const {
    const auto result = run(program, more);
    INFO(result.err);
    REQUIRE(result.status == 0);
    return result.err;
  }
};

}  // namespace

TEST_CASE(
    "with --actorder descending groups are of inputs by falling activation, all of one size, and readers obey them") {
  const workplace w;
  w.done("gptq_mistral", {"--format", "gptq-v2", "--group-size", "32", "--actorder", "descending"});
  const json q = read_json(w.root / "out/quantize_config.json");
  CHECK(q == read_json(w.root / "out/config.json")["quantization_config"]);
  CHECK(q["desc_act"] == true);
  CHECK(q["sym"] == false);
  CHECK_FALSE(q.contains("dynamic"));
  const config before = read_config(w.model), after = read_config(w.root / "out");
  const checkpoint dense(w.model), packed(w.root / "out");
  index_t moved = 0;
  for (index_t layer = 0; layer < before.layers; ++layer)
    for (const projection p : projections) {
      const index_t n = outputs(before, p), k = inputs(before, p);
      const std::string linear = projection_name(layer, p);
      CAPTURE(linear);
      std::vector<std::int32_t> group_of(static_cast<size_t>(k));
      std::memcpy(group_of.data(), packed.at(linear + ".g_idx", {k}).data, group_of.size() * 4);
      std::vector<index_t> size(static_cast<size_t>(k / 32));
      for (index_t j = 0; j < k; ++j) {
        ++size.at(static_cast<size_t>(group_of[static_cast<size_t>(j)]));
        moved += group_of[static_cast<size_t>(j)] == j / 32 ? 0 : 1;
      }
      CHECK(std::all_of(size.begin(), size.end(), [](index_t each) { return each == 32; }));
      std::vector<float> a(static_cast<size_t>(n * k)), b = a;
      open_linear(dense, before, linear, n, k)->rows(0, n, a.data());
      open_linear(packed, after, linear, n, k)->rows(0, n, b.data());
      double error = 0, power = 0;
      for (size_t i = 0; i < a.size(); ++i) {
        error += std::pow(static_cast<double>(a[i] - b[i]), 2);
        power += std::pow(static_cast<double>(a[i]), 2);
      }
      // Steps are at most 2/15 of a group's largest weight, √3 of the rms: noise of 6.7 % rms. A group mistaken for another
      // gives tens of percent.
      CHECK(error < 0.04 * power);
    }
  CHECK(moved > 0);
}

TEST_CASE("a recipe that asks for groups in the order of activations is followed in GPTQ's formats, and written so") {
  const workplace w;
  w.done("gptq_mistral", {"--format", "gptq", "--scheme", "W4A16", "--group-size", "32", "--actorder", "descending"});
  const std::string weights = test::read_bytes(w.root / "out/model.safetensors"),
                    recipe = test::read_bytes(w.root / "out/recipe.yaml"), copy = (w.root / "recipe.yaml").string();
  CHECK_THAT(recipe, Contains("actorder: group"));
  test::write_bytes(copy, recipe);
  w.done("gptq_mistral", {"--format", "gptq", "--recipe", copy});
  CHECK((test::read_bytes(w.root / "out/model.safetensors") == weights));
  const auto refused = w.run("gptq_mistral", {"--recipe", copy});
  CHECK(refused.status == 2);
  CHECK_THAT(refused.err, Contains("recipe.yaml") && Contains("--format gptq"));
}

TEST_CASE("a format is refused for schemes and orders that it cannot hold, and a user told what its readers refuse") {
  const workplace w;
  for (const auto& [more, named] : std::vector<std::pair<words, words>>{
           {{"--format", "marlin"}, {"--format marlin", "W4A16"}},
           {{"--format", "marlin", "--scheme", "W4A16"}, {"q_proj", "multiple of 256"}},
           {{"--format", "awq-gemv-fast", "--scheme", "W8A16"}, {"--format awq-gemv-fast", "W4A16_ASYM"}},
           {{"--format", "gptq", "--scheme", "W8A8", "--method", "rtn"}, {"--format gptq", "compressed-tensors"}},
           {{"--actorder", "descending"}, {"--actorder descending", "--format gptq"}},
           {{"--actorder", "descending", "--format", "awq-gemm"}, {"--actorder descending", "--format gptq"}}}) {
    CAPTURE(more);
    const auto refused = w.run("gptq_mistral", more);
    CHECK(refused.status == 2);
    for (const std::string& word : named) CHECK_THAT(refused.err, Contains(word));
    CHECK_FALSE(test::fs::exists(w.root / "out"));
  }
  CHECK_THAT(w.done("awq_mistral", {"--format", "gptq", "--method", "rtn", "--group-size", "32"}),
             Contains("GPTQModel loads weights with zero points as --format gptq-v2 only"));
  CHECK_THAT(w.done("awq_mistral", {"--format", "gptq-v2", "--method", "rtn", "--group-size", "32"}),
             !Contains("note"));
  CHECK_THAT(test::read_bytes(w.root / "out/README.md"), Contains("With GPTQModel") && Contains("\n- gptq\n"));
}

}  // namespace formats_tests
