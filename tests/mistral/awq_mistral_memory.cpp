// SPDX-License-Identifier: Apache-2.0
/// @file
/// How much memory a pass takes: activations and a layer, never the model.
#include <catch2/catch.hpp>

#include "support/model.hpp"
#include "support/program.hpp"

namespace awq_mistral_memory_tests {

using namespace nibble;
using namespace nibble::mistral;
using json = nlohmann::ordered_json;

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

constexpr std::uint64_t mebi = 1 << 20;

/// The program itself: its code and libraries, the tokenizer, 64 MiB of scratch for a chunk of sequences, and what the
/// BLAS and each of two threads keep for a tile.
constexpr std::uint64_t program_bytes = 128 * mebi;

/// Mistral-7B's proportions at a fourth of its width.
test::model_spec cut_down(index_t layers) {
  test::model_spec m;
  m.hidden = 1024, m.intermediate = 3584, m.heads = 8, m.kv_heads = 2, m.head_dim = 128;
  m.layers = layers;
  m.scale = 0x1p-5f;
  return m;
}

std::uint64_t peak(const test::fs::path& model, const test::temporary_directory& root,
                   const std::vector<std::string>& more) {
  std::vector<std::string> arguments = {
      "--model",     model.string(), "--output", (root / "out").string(), "--json", (root / "figures.json").string(),
      "--overwrite", "--threads",    "2"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const auto result = test::run_program("awq_mistral", arguments);
  INFO(result.err);
  REQUIRE(result.status == 0);
  return json::parse(test::read_bytes(root / "figures.json")).at("peak_resident_bytes").get<std::uint64_t>();
}

/// A layer in the model's dtype. What the allocator keeps grows with the first layers and then levels off, 12 MiB above
/// what a model of two shows; so peaks may differ by this, and the models must differ by more.
std::uint64_t layer_bytes(const test::model_spec& m) {
  const index_t attention = 2 * m.hidden * m.head_dim * (m.heads + m.kv_heads);
  return static_cast<std::uint64_t>(attention + 3 * m.hidden * m.intermediate) * 2;
}

/// Twice the activations, three layers in the model's dtype, the largest Gram matrix, the embedding or head.
std::uint64_t bound(const test::model_spec& m, index_t tokens) {
  const index_t gram = tokens > 0 ? m.intermediate * m.intermediate * 4 : 0;
  return static_cast<std::uint64_t>(2 * tokens * m.hidden * 4 + gram + m.vocabulary * m.hidden * 2) +
         3 * layer_bytes(m) + program_bytes;
}

}  // namespace

TEST_CASE("round-to-nearest holds a layer, however many the model has") {
  if (sanitized) {
    WARN("left out: a sanitizer's shadow memory is no measure of the program's");
    return;
  }
  const test::temporary_directory root;
  std::uint64_t peaks[2];
  int i = 0;
  for (const index_t layers : {4, 12}) {
    test::write_model(cut_down(layers), root / "model");
    peaks[i++] = peak(root / "model", root, {"--method", "rtn"});
    test::fs::remove_all(root / "model");
  }
  CAPTURE(peaks[0] / mebi, peaks[1] / mebi);
  CHECK(peaks[1] < bound(cut_down(2), 0));
  // Eight more layers are 52 MiB of codes, too.
  CHECK(peaks[1] < peaks[0] + layer_bytes(cut_down(2)));
}

TEST_CASE("AWQ holds activations, a layer and its Gram matrices, however many layers the model has") {
  if (sanitized) {
    WARN("left out: a sanitizer's shadow memory is no measure of the program's");
    return;
  }
  const test::temporary_directory root;
  const std::vector<std::string> cheap = {
      "--num-calibration-samples", "8", "--n-grid", "1", "--sweeps", "0", "--clip", "none"};
  std::uint64_t peaks[2];
  int i = 0;
  for (const index_t layers : {2, 4}) {
    test::write_model(cut_down(layers), root / "model");
    peaks[i++] = peak(root / "model", root, cheap);
    test::fs::remove_all(root / "model");
  }
  CAPTURE(peaks[0] / mebi, peaks[1] / mebi, bound(cut_down(2), 4096) / mebi);
  CHECK(peaks[1] < bound(cut_down(2), 4096));
  CHECK(peaks[1] < peaks[0] + layer_bytes(cut_down(2)));
}

}  // namespace awq_mistral_memory_tests
