// SPDX-License-Identifier: Apache-2.0
/// @file
/// AWQ's scales in GGUF files: folded so that the model stays what it is, chosen so that its linears' outputs lose no more.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <optional>

#include "gguf/scales.hpp"
#include "mistral/gguf_model.hpp"
#include "pass/layer.hpp"
#include "support/model.hpp"
#include "support/program.hpp"

namespace gguf_scales_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;
using test::words;

namespace {

/// A model with some channels of every linear's input that are much louder than others.
void write_loud_model(const test::model_spec& spec, const fs::path& directory) {
  test::write_model(spec, directory, [](test::made_tensor& t) {
    const bool norm = t.name.find("layernorm") != std::string::npos;
    const bool rows = t.name.find("up_proj") != std::string::npos || t.name.find("v_proj") != std::string::npos;
    if (!norm && !rows) return;
    const size_t width = norm ? 1 : static_cast<size_t>(t.shape[1]);
    for (size_t i = 0; i < t.values.size(); ++i)
      if (i / width % 11 == 3) t.values[i] *= 12.0f;
  });
}

calibration_set some_samples() {
  calibration_set set;
  for (std::uint64_t i = 0; i < 4; ++i) {
    set.sequences.emplace_back();
    for (std::uint64_t j = 0; j < 48; ++j)
      set.sequences.back().push_back(static_cast<std::int32_t>(test::mixed(100 * i + j) % 2048));
  }
  return set;
}

/// A model, its plan as a type, and the scales that were found for it.
struct scaled_model {
  fs::path directory;
  config c = read_config(directory);
  checkpoint files{directory};
  calibration_set samples = some_samples();
  std::optional<importance_matrix> importance;
  gguf_plan plan;
  folded_gguf_scales scales;
  std::vector<layer_statistics> seen;

  scaled_model(const fs::path& from, const char* type, bool with_importance) : directory(from) {
    if (with_importance) importance = blank_importance(files, c, "t.txt", samples);
    plan = plan_as(type);
    calibration_listener told;
    told.correlations = true;
    told.layer = [&](index_t layer, const layer_weights& w, const layer_statistics& statistics) {
      importance_sums sums;
      sums.tokens = samples.tokens();
      add_layer(sums, layer, statistics);
      if (importance)
        for (const auto& [name, weights] : importance_of(sums).weights) importance->weights.at(name) = weights;
      scales.search(layer, c, plan, w, statistics);
      seen.push_back(statistics);
    };
    told.head = [](const std::vector<double>&) {};
    calibrate(files, c, samples, host::matmul_precision::float32, told);
  }

  gguf_plan plan_as(const char* type) const {
    return plan_gguf(files, c, *find_mix(type), importance ? &*importance : nullptr, "m");
  }
  void write(const fs::path& to, const gguf_plan& as) const {
    write_gguf(to, as, files, c, [](index_t) {});
  }
};

/// Output of the last norm on the samples: what the head reads.
std::vector<float> last_states(const fs::path& model, const calibration_set& samples) {
  const checkpoint files(model);
  const config c = read_config(model);
  batch all;
  for (const auto& ids : samples.sequences) all.append(ids.data(), static_cast<index_t>(ids.size()));
  std::vector<float> data(static_cast<size_t>(all.tokens() * c.hidden));
  const matrix<float> x(data.data(), all.tokens(), c.hidden);
  embed(files, c, all, x);
  for (index_t layer = 0; layer < c.layers; ++layer) forward_layer(c, load_layer(files, c, layer), x, all.starts);
  rms_norm(x, read_vector(files, "model.norm.weight", c.hidden), c.rms_norm_eps, x);
  return data;
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(a[i]), 2);
  }
  return std::sqrt(error / size);
}

