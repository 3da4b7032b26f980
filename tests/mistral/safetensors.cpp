// SPDX-License-Identifier: Apache-2.0
#include "mistral/safetensors.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "support/files.hpp"
#include "support/limits.hpp"

namespace safetensors_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using nlohmann::json;

namespace {

std::string length_of(std::uint64_t header) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(header >> 8 * i & 0xff);
  return bytes;
}

/// A file of this header and `data` bytes of data.
std::string file_of(const std::string& header, size_t data) {
  std::string bytes = length_of(header.size()) + header;
  for (size_t i = 0; i < data; ++i) bytes += static_cast<char>(i);
  return bytes;
}

json entry(const char* dtype, json shape, std::uint64_t begin, std::uint64_t end) {
  return {{"dtype", dtype}, {"shape", std::move(shape)}, {"data_offsets", {begin, end}}};
}

std::string refused(const std::string& bytes) {
  const test::temporary_directory model;
  test::write_bytes(model / "model.safetensors", bytes);
  const std::string what = test::refusal([&] { checkpoint opened(model.path()); });
  CHECK_THAT(what, Contains("model.safetensors"));
  return what;
}

/// Of a header whose only tensor is `w`, or a list of tensors.
std::string refused_header(const json& header, size_t data) {
  return refused(file_of(header.dump(), data));
}

}  // namespace

TEST_CASE("tensors read back as they lie in the file, empty and scalar ones too") {
  const test::temporary_directory model;
  const json header = {{"__metadata__", {{"format", "pt"}}},
                       {"b", entry("U8", {2, 3}, 4, 10)},
                       {"a", entry("F32", json::array(), 0, 4)},
                       {"none", entry("F32", {0, 7}, 4, 4)},
                       {"last", entry("BF16", {4611686018427387904, 4611686018427387904, 0}, 10, 10)}};
  test::write_bytes(model / "model.safetensors", file_of(header.dump() + "   ", 10));
  const checkpoint opened(model.path());
  CHECK(opened.tensors().size() == 4);
  const tensor& b = opened.at("b", {2, 3});
  CHECK(b.dtype == "U8");
  CHECK(b.bytes == 6);
  CHECK(b.size() == 6);
  for (int i = 0; i < 6; ++i) CHECK(std::to_integer<int>(b.data[i]) == 4 + i);
  CHECK(opened.at("a").size() == 1);
  CHECK(opened.at("none").size() == 0);
  CHECK(opened.at("last").size() == 0);
  CHECK(opened.contains("a"));
  CHECK_FALSE(opened.contains("c"));
  CHECK_THAT(test::refusal([&] { opened.at("c"); }), Contains("\"c\""));
  CHECK_THAT(test::refusal([&] {
               opened.at("b", {3, 2});
             }),
             Contains("\"b\"") && Contains("[2, 3]") && Contains("[3, 2]"));
}

TEST_CASE("floats of every stored type widen exactly, from any alignment") {
  for (const size_t pad : {0u, 1u, 2u, 3u}) {
    const test::temporary_directory model;
    const std::string padding(pad, ' ');
    const json header = {{"h", entry("F16", {3}, 0, 6)},
                         {"b", entry("BF16", {3}, 6, 12)},
                         {"f", entry("F32", {2}, 12, 20)},
                         {"i", entry("I32", {1}, 20, 24)}};
    const fp16 h[] = {fp16(1.5f), fp16(-65504.0f), fp16(5.9604645e-8f)};
    const bf16 b[] = {bf16(1.5f), bf16(-3.0e38f), bf16(1e-40f)};
    const float f[] = {1.1f, -0.0f};
    std::string bytes = file_of(header.dump() + padding, 24);
    char* data = bytes.data() + bytes.size() - 24;
    std::memcpy(data, h, 6), std::memcpy(data + 6, b, 6), std::memcpy(data + 12, f, 8);
    test::write_bytes(model / "model.safetensors", bytes);
    const checkpoint opened(model.path());
    float out[3];
    read_floats(opened.at("h"), 0, 3, out);
    for (int i = 0; i < 3; ++i) CHECK(out[i] == static_cast<float>(h[i]));
    read_floats(opened.at("b"), 1, 2, out);
    for (int i = 0; i < 2; ++i) CHECK(out[i] == static_cast<float>(b[i + 1]));
    read_floats(opened.at("f"), 0, 2, out);
    CHECK(out[0] == 1.1f);
    CHECK(std::signbit(out[1]));
    CHECK_THAT(test::refusal([&] { read_floats(opened.at("i"), 0, 1, out); }), Contains("I32") && Contains("\"i\""));
    CHECK_THAT(test::refusal([&] { read_floats(opened.at("f"), 1, 2, out); }), Contains("\"f\""));
    CHECK_THAT(test::refusal([&] { read_floats(opened.at("f"), -1, 1, out); }), Contains("\"f\""));
  }
}

