// SPDX-License-Identifier: Apache-2.0
/// @file
/// AWQ where it matters: on a model with salient channels. The embedded model has few, so they are planted: each norm
/// weight is multiplied by a heavy-tailed factor, and the columns that read it are divided by it. The model is the same,
/// but groups now mix weights of very different sizes, of which the small ones meet the large activations.
#include <catch2/catch.hpp>
#include <cmath>

#include "mistral/safetensors.hpp"
#include "support/model.hpp"
#include "support/program.hpp"

namespace awq_mistral_quality_tests {

using namespace nibble;
using namespace nibble::mistral;
using json = nlohmann::ordered_json;
using test::words;

namespace {

/// Factor of channel j: base^k with P(k >= m) = 1 / (m + 1)^2, k at most 8: most channels have 1, a few base^4 and more.
float planted_factor(const std::string& norm, size_t j, float base) {
  const float u = (test::random_values(77, norm, static_cast<index_t>(j) + 1, 0.0f, 1.0f)[j] + 1.0f) / 2;
  const float k = std::floor(std::min(8.0f, 1.0f / std::sqrt(std::max(u, 1e-4f)) - 1.0f));
  return std::pow(base, k);
}

/// The norm whose output `name` reads; empty for what reads none.
std::string norm_before(const std::string& name) {
  const auto ends_with = [&](const std::string& end) {
    return name.size() > end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
  };
  const std::string layer = name.substr(0, name.find('.', 13));
  for (const char* reader : {".q_proj.weight", ".k_proj.weight", ".v_proj.weight"})
    if (ends_with(reader)) return layer + ".input_layernorm.weight";
  for (const char* reader : {".gate_proj.weight", ".up_proj.weight"})
    if (ends_with(reader)) return layer + ".post_attention_layernorm.weight";
  return {};
}

template <class T>
void plant(const test::fs::path& out, const char* stored, float base) {
  test::fs::create_directory(out);
  const test::fs::path model = test::embedded("model");
  test::copy_tokenizer(out);
  auto settings = json::parse(test::read_bytes(model / "config.json"));
  if (std::string(stored) == "F32") settings["torch_dtype"] = "float32";
  test::write_bytes(out / "config.json", settings.dump());
  const checkpoint from(model);
  safetensors_writer writer(out, std::uint64_t{1} << 40);
  for (const auto& [name, t] : from.tensors()) {
    std::vector<float> values(static_cast<size_t>(t.size()));
    read_floats(t, 0, t.size(), values.data());
    const bool norm = name.find("layernorm") != name.npos;
    const std::string before = norm ? name : norm_before(name);
    if (!before.empty()) {
      const auto width = static_cast<size_t>(t.shape.back());
      for (size_t j = 0; j < width; ++j) {
        const float factor = planted_factor(before, j, base);
        for (size_t i = j; i < values.size(); i += width) values[i] = norm ? values[i] * factor : values[i] / factor;
      }
    }
    const std::vector<T> kept(values.begin(), values.end());
    writer.add(name, stored, t.shape, kept.data(), kept.size() * sizeof(T));
  }
  writer.finish();
}

struct increases {
  double original, rtn, own;
};

/// Perplexity on 20 windows, calibrated on 32 sequences.
increases quantized(const test::fs::path& model, const test::temporary_directory& root, const words& more) {
  const std::string text = (root / "text.txt").string(), figures = (root / "figures.json").string();
  test::write_bytes(text, test::read_bytes(test::embedded("text/heldout-persuasion.txt")).substr(0, 33000));
  words arguments = {"--model", model.string(), "--output", (root / "out").string(),     "--overwrite", "--evaluate",
                     text,      "--json",       figures,    "--num-calibration-samples", "32"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const auto result = test::run_program("awq_mistral", arguments);
  INFO(result.err);
  REQUIRE(result.status == 0);
  const json all = json::parse(test::read_bytes(figures));
  CHECK(all.at("evaluation").at("windows").get<index_t>() <= 22);
  const auto& models = all.at("models");
  // Without AWQ there is no other model than round-to-nearest's.
  const increases found = {models[0].at("perplexity"), models[1].at("increase"), models.back().at("increase")};
  UNSCOPED_INFO("perplexity " << found.original << ", round to nearest +" << found.rtn << ", AWQ +" << found.own);
  return found;
}

}  // namespace

TEST_CASE("AWQ recovers nearly all of what salient channels cost round-to-nearest, by its scales alone as well") {
  const test::temporary_directory root;
  plant<bf16>(root / "model", "BF16", 4.0f);
  const increases plain = quantized(test::embedded("model"), root, {"--method", "rtn"});
  const increases whole = quantized(root / "model", root, {});
  CHECK(whole.original == Approx(plain.original).epsilon(1e-6));  // planting changed nothing
  const double cost = whole.rtn - plain.rtn;
  CHECK(cost > 10 * plain.rtn);
  // Measured: 101 % here, 99 % without sweeps, 96 % without searched ranges either, 18 % without scales.
  CHECK((whole.rtn - whole.own) / cost > 0.97);
  const increases swept = quantized(root / "model", root, {"--sweeps", "0"});
  CHECK(swept.rtn == whole.rtn);
  CHECK((swept.rtn - swept.own) / cost > 0.95);
  const increases scales = quantized(root / "model", root, {"--sweeps", "0", "--clip", "none"});
  CHECK((scales.rtn - scales.own) / cost > 0.92);
  const increases ranges = quantized(root / "model", root, {"--sweeps", "0", "--n-grid", "1"});
  CHECK((ranges.rtn - ranges.own) / cost < 0.5);
}

TEST_CASE("salient channels whose factors are no powers of two, in an fp32 model, are recovered as well") {
  const test::temporary_directory root;
  plant<float>(root / "model", "F32", 3.7f);
  const increases whole = quantized(root / "model", root, {});
  CHECK(whole.rtn > 4);
  CHECK(whole.own < 0.1 * whole.rtn);
}

}  // namespace awq_mistral_quality_tests
