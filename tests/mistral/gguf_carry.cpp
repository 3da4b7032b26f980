// SPDX-License-Identifier: Apache-2.0
/// @file
/// Codes of packed linears in GGUF files: what blocks hold of them, and that files hold the very weights.
#include "gguf/carry.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "mistral/forward.hpp"
#include "mistral/gguf_blocks.hpp"
#include "mistral/gguf_model.hpp"
#include "support/gguf_run.hpp"
#include "support/model.hpp"
#include "support/program.hpp"

namespace gguf_carry_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;
using test::words;

namespace {

/// A linear of codes in memory.
class made_linear : public linear_weights {
 public:
  index_t n, k, width;
  int bits;
  std::vector<uint8_t> stored;
  std::vector<params> p;
  std::vector<int32_t> group_of;

  /// Every code in every group, from one row to the next in another place.
  made_linear(index_t outputs, index_t inputs, index_t group, int code_bits, const std::function<params(index_t)>& of)
      : n(outputs), k(inputs), width(group), bits(code_bits) {
    for (index_t i = 0; i < n * ceil_div(k, width); ++i) p.push_back(of(i));
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < k; ++j) stored.push_back(static_cast<uint8_t>((3 * i + j) % (1 << bits)));
  }
  index_t outputs() const override { return n; }
  index_t inputs() const override { return k; }
  bool packed() const override { return true; }
  resident_linear resident() const override { return {}; }
  integer_codes codes() const override {
    return {bits, 1, width, {p.data(), n, ceil_div(k, width)}, group_of.empty() ? nullptr : &group_of};
  }
  void read_codes(index_t first, index_t count, uint8_t* out) const override {
    std::copy_n(stored.data() + first * k, count * k, out);
  }
  void rows(index_t first, index_t count, float* out) const override {
    for (index_t i = first; i < first + count; ++i)
      for (index_t j = 0; j < k; ++j) {
        const params one = p[static_cast<size_t>(i * ceil_div(k, width) + codes().group(j))];
        *out++ = static_cast<float>(stored[static_cast<size_t>(i * k + j)] - one.zero) * one.scale;
      }
  }
  gguf_type smallest() const { return smallest_exact(codes(), k); }
  /// Whether the type's blocks decode to the floats, bit for bit.
  bool carries(gguf_type type) const {
    std::vector<std::byte> blocks(static_cast<size_t>(n * k / 32) * info_of(type).bytes);
    carry_rows(*this, type, 0, 1, blocks.data());
    carry_rows(*this, type, 1, n - 1, blocks.data() + static_cast<size_t>(k / 32) * info_of(type).bytes);
    std::vector<float> got(stored.size()), expected(stored.size());
    decode_blocks(type, blocks.data(), n * k / 32, got.data());
    rows(0, n, expected.data());
    return std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0;
  }
};

constexpr gguf_type simple_types[] = {gguf_type::q4_0, gguf_type::q4_1, gguf_type::q5_0, gguf_type::q5_1,
                                      gguf_type::q8_0};
/// 1025/1024 · 2^−6: 11 significant bits, all that fp16 has.
constexpr float full = 1025.0f / 65536.0f;

std::vector<float> rows_of(const linear_weights& w) {
  std::vector<float> values(static_cast<size_t>(w.outputs() * w.inputs()));
  w.rows(0, w.outputs(), values.data());
  return values;
}

/// Runs the program, which is to succeed; its JSON.
void packed_by(const std::string& program, const fs::path& model, const fs::path& output, words more) {
  words arguments = {"--model", model.string(), "--output", output.string(), "--overwrite"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const auto result = test::run_program(program, arguments);
  CAPTURE(result.err);
  REQUIRE(result.status == 0);
}

/// Linears of the file that are, bit for bit, those of the directory.
index_t equal_linears(const fs::path& directory, const fs::path& file) {
  const checkpoint before(directory), after(file);
  const config c = read_config(directory), there = read_config(file);
  index_t equal = 0;
  for (index_t layer = 0; layer < c.layers; ++layer)
    for (const projection p : projections) {
      const auto name = projection_name(layer, p);
      const auto a = rows_of(*open_linear(before, c, name, outputs(c, p), inputs(c, p)));
      const auto b = rows_of(*open_linear(after, there, name, outputs(c, p), inputs(c, p)));
      equal += std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0 ? 1 : 0;
    }
  return equal;
}

const test::model_spec small = [] {
  test::model_spec spec;
  spec.hidden = 256, spec.intermediate = 256, spec.head_dim = 64, spec.kv_heads = 4, spec.layers = 1;
  return spec;
}();

}  // namespace