TEST_CASE("a file cut short anywhere is refused, whatever is missing") {
  const json header = {{"w", entry("F32", {4, 4}, 0, 64)}};
  const std::string whole = file_of(header.dump(), 64);
  for (size_t size = 0; size < whole.size(); ++size) refused(whole.substr(0, size));
  CHECK_THAT(refused(whole.substr(0, whole.size() - 1)), Contains("\"w\"") && Contains("cut short"));
  CHECK_THAT(refused(whole + "x"), Contains("1 bytes at the end"));
  CHECK_THAT(refused(""), Contains("empty"));
}

TEST_CASE("a header length past the end, or absurd, is refused before it is believed") {
  CHECK_THAT(refused(length_of(1000) + "{}"), Contains("1000"));
  CHECK_THAT(refused(length_of(~std::uint64_t{0}) + "{}"), Contains("claims"));
  CHECK_THAT(refused(length_of(~std::uint64_t{7}) + std::string(100, ' ')), Contains("claims"));
  CHECK_THAT(refused(length_of(std::uint64_t{1} << 40) + "{}"), Contains("claims"));
  CHECK_THAT(refused(length_of(0)), Contains("JSON"));
}

TEST_CASE("tensors that overlap, leave holes or run backwards are refused") {
  CHECK_THAT(refused_header({{"a", entry("U8", {8}, 0, 8)}, {"b", entry("U8", {8}, 4, 12)}}, 12),
             Contains("\"b\"") && Contains("overlaps"));
  CHECK_THAT(refused_header({{"a", entry("U8", {8}, 0, 8)}, {"b", entry("U8", {8}, 0, 8)}}, 8), Contains("overlaps"));
  CHECK_THAT(refused_header({{"a", entry("U8", {8}, 0, 8)}, {"b", entry("U8", {2}, 10, 12)}}, 12),
             Contains("\"b\"") && Contains("hole"));
  CHECK_THAT(refused_header({{"a", entry("U8", {4}, 4, 8)}}, 8), Contains("hole"));
  CHECK_THAT(refused_header({{"a", entry("U8", {4}, 0, 4)}}, 8), Contains("belong to no tensor"));
  CHECK_THAT(refused_header({{"a", entry("U8", {4}, 4, 0)}}, 4), Contains("\"a\""));
  CHECK_THAT(refused_header({{"a", entry("U8", {4}, 0, 1u << 20)}}, 4), Contains("\"a\"") && Contains("cut short"));
  CHECK_THAT(refused_header({{"a", entry("U8", {4}, ~std::uint64_t{0}, ~std::uint64_t{0})}}, 4), Contains("\"a\""));
  CHECK_THAT(refused(file_of("{}", 4)), Contains("belong to no tensor"));
}

TEST_CASE("a byte count other than shape times dtype is refused, without overflowing") {
  CHECK_THAT(refused_header({{"w", entry("F32", {4}, 0, 8)}}, 8), Contains("\"w\"") && Contains("16"));
  CHECK_THAT(refused_header({{"w", entry("BF16", {4}, 0, 16)}}, 16), Contains("\"w\""));
  CHECK_THAT(refused_header({{"w", entry("F32", {4611686018427387904}, 0, 0)}}, 0), Contains("64 bits"));
  CHECK_THAT(refused_header({{"w", entry("F32", {4294967296, 4294967296, 4294967296}, 0, 0)}}, 0), Contains("64 bits"));
  CHECK_THAT(refused_header({{"w", entry("U8", {18446744073709551615u}, 0, 8)}}, 8), Contains("\"w\""));
  CHECK_THAT(refused_header({{"w", entry("F4", {3}, 0, 2)}}, 2), Contains("inside a byte"));
}

