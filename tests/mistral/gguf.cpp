// SPDX-License-Identifier: Apache-2.0
/// @file
/// GGUF files written and read: the bytes of the Python package gguf, and a refusal for every way to be damaged.
#include "mistral/gguf.hpp"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "mistral/gguf_blocks.hpp"
#include "mistral/gguf_model.hpp"
#include "mistral/gguf_writer.hpp"
#include "support/files.hpp"
#include "support/places.hpp"

namespace gguf_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;

namespace {

/// What tests/golden/gguf/make.py has.
gguf_metadata golden_metadata() {
  return {{"general.architecture", "llama"},
          {"made_by", "gguf 0.19.0"},
          {"u8", std::uint8_t{200}},
          {"i8", std::int8_t{-100}},
          {"u16", std::uint16_t{60000}},
          {"i16", std::int16_t{-30000}},
          {"u32", std::uint32_t{4000000000}},
          {"i32", std::int32_t{-2000000000}},
          {"f32", 1.5f},
          {"u64", std::uint64_t{1} << 63},
          {"i64", -(std::int64_t{1} << 62)},
          {"f64", 0.1},
          {"bool", true},
          {"strings", gguf_array(std::vector<std::string>{"", "▁the", "<0x0A>"})},
          {"numbers", gguf_array(std::vector<std::int32_t>{1, -2, 3})},
          {"floats", gguf_array(std::vector<float>{0.5f, -1.25f})},
          {"flags", gguf_array(std::vector<bool>{true, false})}};
}

std::vector<gguf_tensor_info> golden_tensors() {
  return {{"token_embd.weight", {4, 3}, gguf_type::f32},
          {"half", {3}, gguf_type::f16},
          {"blocks", {64, 2}, gguf_type::q8_0},
          {"cube", {2, 2, 2}, gguf_type::f32}};
}

void write_golden(const test::fs::path& path) {
  gguf_writer out(path, golden_metadata(), golden_tensors());
  std::vector<float> rising(12);
  std::iota(rising.begin(), rising.end(), 0.0f);
  out.append(rising.data(), 16);  // in two pieces
  out.append(rising.data() + 4, 32);
  const std::uint16_t half[3] = {0x3c00, 0xc000, 0x3800};
  out.append(half, sizeof(half));
  std::vector<std::uint8_t> blocks(136);
  std::iota(blocks.begin(), blocks.end(), std::uint8_t{0});
  out.append(blocks.data(), blocks.size());
  out.append(rising.data(), 32);
  const std::uint64_t bytes = out.finish();
  CHECK(bytes == test::fs::file_size(path));
}

template <class T>
std::string bytes_of(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}
std::string text_of(const std::string& text) {
  return bytes_of(std::uint64_t{text.size()}) + text;
}

/// A file by hand: any counts, keys and tensors.
struct raw_file {
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t tensors = 0, keys = 0;
  std::string body, data;

  void key(const std::string& name, std::uint32_t type, const std::string& value) {
    ++keys, body += text_of(name) + bytes_of(type) + value;
  }
  void tensor(const std::string& name, const std::vector<std::uint64_t>& dims, std::uint32_t type,
              std::uint64_t offset) {
    ++tensors, body += text_of(name) + bytes_of(static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t extent : dims) body += bytes_of(extent);
    body += bytes_of(type) + bytes_of(offset);
  }
  std::string bytes(size_t alignment = 32) const {
    std::string all = magic + bytes_of(version) + bytes_of(tensors) + bytes_of(keys) + body;
    all.resize((all.size() + alignment - 1) / alignment * alignment);
    return all + data;
  }
};

/// What the reader says of a file of these bytes.
std::string refused(const std::string& bytes) {
  const test::temporary_directory root;
  const test::fs::path file = root / "a.gguf";
  test::write_bytes(file, bytes);
  const std::string what = test::refusal([&] { gguf_file opened(file); });
  CHECK_THAT(what, Contains(file.string()));
  return what;
}
std::string refused(const raw_file& file) {
  return refused(file.bytes());
}

}  // namespace

TEST_CASE("our writer gives the bytes of the Python package gguf") {
  const test::temporary_directory root;
  write_golden(root / "own.gguf");
  CHECK(test::read_bytes(root / "own.gguf") ==
        test::read_bytes(test::fs::path(test::golden_directory) / "gguf/small.gguf"));
  CHECK(test::listing(root.path()) == "own.gguf");
}

