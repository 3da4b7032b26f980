// SPDX-License-Identifier: Apache-2.0
/// @file
/// A disk too small is found before the first layer: a sparse checkpoint claims more than any output here may take.
#include <catch2/catch.hpp>
#include <limits>
#include <nlohmann/json.hpp>

#include "support/model.hpp"
#include "support/program.hpp"

namespace full_disk_tests {

using namespace nibble;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;

namespace {

std::uint64_t header_bytes(const std::string& file) {
  std::uint64_t bytes = 0;
  for (int i = 7; i >= 0; --i) bytes = bytes << 8 | static_cast<unsigned char>(file[static_cast<size_t>(i)]);
  return bytes;
}

/// The embedded model with as many ids: its embedding and head are holes at the end of the file.
void write_sparse(const test::fs::path& directory, index_t vocabulary) {
  test::fs::copy(test::embedded("model"), directory, test::fs::copy_options::recursive);
  json config = json::parse(test::read_bytes(directory / "config.json"));
  config["vocab_size"] = vocabulary;
  test::write_bytes(directory / "config.json", config.dump());
  const std::string whole = test::read_bytes(directory / "model.safetensors");
  const std::uint64_t data = 8 + header_bytes(whole);
  json header = json::parse(whole.substr(8, data - 8));
  std::uint64_t end = whole.size() - data;
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight"}) {
    json& tensor = header.at(name);
    const std::uint64_t bytes = static_cast<std::uint64_t>(vocabulary) * tensor["shape"][1].get<std::uint64_t>() * 2;
    tensor["shape"][0] = vocabulary;
    // Bytes that belonged to the small one lie between two others' now, and no tensor may leave a gap.
    header["gap." + std::string(name)] = {
        {"dtype", "U8"},
        {"shape", {tensor["data_offsets"][1].get<index_t>() - tensor["data_offsets"][0].get<index_t>()}},
        {"data_offsets", tensor["data_offsets"]}};
    tensor["data_offsets"] = {end, end + bytes};
    end += bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(text.size() >> 8 * i);
  test::write_bytes(directory / "model.safetensors", file + text + whole.substr(data));
  test::fs::resize_file(directory / "model.safetensors", file.size() + text.size() + end);
}

}  // namespace

TEST_CASE("a disk too small for the output is found at once, by a dry run and by a run, and nothing is written") {
  const test::temporary_directory root;
  const std::uint64_t free = test::fs::space(root.path()).available;
  const auto vocabulary = static_cast<index_t>(free / 256);  // embedding and head take four times what is free
  if (vocabulary > std::numeric_limits<int32_t>::max()) {
    WARN("left out: no checkpoint is too large for a disk of " << free << " free bytes");
    return;
  }
  write_sparse(root / "model", vocabulary);
  const std::string before = test::listing(root.path());
  for (const char* how : {"--dry-run", "--restart"}) {
    const auto refused = test::run_program("awq_mistral", {"--model", (root / "model").string(), "--output",
                                                           (root / "out").string(), "--method", "rtn", how});
    CAPTURE(how, refused.out, refused.err);
    CHECK(refused.status == 1);
    CHECK_THAT(refused.err, Contains("the disk of " + root.path().string()) && Contains("free, and this run needs"));
    CHECK(test::listing(root.path()) == before);
  }
}

}  // namespace full_disk_tests