/// tr(ΔW·G·ΔWᵀ) of each linear of a file of scaled or plain blocks, from plain loops over what the file holds; what it was scaled by
/// undone by the norms and rows that the file has.
std::map<std::string, double> output_errors(const scaled_model& m, const fs::path& file, const gguf_plan& as) {
  const checkpoint there(file);
  std::map<std::string, double> errors;
  for (index_t layer = 0; layer < m.c.layers; ++layer) {
    const layer_weights own = load_layer(m.files, m.c, layer), held = load_layer(there, m.c, layer);
    for (const projection p : projections) {
      const std::string name = gguf_name(projection_name(layer, p) + ".weight");
      const auto& t = *std::find_if(as.tensors.begin(), as.tensors.end(),
                                    [&](const planned_tensor& each) { return each.info.name == name; });
      const auto w = own.at(m.c, p), q = held.at(m.c, p);
      const host::second_moment& x = m.seen[static_cast<size_t>(layer)].correlations[static_cast<size_t>(input_of(p))];
      std::vector<float> gram(static_cast<size_t>(w.cols * w.cols));
      x.whole({gram.data(), w.cols, w.cols});
      double sum = 0;
      for (index_t row = 0; row < w.rows; ++row) {
        std::vector<double> d(static_cast<size_t>(w.cols));
        for (index_t col = 0; col < w.cols; ++col) {
          double value = static_cast<double>(q(row, col));
          if (t.divided) value *= static_cast<double>((*t.divided)[static_cast<size_t>(row)]);
          if (t.times) value /= static_cast<double>((*t.times)[static_cast<size_t>(col)]);
          d[static_cast<size_t>(col)] = value - static_cast<double>(w(row, col));
        }
        for (index_t i = 0; i < w.cols; ++i)
          for (index_t j = 0; j < w.cols; ++j)
            sum += d[static_cast<size_t>(i)] * d[static_cast<size_t>(j)] *
                   static_cast<double>(gram[static_cast<size_t>(i * w.cols + j)]);
      }
      errors[name] = sum;
    }
  }
  return errors;
}

}  // namespace

TEST_CASE("a model whose scales are folded computes what it did where nothing is rounded") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.kv_heads = GENERATE(1, 2, 4);
  write_loud_model(spec, root / "model");
  scaled_model m(root / "model", "Q4_0", GENERATE(false, true));
  size_t scaled = 0;
  for (const found_scale& each : m.scales.found()) scaled += each.ratio.identity() ? 0 : 1;
  CHECK(m.scales.found().size() == 8);
  CHECK(scaled >= 6);
  gguf_plan plan = m.plan_as("F32");
  m.scales.apply(plan);
  m.write(root / "scaled.gguf", plan);
  const std::vector<float> before = last_states(m.directory, m.samples);
  // A multiplication and a division more a weight: 2^-23 each, of which two layers make a small multiple.
  CHECK(relative_error(before, last_states(root / "scaled.gguf", m.samples)) < 1e-5);
  // It would be another model if any one place were left out.
  const checkpoint own(root / "model"), there(root / "scaled.gguf");
  const auto differs = [&](const std::string& name) {
    const tensor &a = own.at(name), &b = there.at(name);
    std::vector<float> x(static_cast<size_t>(a.size())), y = x;
    read_floats(a, 0, a.size(), x.data());
    read_floats(b, 0, b.size(), y.data());
    return relative_error(x, y) > 0.01;
  };
  const auto was_scaled = [&](layer_input input) {
    const auto& all = m.scales.found();
    return std::any_of(all.begin(), all.end(), [&](const found_scale& each) {
      return each.layer == 1 && each.input == input && !each.ratio.identity();
    });
  };
  for (const projection p : projections)
    if (was_scaled(input_of(p))) CHECK(differs(projection_name(1, p) + ".weight"));
  CHECK(differs("model.layers.1.input_layernorm.weight") == was_scaled(layer_input::attention));
  CHECK(differs("model.layers.1.post_attention_layernorm.weight") == was_scaled(layer_input::mlp));
  CHECK(!differs("model.norm.weight"));
  CHECK(!differs("lm_head.weight"));
}