TEST_CASE("the reader gives back keys and tensors of the Python package gguf in their order") {
  const gguf_file file(test::fs::path(test::golden_directory) / "gguf/small.gguf");
  CHECK(file.metadata() == golden_metadata());
  const auto expected = golden_tensors();
  REQUIRE(file.tensors().size() == expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    CHECK(file.tensors()[i].name == expected[i].name);
    CHECK(file.tensors()[i].dims == expected[i].dims);
    CHECK(file.tensors()[i].type == expected[i].type);
    CHECK(file.find_tensor(expected[i].name) == &file.tensors()[i]);
  }
  float last = 0;
  std::memcpy(&last, file.find_tensor("cube")->data + 28, 4);
  CHECK(last == 7.0f);
  CHECK(file.whole("u64") == std::uint64_t{1} << 63);
  CHECK(file.whole("none", 7) == 7);
  CHECK_THAT(test::refusal([&] { return file.whole("i8"); }), Contains("\"i8\" must be a whole number"));
  CHECK_THAT(test::refusal([&] { return file.whole("bool"); }), Contains("must be a whole number"));
  CHECK_THAT(test::refusal([&] { file.get<float>("u8"); }), Contains("\"u8\" has another type"));
  CHECK_THAT(test::refusal([&] { file.get_array<float>("strings"); }), Contains("\"strings\" has another type"));
  CHECK_THAT(test::refusal([&] { file.get<float>("none"); }), Contains("\"none\" is missing"));
}

TEST_CASE("a GGUF file that ends anywhere too soon is refused") {
  const std::string whole = test::read_bytes(test::fs::path(test::golden_directory) / "gguf/small.gguf");
  const size_t data_end = whole.size();  // the last tensor takes 32 bytes, a whole alignment
  for (size_t length = 0; length < data_end; ++length) {
    CAPTURE(length);
    const std::string what = refused(whole.substr(0, length));
    if (length == 0)
      CHECK_THAT(what, Contains("is empty"));
    else
      CHECK_THAT(what, Contains("cut short or damaged") || Contains("bytes are left"));
  }
}

TEST_CASE("what is no GGUF file of this version is refused by what it is") {
  raw_file file;
  file.magic = "GGML";
  CHECK_THAT(refused(file), Contains("is no GGUF file"));
  file.magic = "GGUF";
  for (const std::uint32_t version : {0u, 1u, 4u}) {
    file.version = version;
    CHECK_THAT(refused(file), Contains("GGUF version " + std::to_string(version)));
  }
  file.version = 0x03000000;
  CHECK_THAT(refused(file), Contains("big-endian"));
}

TEST_CASE("counts and lengths beyond the file are refused before anything is made of them") {
  constexpr std::uint64_t huge = 0xffffffffffffffffu;
  for (const std::uint64_t count : {std::uint64_t{1000}, std::uint64_t{1} << 40, huge}) {
    raw_file keys, tensors, string, array, strings;
    keys.keys = count;
    CHECK_THAT(refused(keys), Contains("the number of keys is " + std::to_string(count)));
    tensors.tensors = count;
    CHECK_THAT(refused(tensors), Contains("the number of tensors is " + std::to_string(count)));
    string.key("a", 8, bytes_of(count));
    CHECK_THAT(refused(string), Contains("the key \"a\" takes " + std::to_string(count)));
    array.key("a", 9, bytes_of(std::uint32_t{0}) + bytes_of(count));
    CHECK_THAT(refused(array), Contains("the number of values of the key \"a\" is " + std::to_string(count)));
    strings.key("a", 9, bytes_of(std::uint32_t{8}) + bytes_of(count));
    CHECK_THAT(refused(strings), Contains("the number of values of the key \"a\""));
  }
}