TEST_CASE("codes of every width and zero point get the smallest blocks that hold them, which decode to their weights") {
  const auto expected = [](int bits, int zero) {
    const int low = -zero, high = (1 << bits) - 1 - zero;
    if (low >= -8 && high <= 7) return gguf_type::q4_0;
    if (low >= -16 && high <= 15) return gguf_type::q5_0;
    if (low >= -128 && high <= 127) return gguf_type::q8_0;
    return gguf_type::f32;
  };
  for (int bits = 1; bits <= 8; ++bits)
    for (int zero = 0; zero < 1 << bits; zero += bits < 6 ? 1 : 13) {
      CAPTURE(bits, zero);
      // A zero point of 3 · 2^i or more with `full` takes more than fp16's digits; 2^i, and 0, do not.
      const made_linear w(3, 96, 32, bits, [&](index_t i) { return params{i % 2 ? full : full / 8, zero}; });
      const bool offset = bits <= 5 && (zero & (zero - 1)) == 0;
      const gguf_type plain = expected(bits, zero);
      const gguf_type with_offset = !offset                                 ? plain
                                    : bits <= 4 && plain != gguf_type::q4_0 ? gguf_type::q4_1
                                    : bits == 5 && plain == gguf_type::q8_0 ? gguf_type::q5_1
                                                                            : plain;
      CHECK(w.smallest() == with_offset);
      for (const gguf_type type : simple_types)
        if (can_carry(w.codes(), w.k, type)) CHECK(w.carries(type));
    }
}

TEST_CASE("scales of zero, below zero and below fp16's normal numbers keep every bit, signs of zeros too") {
  for (const float scale : {0.0f, -0.0f, -0.25f, 0x1p-24f, 0x1.ff8p-15f, 65504.0f}) {
    CAPTURE(scale);
    const made_linear w(2, 64, 64, 4, [&](index_t) { return params{scale, 8}; });
    CHECK(w.smallest() == gguf_type::q4_0);
    index_t types = 0;
    for (const gguf_type type : simple_types)
      if (can_carry(w.codes(), w.k, type)) {
        CHECK(w.carries(type));
        ++types;
      }
    CHECK(types == (scale > 0.0f && scale < 8188.0f ? 5 : 3));
  }
}

TEST_CASE(
    "codes are not carried where blocks would lie: scales beyond fp16, groups inside blocks, inputs in another order") {
  const auto why = [](const made_linear& w, gguf_type type = gguf_type::q4_0) {
    const auto held = can_carry(w.codes(), w.k, type);
    return std::string(held ? "" : held.reason);
  };
  const auto of = [](float scale) { return [=](index_t i) { return params{i == 3 ? scale : 0.5f, 8}; }; };
  for (const float scale : {0x1p-25f, 65536.0f, full * 1.25f, std::numeric_limits<float>::infinity()})
    CHECK_THAT(why(made_linear(2, 64, 32, 4, of(scale))), Contains("scales that fp16 does not hold"));
  CHECK(why(made_linear(2, 64, 32, 4, of(full))).empty());
  CHECK_THAT(why(made_linear(2, 48, 48, 4, of(1.0f))), Contains("no whole blocks"));
  CHECK_THAT(why(made_linear(2, 64, 16, 4, of(1.0f))), Contains("inside blocks"));
  CHECK_THAT(why(made_linear(2, 96, 48, 4, of(1.0f))), Contains("inside blocks"));
  CHECK_THAT(why(made_linear(2, 64, 32, 4, of(1.0f)), gguf_type::q4_k), Contains("other numbers"));
  CHECK_THAT(why(made_linear(2, 64, 32, 5, of(1.0f))), Contains("more bits"));
  made_linear moved(2, 96, 32, 4, [](index_t i) { return params{static_cast<float>(i + 1), 8}; });
  for (index_t j = 0; j < 96; ++j) moved.group_of.push_back(static_cast<int32_t>(2 - j / 32));
  CHECK(moved.carries(moved.smallest()));  // whole groups in another order are still whole blocks
  std::swap(moved.group_of[5], moved.group_of[40]);
  CHECK_THAT(why(moved), Contains("another order"));
  // One bit a code, and scales of few digits: floats hold what no block does.
  made_linear few(2, 48, 48, 1, [](index_t) { return params{0.75f, 0}; });
  CHECK(few.smallest() == gguf_type::bf16);
  few.p[0].scale = full;
  CHECK(few.smallest() == gguf_type::f16);
  few.p[0].scale = 0x1p-30f + 0x1p-53f;
  CHECK(few.smallest() == gguf_type::f32);
}