TEST_CASE("an entry that is not dtype, shape and offsets is refused by its name") {
  const auto broken = [](const char* key, const json& value) {
    json tensor = entry("F32", {2}, 0, 8);
    tensor[key] = value;
    return refused_header({{"w", tensor}}, 8);
  };
  CHECK_THAT(broken("dtype", "F128"), Contains("\"w\"") && Contains("F128"));
  for (const json& bad : {json(3), json(nullptr), json::array({"F32"}), json(""), json::object()})
    CHECK_THAT(broken("dtype", bad), Contains("\"w\""));
  for (const json& bad : {json(2), json::array({-2}), json::array({2.0}), json::array({"2"}),
                          json::array({json::array({2})}), json(nullptr), json("2")})
    CHECK_THAT(broken("shape", bad), Contains("\"w\""));
  for (const json& bad :
       {json(0), json::array({0}), json({0, 8, 8}), json({-1, 8}), json({0, 8.0}), json({0, true}), json("0")})
    CHECK_THAT(broken("data_offsets", bad), Contains("\"w\""));
  CHECK_THAT(broken("extra", 1), Contains("\"w\""));
  CHECK_THAT(refused_header({{"w", {{"dtype", "F32"}, {"shape", {2}}}}}, 8), Contains("\"w\""));
  CHECK_THAT(refused_header({{"w", 3}}, 0), Contains("\"w\""));
  CHECK_THAT(refused_header({{"__metadata__", {{"format", 3}}}}, 0), Contains("__metadata__"));
  CHECK_THAT(refused_header({{"__metadata__", {{"format", {{"deep", "er"}}}}}}, 0), Contains("__metadata__"));
  CHECK_THAT(refused_header(json::array({1}), 0), Contains("object"));
}