TEST_CASE("keys that are doubled, empty, or of no type are refused by name") {
  raw_file twice, empty, typeless, nested, inner, truth, latin;
  twice.key("a.b", 0, "x"), twice.key("a.b", 0, "y");
  CHECK_THAT(refused(twice), Contains("the key \"a.b\" appears twice"));
  empty.key("", 0, "x");
  CHECK_THAT(refused(empty), Contains("the name of key 0"));
  typeless.key("a", 13, "x");
  CHECK_THAT(refused(typeless), Contains("the key \"a\" has the unknown type 13"));
  nested.key("a", 9, bytes_of(std::uint32_t{9}) + bytes_of(std::uint64_t{0}));
  CHECK_THAT(refused(nested), Contains("array of arrays"));
  inner.key("a", 9, bytes_of(std::uint32_t{77}) + bytes_of(std::uint64_t{0}));
  CHECK_THAT(refused(inner), Contains("unknown type 77"));
  truth.key("a", 7, "\2");
  CHECK_THAT(refused(truth), Contains("must be 0 or 1"));
  latin.key("caf\xe9", 0, "x");
  CHECK_THAT(refused(latin), Contains("of UTF-8"));
}

TEST_CASE("tensors that are doubled or shaped as none can be are refused by name") {
  const auto shaped = [](const std::vector<std::uint64_t>& dims, std::uint32_t type) {
    raw_file file;
    file.tensor("t", dims, type, 0);
    file.data.assign(4096, 'x');
    return refused(file);
  };
  CHECK_THAT(shaped({}, 0), Contains("has 0 dimensions"));
  CHECK_THAT(shaped({1, 1, 1, 1, 1}, 0), Contains("has 5 dimensions"));
  CHECK_THAT(shaped({4, 0}, 0), Contains("an extent of 0"));
  CHECK_THAT(shaped({std::uint64_t{1} << 32, std::uint64_t{1} << 32}, 0), Contains("more elements than 63 bits"));
  CHECK_THAT(shaped({std::uint64_t{1} << 62}, 0), Contains("more bytes than 63 bits"));
  CHECK_THAT(shaped({33, 2}, 8), Contains("rows of 33") && Contains("32 of a block of Q8_0"));
  CHECK_THAT(shaped({4}, 9), Contains("the type number 9") && Contains("Q4_K"));
  CHECK_THAT(shaped({2000}, 0), Contains("cut short or damaged"));
  raw_file twice, nameless, lengthy;
  twice.tensor("t", {1}, 0, 0), twice.tensor("t", {1}, 0, 32);
  CHECK_THAT(refused(twice), Contains("the tensor \"t\" appears twice"));
  nameless.tensor("", {1}, 0, 0);
  CHECK_THAT(refused(nameless), Contains("the name of tensor 0"));
  lengthy.tensor(std::string(64, 'a'), {1}, 0, 0);
  CHECK_THAT(refused(lengthy), Contains("the name of tensor 0"));
}

TEST_CASE("a tensor lies where the padded sum of those before it ends, and nowhere else") {
  for (const std::uint64_t offset : {0, 16, 28, 64, 33}) {
    raw_file file;
    file.tensor("a", {7}, 0, 0), file.tensor("b", {1}, 0, offset);
    file.data.assign(100, 'x');
    CHECK_THAT(refused(file), Contains("the tensor \"b\" is at offset " + std::to_string(offset)) && Contains("at 32"));
  }
  raw_file late;
  late.tensor("a", {1}, 0, 32);
  late.data.assign(100, 'x');
  CHECK_THAT(refused(late), Contains("\"a\" is at offset 32"));
}

TEST_CASE("general.alignment moves the data, and is a power of two") {
  const test::temporary_directory root;
  raw_file file;
  file.key("general.alignment", 4, bytes_of(std::uint32_t{128}));
  file.tensor("a", {1}, 0, 0), file.tensor("b", {1}, 0, 128);
  file.data = bytes_of(1.5f) + std::string(124, '\0') + bytes_of(2.5f);  // no padding behind the last
  test::write_bytes(root / "a.gguf", file.bytes(128));
  const gguf_file opened(root / "a.gguf");
  float b = 0;
  std::memcpy(&b, opened.tensors()[1].data, 4);
  CHECK(b == 2.5f);
  for (const std::uint32_t wrong : {0u, 3u, 48u, 0xffffffffu}) {
    raw_file bad;
    bad.key("general.alignment", 4, bytes_of(wrong));
    CHECK_THAT(refused(bad), Contains("a power of two"));
  }
  raw_file typed;
  typed.key("general.alignment", 10, bytes_of(std::uint64_t{32}));
  CHECK_THAT(refused(typed), Contains("a power of two, as u32"));
}