TEST_CASE(
    "a packed checkpoint of every scheme and format becomes an EXACT file of the very weights, the rest as stored") {
  struct packed {
    const char *program, *type;
    words options;
  };
  const packed all[] = {
      {"awq_mistral", "Q4_0", {"--scheme", "W4A16"}},
      {"awq_mistral", "Q5_0", {"--scheme", "W4A16_ASYM", "--group-size", "32"}},
      {"awq_mistral", "Q4_0", {"--scheme", "W3A16"}},
      {"awq_mistral", "Q4_0", {"--scheme", "W3A16_ASYM", "--group-size", "-1"}},
      {"awq_mistral", "Q4_0", {"--scheme", "W2A16_ASYM", "--group-size", "64"}},
      {"awq_mistral", "Q8_0", {"--scheme", "W8A16"}},
      {"awq_mistral", "F32", {"--scheme", "W8A16_ASYM"}},
      {"awq_mistral", "Q8_0", {"--scheme", "W8A8"}},
      {"awq_mistral", "F32", {"--scheme", "FP8_DYNAMIC"}},
      {"awq_mistral", "Q5_0", {"--scheme", "W4A16_ASYM", "--format", "awq-gemm"}},
      {"awq_mistral", "Q5_0", {"--scheme", "W4A16_ASYM", "--format", "awq-gemv"}},
      {"awq_mistral", "Q5_0", {"--scheme", "W4A16_ASYM", "--format", "awq-gemv-fast"}},
      {"awq_mistral", "Q4_0", {"--scheme", "W4A16", "--format", "marlin"}},
      {"awq_mistral", "Q4_0", {"--scheme", "W4A16", "--format", "gptq"}},
      {"awq_mistral", "Q5_0", {"--scheme", "W4A16_ASYM", "--format", "gptq-v2"}},
      {"awq_mistral", "Q4_0", {"--scheme", "W3A16", "--format", "gptq", "--group-size", "32"}},
  };
  const test::temporary_directory root;
  test::write_model(small, root / "model");
  for (const packed& one : all) {
    words options = one.options;
    std::string shown;
    for (const std::string& word : options) shown += word + " ";
    CAPTURE(shown);
    options.insert(options.end(), {"--method", "rtn"});
    packed_by(one.program, root / "model", root / "packed", options);
    const auto run = test::converted_to_gguf(root / "packed", root / "a.gguf", {"--type", "EXACT"});
    CHECK(equal_linears(root / "packed", root / "a.gguf") == 7);
    const bool floats = one.type == std::string("F32");
    CHECK(run["carried"] == (floats ? 0 : 7));
    CHECK((run["notes"].dump().find("no block holds the codes of 7 packed linears") != std::string::npos) == floats);
    const gguf_file file(root / "a.gguf");
    const checkpoint packed_files(root / "packed");
    for (const gguf_tensor& t : file.tensors()) {
      CAPTURE(t.name);
      const tensor* stored =
          packed_files.contains(checkpoint_name(t.name)) ? &packed_files.at(checkpoint_name(t.name)) : nullptr;
      const bool linear = t.name.rfind("blk.", 0) == 0 && t.dims.size() == 2;
      if (linear) CHECK(info_of(t.type).name == std::string(one.type));
      if (t.dims.size() == 1) CHECK(t.type == gguf_type::f32);
      if (linear || t.dims.size() == 1) continue;
      REQUIRE(stored);
      CHECK(info_of(t.type).name == stored->dtype);
      CHECK(std::memcmp(t.data, stored->data, static_cast<size_t>(t.size)) == 0);
    }
  }
}

TEST_CASE("a type that holds a checkpoint's codes carries them, and one that rounds them a second time tells so") {
  const test::temporary_directory root;
  test::write_model(small, root / "model");
  packed_by("awq_mistral", root / "model", root / "packed", {"--scheme", "W4A16", "--method", "rtn"});
  for (const char* type : {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}) {
    CAPTURE(type);
    const auto run = test::converted_to_gguf(root / "packed", root / "a.gguf", {"--type", type});
    CHECK(run["carried"] == 7);
    CHECK(run["notes"].empty());
    CHECK(equal_linears(root / "packed", root / "a.gguf") == 7);
    for (const auto& t : run["tensors"])
      CHECK(t["carried"] == (t["name"].get<std::string>().rfind("blk.", 0) == 0 && t["shape"].size() == 2));
  }
  const auto run = test::converted_to_gguf(root / "packed", root / "a.gguf", {"--type", "Q4_K_M"});
  CHECK(run["carried"] == 0);
  CHECK_THAT(run["notes"].dump(), Contains("7 packed linears are rounded a second time") && Contains("to Q4_K") &&
                                      Contains("EXACT would carry the codes of 7 over"));
  CHECK(equal_linears(root / "packed", root / "a.gguf") == 0);
  CHECK(test::converted_to_gguf(root / "packed", root / "a.gguf", {"--type", "F32"})["notes"].empty());
  CHECK(test::converted_to_gguf(root / "model", root / "a.gguf", {"--type", "Q4_K_M"})["notes"].empty());
  const auto exact = test::converted_to_gguf(root / "model", root / "a.gguf", {"--type", "EXACT"});
  CHECK(exact["notes"].empty());
  CHECK(gguf_file(root / "a.gguf").get<std::uint32_t>("general.file_type") == 32);  // BF16, as all of it is
}