TEST_CASE("names that appear twice are refused, of tensors and of their fields") {
  const std::string tensor = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  CHECK_THAT(refused(file_of(R"({"w":)" + tensor + R"(,"w":)" + tensor + "}", 0)), Contains("\"w\" appears twice"));
  CHECK_THAT(refused(file_of(R"({"w":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0)),
             Contains("\"w\""));
}

TEST_CASE("a header that is no JSON in UTF-8, or nested without end, is refused") {
  CHECK_THAT(refused(file_of("{\"w\xff\": 1}", 0)), Contains("UTF-8"));
  CHECK_THAT(refused(file_of("{\"w\": ", 0)), Contains("JSON"));
  CHECK_THAT(refused(file_of("not json", 0)), Contains("JSON"));
  refused(file_of(std::string(1000000, '['), 0));
  std::string nested;
  for (int i = 0; i < 100000; ++i) nested += "{\"a\":";
  refused(file_of(nested, 0));
}

TEST_CASE("a directory without weights, or that is none, is refused") {
  const test::temporary_directory model;
  const auto what = [&](const test::fs::path& path) { return test::refusal([&] { checkpoint opened(path); }); };
  CHECK_THAT(what(model.path()), Contains("model.safetensors.index.json"));
  CHECK_THAT(what(model / "absent"), Contains("absent") && Contains("not a directory"));
  test::write_bytes(model / "consolidated.safetensors", file_of("{}", 0));
  CHECK_THAT(what(model.path()), Contains("neither"));
  test::fs::create_directory(model / "model.safetensors");
  CHECK_THAT(what(model.path()), Contains("not a regular file"));
}

namespace {

/// A checkpoint in two shards: a, b in the first, c in the second.
void write_sharded(const test::fs::path& model, const json& map) {
  test::write_bytes(model / "model-00001-of-00002.safetensors",
                    file_of(json{{"a", entry("U8", {4}, 0, 4)}, {"b", entry("U8", {4}, 4, 8)}}.dump(), 8));
  test::write_bytes(model / "model-00002-of-00002.safetensors",
                    file_of(json{{"c", entry("U8", {2}, 0, 2)}, {"unlisted", entry("U8", {2}, 2, 4)}}.dump(), 4));
  test::write_bytes(model / "model.safetensors.index.json",
                    json{{"metadata", {{"total_size", 10}}}, {"weight_map", map}}.dump());
}

const json good_map = {{"a", "model-00001-of-00002.safetensors"},
                       {"b", "model-00001-of-00002.safetensors"},
                       {"c", "model-00002-of-00002.safetensors"}};

}  // namespace

TEST_CASE("shards open as one checkpoint of the tensors the index lists") {
  const test::temporary_directory model;
  write_sharded(model.path(), good_map);
  const checkpoint opened(model.path());
  CHECK(opened.tensors().size() == 3);
  CHECK(std::to_integer<int>(opened.at("b").data[0]) == 4);
  CHECK(opened.at("c").file.filename() == "model-00002-of-00002.safetensors");
}

TEST_CASE("an index that does not fit its shards is refused") {
  const test::temporary_directory model;
  const auto refused_map = [&](const char* key, const json& value) {
    json map = good_map;
    map[key] = value;
    write_sharded(model.path(), map);
    return test::refusal([&] { checkpoint opened(model.path()); });
  };
  CHECK_THAT(refused_map("d", "model-00002-of-00002.safetensors"), Contains("\"d\"") && Contains("model-00002"));
  CHECK_THAT(refused_map("a", "model-00003-of-00002.safetensors"), Contains("model-00003") && Contains("missing"));
  for (const char* escape : {"../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\\b"})
    CHECK_THAT(refused_map("a", escape), Contains("\"a\"") && Contains("plain name"));
  CHECK_THAT(refused_map("a", std::string("x\0y", 3)), Contains("plain name"));
  CHECK_THAT(refused_map("a", 3), Contains("\"a\""));
  for (const json& bad : {json(3), json::array(), json::object(), json(nullptr)}) {
    write_sharded(model.path(), bad);
    CHECK_THAT(test::refusal([&] { checkpoint opened(model.path()); }), Contains("weight_map"));
  }
  test::write_bytes(model / "model.safetensors.index.json", "[]");
  CHECK_THAT(test::refusal([&] { checkpoint opened(model.path()); }), Contains("weight_map"));
}

namespace {

std::string bytes_of(size_t count, int seed) {
  std::string bytes(count, '\0');
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<char>((i * 131 + static_cast<size_t>(seed) * 7) >> 2);
  return bytes;
}

}  // namespace

TEST_CASE("what the writer wrote reads back, in one file or in shards, small and larger than the header's room") {
  for (const std::uint64_t shard : {std::uint64_t{100}, std::uint64_t{320000}, ~std::uint64_t{0}}) {
    const test::temporary_directory model;
    safetensors_writer writer(model.path(), shard);
    std::map<std::string, std::string> written;
    for (int i = 0; i < 20; ++i) {
      const auto rows = i == 7 ? 5000 : i;
      const std::string data = bytes_of(static_cast<size_t>(rows) * 64, i);
      const std::string name = "tensor " + std::to_string(i);
      writer.add(name, "BF16", {rows, 32}, data.data(), data.size());
      written[name] = data;
    }
    const std::uint64_t bytes = writer.finish();
    std::uint64_t on_disk = 0;
    for (const auto& file : test::fs::directory_iterator(model.path())) on_disk += file.file_size();
    CHECK(bytes == on_disk);
    const checkpoint opened(model.path());
    REQUIRE(opened.tensors().size() == 20);
    for (const auto& [name, data] : written) {
      const tensor& t = opened.at(name, {static_cast<index_t>(data.size() / 64), 32});
      CHECK(std::string(reinterpret_cast<const char*>(t.data), static_cast<size_t>(t.bytes)) == data);
    }
    const bool sharded = shard < 1000000;
    CHECK(test::fs::exists(model / "model.safetensors") == !sharded);
    CHECK(test::fs::exists(model / "model.safetensors.index.json") == sharded);
  }
}

TEST_CASE("a shard holds at most what was asked for, unless one tensor alone is larger") {
  const test::temporary_directory model;
  safetensors_writer writer(model.path(), 1000);
  const std::string data(3000, 'x');
  for (const index_t size : {400, 600, 8, 3000, 992, 8}) {
    static int count = 0;
    writer.add("t" + std::to_string(count++), "U8", {size}, data.data(), static_cast<std::uint64_t>(size));
  }
  writer.finish();
  CHECK(test::listing(model.path()) ==
        "model-00001-of-00004.safetensors model-00002-of-00004.safetensors model-00003-of-00004.safetensors "
        "model-00004-of-00004.safetensors model.safetensors.index.json");
  const auto index = json::parse(test::read_bytes(model / "model.safetensors.index.json"));
  CHECK(index["metadata"]["total_size"] == 5008);
  CHECK(index["weight_map"]["t3"] == "model-00003-of-00004.safetensors");
  CHECK(index["weight_map"]["t5"] == "model-00004-of-00004.safetensors");
}

TEST_CASE("every tensor starts at a multiple of its element, whatever was written before it") {
  const test::temporary_directory model;
  safetensors_writer writer(model.path(), ~std::uint64_t{0});
  const std::string data(64, 'x');
  writer.add("one byte", "U8", {1}, data.data(), 1);
  writer.add("a", "I64", {2}, data.data(), 16);
  writer.add("odd half", "BF16", {3}, data.data(), 6);
  writer.add("odd word", "F32", {1}, data.data(), 4);
  writer.add("b", "F32", {2}, data.data(), 8);
  writer.finish();
  const checkpoint opened(model.path());
  for (const auto& [name, t] : opened.tensors()) {
    const auto element = static_cast<std::uintptr_t>(t.bytes / t.size());
    CHECK(reinterpret_cast<std::uintptr_t>(t.data) % element == 0);  // the map begins at a page
  }
}

TEST_CASE("a large shard keeps the room left for its header, filled with spaces, and reads back") {
  const test::temporary_directory model;
  safetensors_writer writer(model.path(), ~std::uint64_t{0});
  const std::string data = bytes_of(std::size_t{1} << 26, 3);
  std::uint64_t bytes = 0;
  for (const char* name : {"a", "b", "c", "d", "e"}) {
    writer.add(name, "U8", {1 << 26}, data.data(), data.size());
    bytes += data.size();
  }
  const std::uint64_t overhead = writer.finish() - bytes;
  CHECK(overhead > 200000);
  CHECK(overhead * 1000 <= bytes);
  const checkpoint opened(model.path());
  for (const auto& [name, t] : opened.tensors()) CHECK(std::memcmp(t.data, data.data(), data.size()) == 0);
}

TEST_CASE("a header that outgrows the room left for it moves the data") {
  const test::temporary_directory model;
  safetensors_writer writer(model.path(), ~std::uint64_t{0});
  for (int i = 0; i < 6000; ++i) {
    const std::string data = bytes_of(16, i);
    writer.add("a tensor with a name of some length, number " + std::to_string(i), "I64", {2}, data.data(), 16);
  }
  CHECK(writer.finish() > 6000 * 100);
  const checkpoint opened(model.path());
  for (int i = 0; i < 6000; i += 777)
    CHECK(std::memcmp(opened.at("a tensor with a name of some length, number " + std::to_string(i)).data,
                      bytes_of(16, i).data(), 16) == 0);
}

TEST_CASE("a tensor given twice, or with bytes that do not fit its shape, is refused") {
  const test::temporary_directory model;
  safetensors_writer writer(model.path(), 1000);
  const std::string data(64, 'x');
  writer.add("w", "F32", {4}, data.data(), 16);
  CHECK_THAT(test::refusal([&] { writer.add("w", "F32", {4}, data.data(), 16); }),
             Contains("\"w\"") && Contains("twice"));
  CHECK_THAT(test::refusal([&] { writer.add("v", "F32", {4}, data.data(), 15); }), Contains("\"v\""));
  CHECK_THAT(test::refusal([&] { writer.add("v", "F33", {4}, data.data(), 16); }), Contains("F33"));
}

TEST_CASE("a writer that did not finish leaves nothing behind") {
  const test::temporary_directory model;
  {
    safetensors_writer writer(model.path(), 100);
    const std::string data(80, 'x');
    for (const char* name : {"a", "b", "c"}) writer.add(name, "U8", {80}, data.data(), 80);
    CHECK_FALSE(test::fs::exists(model / "model.safetensors"));
  }
  CHECK(test::listing(model.path()).empty());
}

TEST_CASE("a write that the disk does not take is an error that names the file, and nothing is left") {
  const test::temporary_directory model;
  const std::string data(1 << 20, 'x');
  std::string what;
  {
    const test::file_size_limit limit(1 << 20);
    what = test::refusal([&] {
      safetensors_writer writer(model.path(), ~std::uint64_t{0});
      writer.add("w", "U8", {1 << 20}, data.data(), data.size());
      writer.finish();
    });
  }
  CHECK_THAT(what, Contains("shard-00001") && Contains("File too large"));
  CHECK(test::listing(model.path()).empty());
  CHECK_THAT(test::refusal([&] {
               safetensors_writer writer(model / "absent", 1000);
               writer.add("w", "U8", {4}, data.data(), 4);
             }),
             Contains("absent") && Contains("No such file"));
}

namespace {

/// Resident bytes of this process's file-backed pages.
index_t resident_file_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("RssFile:", 0) == 0) return std::stoll(line.substr(8)) * 1024;
  return -1;
}

}  // namespace

TEST_CASE("released tensors leave the resident set, with what faults mapped around them") {
  const test::temporary_directory model;
  const std::string data(1 << 20, 'x');
  {
    safetensors_writer writer(model.path(), ~std::uint64_t{0});
    for (int i = 0; i < 64; ++i) writer.add("t" + std::to_string(i), "F32", {1 << 18}, data.data(), data.size());
    writer.finish();
  }
  const index_t before = resident_file_bytes();
  REQUIRE(before >= 0);
  const checkpoint opened(model.path());
  std::vector<float> out(1 << 18);
  index_t most = 0;
  for (const auto& [name, t] : opened.tensors()) {
    read_floats(t, 0, t.size(), out.data());
    most = std::max(most, resident_file_bytes());
    opened.release(t);
  }
  CHECK(most - before < 3 << 20);  // one tensor of 1 MiB, and windows around it
  CHECK(resident_file_bytes() - before < 1 << 20);
  read_floats(opened.at("t3"), 0, 1, out.data());
  CHECK(out[0] == bit_cast<float>(0x78787878));
}

}  // namespace safetensors_tests