TEST_CASE("scales never leave a linear's input with more output error than it had, and less where channels are loud") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.hidden = 256, spec.intermediate = 256, spec.head_dim = 64, spec.layers = 1;
  write_loud_model(spec, root / "model");
  const char* const type = GENERATE("Q4_0", "Q2_K", "IQ4_XS");
  const bool with_importance = GENERATE(false, true);
  CAPTURE(type, with_importance);
  scaled_model m(root / "model", type, with_importance);
  m.write(root / "plain.gguf", m.plan);
  const auto before = output_errors(m, root / "plain.gguf", m.plan);
  m.scales.apply(m.plan);
  for (const planned_tensor& t : m.plan.tensors) {
    if (!t.times || !with_importance) continue;
    // What is wrong in a column that was multiplied by s counts a/s².
    const std::vector<float>& a = m.importance->weights.at(t.info.name);
    for (size_t j = 0; j < a.size(); ++j)
      CHECK((*t.importance)[j] == Approx(a[j] / std::pow((*t.times)[j], 2.0f)).epsilon(1e-5));
  }
  m.write(root / "scaled.gguf", m.plan);
  const auto after = output_errors(m, root / "scaled.gguf", m.plan);
  double all_before = 0, all_after = 0;
  REQUIRE(m.scales.found().size() == 4);
  for (const found_scale& each : m.scales.found()) {
    CAPTURE(each.layer, name_of(each.input));
    CHECK(each.loss <= each.identity_loss);
    double was = 0, is = 0;
    for (const std::string& name : readers_of(each.layer, each.input)) was += before.at(name), is += after.at(name);
    // What the search says is what the file has: sums of floats, as long as a row.
    CHECK(each.loss == Approx(is).epsilon(1e-3));
    // Rows of v and up are divided before they are judged, which rounds fp16 scales otherwise.
    CHECK(each.identity_loss == Approx(was).epsilon(2e-2));
    all_before += was, all_after += is;
  }
  // Importance alone takes loud channels into account, so that scales have less to do.
  CHECK(all_after < (with_importance ? 1.0 : 0.95) * all_before);
}

TEST_CASE("option --awq writes a file of as many bits that is nearer to the model, and tells what it did") {
  const test::temporary_directory root;
  write_loud_model({}, root / "model");
  const auto convert = [&](const char* to, words more) {
    words arguments = {"--model", (root / "model").string(), "--output", (root / to).string(), "--type", "Q4_0",
                       "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const auto result = test::run_program("gguf_mistral", arguments);
    CAPTURE(result.err);
    REQUIRE(result.status == 0);
    return nlohmann::json::parse(result.out);
  };
  const words few = {"--awq", "--num-calibration-samples", "4", "--max-seq-length", "64"};
  const auto plain = convert("plain.gguf", {}), scaled = convert("scaled.gguf", few);
  CHECK(plain["bits_per_weight"] == scaled["bits_per_weight"]);
  CHECK(!plain.contains("awq"));
  REQUIRE(scaled["awq"].size() == 8);
  for (const auto& each : scaled["awq"]) CHECK(each["loss"].get<double>() <= each["identity_loss"].get<double>());
  const calibration_set samples = some_samples();
  const std::vector<float> own = last_states(root / "model", samples);
  const double before = relative_error(own, last_states(root / "plain.gguf", samples));
  const double after = relative_error(own, last_states(root / "scaled.gguf", samples));
  CAPTURE(before, after);
  CHECK(after < before);
  // With an importance too, from a file or found here.
  words both = few;
  both.insert(both.end(), {"--imatrix", "auto", "--imatrix-output", (root / "i.gguf").string()});
  convert("both.gguf", both);
  words from_file = few;
  from_file.insert(from_file.end(), {"--imatrix", (root / "i.gguf").string()});
  convert("file.gguf", from_file);
  CHECK(last_states(root / "both.gguf", samples) == last_states(root / "file.gguf", samples));
  // The matrix is of the model as it was.
  words alone = {"--imatrix", "auto", "--imatrix-output", (root / "j.gguf").string()};
  alone.insert(alone.end(), few.begin() + 1, few.end());
  convert("alone.gguf", alone);
  CHECK(read_importance(root / "i.gguf").weights == read_importance(root / "j.gguf").weights);
}

TEST_CASE("option --awq is refused for packed models and for types that round nothing in blocks") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  const words pack = {
      "--model", (root / "model").string(), "--output", (root / "packed").string(), "--method", "rtn", "--group-size",
      "32"};
  REQUIRE(test::run_program("awq_mistral", pack).status == 0);
  const std::string before = test::listing(root.path());
  const auto refuses = [&](const char* model, const char* type, int status) {
    const auto result = test::run_program("gguf_mistral", {"--model", (root / model).string(), "--output",
                                                           (root / "a.gguf").string(), "--awq", "--type", type});
    CHECK(result.status == status);
    CHECK(test::listing(root.path()) == before);
    return result.err;
  };
  CHECK_THAT(refuses("packed", "Q4_0", 1), Contains("quantization_config") && Contains("leave --awq out"));
  CHECK_THAT(refuses("model", "F16", 2), Contains("no linear of this model gets blocks"));
}

}  // namespace gguf_scales_tests