TEST_CASE(
    "a linear with a scale that fp16 does not hold is rounded as its type is, with a note, and EXACT makes it F32") {
  const test::temporary_directory root;
  test::write_model(small, root / "model", [](test::made_tensor& t) {
    if (t.name == "model.layers.0.mlp.up_proj.weight")
      for (float& value : t.values) value *= 0x1p-22f;
  });
  packed_by("awq_mistral", root / "model", root / "packed", {"--scheme", "W4A16", "--method", "rtn"});
  const auto rounded = test::converted_to_gguf(root / "packed", root / "a.gguf", {"--type", "Q4_0"});
  CHECK(rounded["carried"] == 6);
  CHECK_THAT(rounded["notes"].dump(), Contains("1 packed linear is rounded a second time") &&
                                          Contains("blk.0.ffn_up.weight") &&
                                          Contains("scales that fp16 does not hold"));
  CHECK(equal_linears(root / "packed", root / "a.gguf") == 6);
  const auto exact = test::converted_to_gguf(root / "packed", root / "a.gguf", {"--type", "EXACT"});
  CHECK(exact["carried"] == 6);
  CHECK_THAT(exact["notes"].dump(), Contains("no block holds the codes of 1 packed linear") && Contains("to F32"));
  CHECK(equal_linears(root / "packed", root / "a.gguf") == 7);
  CHECK(gguf_file(root / "a.gguf").get<std::uint32_t>("general.file_type") == 2);
}

TEST_CASE("groups of inputs in an order of their own are told, and their weights kept as floats") {
  const test::temporary_directory root;
  test::write_model(small, root / "model");
  packed_by("gptq_mistral", root / "model", root / "packed",
            {"--scheme", "W4A16", "--format", "gptq", "--actorder", "descending", "--num-calibration-samples", "2",
             "--max-seq-length", "64"});
  const auto run = test::converted_to_gguf(root / "packed", root / "a.gguf", {"--type", "EXACT"});
  CHECK_THAT(run["notes"].dump(), Contains("inputs in another order"));
  CHECK(run["carried"] == 0);
  CHECK(equal_linears(root / "packed", root / "a.gguf") == 7);
}

TEST_CASE("a GGUF file's linears are multiplied where they lie, outputs in a checkpoint's order") {
  const test::temporary_directory root;
  test::write_model(small, root / "model");
  for (const char* type : {"Q4_K_M", "Q8_0", "F16"}) {
    CAPTURE(type);
    test::converted_to_gguf(root / "model", root / "a.gguf", {"--type", type});
    const checkpoint files(root / "a.gguf");
    const config c = read_config(root / "a.gguf");
    for (const projection p : {projection::q, projection::k, projection::v, projection::down}) {
      const index_t n = outputs(c, p), k = inputs(c, p);
      const auto linear = open_linear(files, c, projection_name(0, p), n, k);
      const resident_linear held = linear->resident();
      CHECK(held.bytes() == files.at(projection_name(0, p) + ".weight").bytes);
      const auto w = rows_of(*linear);
      const auto x = test::random_values(7, "x", 3 * k, 0.0f, 1.0f);
      std::vector<float> y(static_cast<size_t>(3 * n));
      held.multiply({x.data(), 3, k}, {y.data(), 3, n});
      index_t near = 0;
      for (index_t t = 0; t < 3; ++t)
        for (index_t i = 0; i < n; ++i) {
          double exact = 0;
          for (index_t j = 0; j < k; ++j)
            exact += static_cast<double>(x[static_cast<size_t>(t * k + j)] * w[static_cast<size_t>(i * k + j)]);
          // 256 weights below 1/4, inputs below 1: rounding inputs to 2^-15 of a run's largest adds less than 2^-10.
          near += std::abs(static_cast<double>(y[static_cast<size_t>(t * n + i)]) - exact) < 0x1p-9 ? 1 : 0;
        }
      CHECK(near == 3 * n);
    }
  }
}

TEST_CASE("an EXACT file of a checkpoint whose embedding is of no float type is refused by name") {
  const test::temporary_directory root;
  test::write_model(small, root / "model");
  const fs::path file = root / "model/model.safetensors";
  std::string bytes = test::read_bytes(file);
  const auto at = bytes.find("\"BF16\"", bytes.find("model.embed_tokens.weight"));
  bytes.replace(at, 6, "\"I16\" ");
  test::write_bytes(file, bytes);
  const auto message = test::refused_by(
      "gguf_mistral", {"--model", (root / "model").string(), "--output", (root / "a.gguf").string(), "--type", "EXACT"},
      1);
  CHECK_THAT(message, Contains("model.embed_tokens.weight") && Contains("I16"));
}

}  // namespace gguf_carry_tests