TEST_CASE("a writer refuses what a reader would, leaves nothing unfinished, and says which tensor lacks bytes") {
  const test::temporary_directory root;
  const test::fs::path path = root / "a.gguf";
  const auto refuses = [&](const gguf_metadata& keys, const std::vector<gguf_tensor_info>& tensors) {
    return test::refusal([&] { gguf_writer out(path, keys, tensors); });
  };
  CHECK_THAT(refuses({{"a", true}, {"a", true}}, {}), Contains("the key \"a\""));
  CHECK_THAT(refuses({{"a", gguf_array(std::monostate())}}, {}), Contains("the key \"a\""));
  CHECK_THAT(refuses({}, {{"t", {1}, gguf_type::f32}, {"t", {1}, gguf_type::f32}}), Contains("the tensor \"t\""));
  CHECK_THAT(refuses({}, {{std::string(64, 'a'), {1}, gguf_type::f32}}), Contains("beyond 63 bytes"));
  CHECK_THAT(refuses({}, {{"t", {31}, gguf_type::q4_0}}), Contains("rows of 31"));
  {
    gguf_writer out(path, {}, {{"t", {2}, gguf_type::f32}, {"u", {1}, gguf_type::f32}});
    const float values[3] = {};
    CHECK_THAT(test::refusal([&] { out.append(values, 12); }), Contains("\"t\" is given more than the 8 bytes"));
    out.append(values, 8);
    CHECK_THAT(test::refusal([&] { out.finish(); }), Contains("the tensor \"u\" lacks bytes"));
  }
  CHECK(test::listing(root.path()).empty());
  CHECK_THAT(test::refusal([&] { gguf_writer out(root / "none/a.gguf", {}, {}); }), Contains("none/a.gguf"));
}

TEST_CASE("values that another program read from a GGUF file are ours", "[.interop]") {
  const char* const path = std::getenv("NIBBLE_GGUF");
  const char* const values = std::getenv("NIBBLE_GGUF_VALUES");
  REQUIRE((path && values));
  const gguf_file file(path);
  for (const gguf_tensor& t : file.tensors()) {
    CAPTURE(t.name);
    const gguf_type_info& stored = info_of(t.type);
    std::vector<float> own(static_cast<size_t>(t.size / stored.bytes * stored.elements));
    decode_blocks(t.type, t.data, static_cast<index_t>(t.size / stored.bytes), own.data());
    const std::string theirs = test::read_bytes(test::fs::path(values) / (t.name + ".f32"));
    REQUIRE(theirs.size() == own.size() * sizeof(float));
    CHECK(std::memcmp(theirs.data(), own.data(), theirs.size()) == 0);
  }
}

TEST_CASE("names of a checkpoint and of a GGUF file are each other's") {
  const std::pair<const char*, const char*> names[] = {
      {"model.embed_tokens.weight", "token_embd.weight"},
      {"model.norm.weight", "output_norm.weight"},
      {"lm_head.weight", "output.weight"},
      {"model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight"},
      {"model.layers.31.self_attn.o_proj.weight", "blk.31.attn_output.weight"},
      {"model.layers.7.post_attention_layernorm.weight", "blk.7.ffn_norm.weight"},
      {"model.layers.7.mlp.down_proj.bias", "blk.7.ffn_down.bias"}};
  for (const auto& [own, theirs] : names) {
    CHECK(gguf_name(own) == theirs);
    CHECK(checkpoint_name(theirs) == own);
  }
  for (const char* none : {"", "model.layers..self_attn.q_proj.weight", "model.layers.x.mlp.up_proj.weight",
                           "model.layers.1.mlp.other.weight", "lm_head", "model.layers.1"})
    CHECK(gguf_name(none).empty());
}

TEST_CASE("rows of a head are paired: the halves that rotary embeddings turn together become neighbours") {
  const index_t d = 6;
  const index_t expected[] = {0, 2, 4, 1, 3, 5};
  for (index_t head = 0; head < 3; ++head)
    for (index_t i = 0; i < d; ++i) CHECK(paired_row(head * d + i, d) == head * d + expected[i]);
}

}  // namespace gguf_tests
