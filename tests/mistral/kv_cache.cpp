// SPDX-License-Identifier: Apache-2.0
/// @file
/// Keys and values in fp8: scales found, written, read, and what they do to a layer.
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "mistral/coded_linear.hpp"
#include "mistral/decode.hpp"
#include "mistral/quantization.hpp"
#include "mistral/recipe.hpp"
#include "mistral/weights.hpp"
#include "nibble/float_code.hpp"
#include "support/files.hpp"
#include "support/model.hpp"
#include "support/program.hpp"

namespace kv_cache_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;
using test::words;

namespace {

/// A layer's keys, turned, and values, and its attention over them, by the formulas alone, in double.
class plain_attention {
 public:
  plain_attention(const config& c, const layer_weights& w, const std::vector<float>& normed, index_t tokens)
      : c_(c),
        w_(w),
        tokens_(tokens),
        q_(project(normed, projection::q)),
        k_(project(normed, projection::k)),
        v_(project(normed, projection::v)) {
    unturned_ = largest(k_);
    turn(q_, c.heads);
    turn(k_, c.kv_heads);
  }
  static double largest(const std::vector<double>& x) {
    double most = 0;
    for (const double each : x) most = std::max(most, std::fabs(each));
    return most;
  }
  double largest_k() const { return largest(k_); }
  double largest_unturned() const { return unturned_; }
  double largest_v() const { return largest(v_); }
  void round(double k_scale, double v_scale) {
    round(k_, k_scale);
    round(v_, v_scale);
  }
  std::vector<double> output() const {
    const index_t d = c_.head_dim, kv = c_.kv_width();
    std::vector<double> attended(static_cast<size_t>(tokens_ * c_.q_width())), out;
    for (index_t t = 0; t < tokens_; ++t)
      for (index_t h = 0; h < c_.heads; ++h) {
        const index_t from = h / (c_.heads / c_.kv_heads) * d;
        std::vector<double> p;
        double all = 0;
        for (index_t s = 0; s <= t; ++s) {
          double score = 0;
          for (index_t i = 0; i < d; ++i) score += at(q_, t * c_.q_width() + h * d + i) * at(k_, s * kv + from + i);
          p.push_back(std::exp(score / std::sqrt(static_cast<double>(d))));
          all += p.back();
        }
        for (index_t i = 0; i < d; ++i)
          for (index_t s = 0; s <= t; ++s)
            attended[static_cast<size_t>(t * c_.q_width() + h * d + i)] +=
                p[static_cast<size_t>(s)] / all * at(v_, s * kv + from + i);
      }
    for (index_t t = 0; t < tokens_; ++t)
      for (index_t n = 0; n < c_.hidden; ++n) {
        double sum = 0;
        for (index_t j = 0; j < c_.q_width(); ++j)
          sum += at(attended, t * c_.q_width() + j) * static_cast<double>(w_.at(c_, projection::o)(n, j));
        out.push_back(sum);
      }
    return out;
  }

 private:
  static double at(const std::vector<double>& x, index_t i) { return x[static_cast<size_t>(i)]; }
  std::vector<double> project(const std::vector<float>& normed, projection p) const {
    std::vector<double> y;
    const auto w = w_.at(c_, p);
    for (index_t t = 0; t < tokens_; ++t)
      for (index_t n = 0; n < w.rows; ++n) {
        double sum = 0;
        for (index_t j = 0; j < w.cols; ++j)
          sum += static_cast<double>(w(n, j)) * static_cast<double>(normed[static_cast<size_t>(t * w.cols + j)]);
        y.push_back(sum);
      }
    return y;
  }
  void turn(std::vector<double>& x, index_t heads) const {
    const index_t half = c_.head_dim / 2;
    for (index_t t = 0; t < tokens_; ++t)
      for (index_t h = 0; h < heads; ++h)
        for (index_t i = 0; i < half; ++i) {
          const double angle =
              static_cast<double>(t) * std::pow(c_.rope_theta, -static_cast<double>(i) / static_cast<double>(half));
          double& a = x[static_cast<size_t>((t * heads + h) * c_.head_dim + i)];
          double& b = x[static_cast<size_t>((t * heads + h) * c_.head_dim + half + i)];
          const double turned = a * std::cos(angle) - b * std::sin(angle);
          b = b * std::cos(angle) + a * std::sin(angle);
          a = turned;
        }
  }
  static void round(std::vector<double>& x, double scale) {
    for (double& each : x) {
      const float ratio = static_cast<float>(each) / static_cast<float>(scale);
      each = static_cast<double>(float_value(float_code(ratio, float_format::e4m3), float_format::e4m3)) * scale;
    }
  }

  const config& c_;
  const layer_weights& w_;
  index_t tokens_;
  std::vector<double> q_, k_, v_;
  double unturned_ = 0;
};

struct small_model {
  test::temporary_directory directory;
  config c;

  small_model() {
    test::model_spec spec;
    spec.layers = 1;
    test::write_weights(spec, directory / "model");
    c = read_config(directory / "model");
  }
  checkpoint files() const { return checkpoint(directory / "model"); }
};

json cache_scheme(const json& changes = json::object()) {
  packing how;
  quantization q({{how, {"Linear"}}}, {"lm_head"}, "test");
  q.round_cache();
  json written = quantization_json(q, {"model.layers.0.mlp.up_proj", "lm_head"});
  written["kv_cache_scheme"].update(changes);
  return written;
}

std::optional<quantization> read(const json& written) {
  config c;
  c.json["quantization_config"] = written;
  return quantization::read(c, "config.json");
}

}  // namespace

TEST_CASE("attention over keys and values in fp8 is that of the numbers their codes stand for") {
  const small_model m;
  const checkpoint files = m.files();
  layer_weights w = load_layer(files, m.c, 0);
  constexpr index_t tokens = 7;
  const std::vector<float> x = test::random_values(5, "x", tokens * m.c.hidden, 0.0f, 1.0f);
  const std::vector<index_t> starts = {0, tokens};
  const auto run = [&] {
    std::vector<float> out(x.size());
    attention_block(m.c, w, {x.data(), tokens, m.c.hidden}, starts, {out.data(), tokens, m.c.hidden});
    return out;
  };
  const auto distance = [](const std::vector<float>& a, const std::vector<double>& b) {
    double sum = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2), size += b[i] * b[i];
    return std::sqrt(sum / size);
  };
  plain_attention plain(m.c, w, x, tokens);
  const std::vector<float> exact = run();
  CHECK(distance(exact, plain.output()) < 1e-5);
  w.cache = {0.0625f, 0.001953125f};  // of the values, some saturate
  CHECK(plain.largest_v() > 448 * 0.001953125);
  plain.round(0.0625, 0.001953125);
  // A key next to a tie may go the other way: 2⁻⁴ of one among hundreds.
  CHECK(distance(run(), plain.output()) < 2e-3);
  CHECK(distance(exact, plain.output()) > 1e-2);
}

TEST_CASE("the largest keys and values are those of all sequences, keys at their positions") {
  const small_model m;
  const checkpoint files = m.files();
  const layer_weights w = load_layer(files, m.c, 0);
  bool turning_matters = false;
  for (const std::uint64_t seed : {6u, 7u, 8u, 9u}) {
    const std::vector<float> x = test::random_values(seed, "x", 9 * m.c.hidden, 0.0f, 2.0f);
    std::vector<float> normed(x.size());
    rms_norm({x.data(), 9, m.c.hidden}, w.input_norm, m.c.rms_norm_eps, {normed.data(), 9, m.c.hidden});
    const auto split = normed.begin() + static_cast<std::ptrdiff_t>(4 * m.c.hidden);
    const plain_attention first(m.c, w, {normed.begin(), split}, 4), second(m.c, w, {split, normed.end()}, 5);
    const cache_maxima by_channel = largest_cached(m.c, w, {x.data(), 9, m.c.hidden}, {0, 4, 9});
    const cache_scales found = {*std::max_element(by_channel.k.begin(), by_channel.k.end()),
                                *std::max_element(by_channel.v.begin(), by_channel.v.end())};
    const double turned = std::max(first.largest_k(), second.largest_k());
    CHECK(static_cast<double>(found.k) == Approx(turned).epsilon(1e-5));
    CHECK(static_cast<double>(found.v) == Approx(std::max(first.largest_v(), second.largest_v())).epsilon(1e-5));
    const double before = std::max(first.largest_unturned(), second.largest_unturned());
    turning_matters = turning_matters || std::fabs(before / turned - 1) > 0.01;
  }
  CHECK(turning_matters);
}

TEST_CASE("kv_cache_scheme is read as what was written, and what is not done is refused by name") {
  CHECK(read(cache_scheme())->rounds_cache());
  json without = cache_scheme();
  without["kv_cache_scheme"] = nullptr;
  CHECK_FALSE(read(without)->rounds_cache());
  for (const auto& [change, says] :
       std::vector<std::pair<json, std::string>>{{{{"type", "int"}}, "\"float\""},
                                                 {{{"num_bits", 4}}, "must be 8"},
                                                 {{{"dynamic", true}}, "dynamic scales"},
                                                 {{{"symmetric", false}}, "symmetric"},
                                                 {{{"strategy", "attn_head"}}, "tensor is"}})
    CHECK_THROWS_WITH(read(cache_scheme(change)), Contains("kv_cache_scheme") && Contains(says));
}

TEST_CASE("a recipe of keys and values in fp8 reads as what was written, and another cache is refused") {
  const test::temporary_directory out;
  recipe made;
  made.awq = false, made.rounds_cache = true, made.groups = {{packing{}, {"Linear"}}}, made.ignore = {"lm_head"};
  write_recipe(out.path(), made);
  const recipe again = read_recipe(out / "recipe.yaml");
  CHECK(again.rounds_cache);
  CHECK(again.without_effect.empty());
  const auto with = [&](const std::string& scheme) {
    test::write_bytes(out / "other.yaml",
                      "default_stage: {default_modifiers: {QuantizationModifier: {scheme: W4A16, "
                      "kv_cache_scheme: " +
                          scheme + "}}}\n");
    return read_recipe(out / "other.yaml");
  };
  CHECK(with("{num_bits: 8, type: float, strategy: tensor, dynamic: false, symmetric: true, observer: minmax}")
            .rounds_cache);
  CHECK_FALSE(with("null").rounds_cache);
  for (const char* scheme :
       {"{num_bits: 8}", "{num_bits: 4, type: float}", "{type: int, num_bits: 8}",
        "{type: float, num_bits: 8, dynamic: true}", "{type: float, num_bits: 8, strategy: attn_head}",
        "{type: float, num_bits: 8, symmetric: false}"})
    CHECK_THROWS_WITH(with(scheme), Contains("kv_cache_scheme"));
}

TEST_CASE(
    "with --kv-cache fp8 the output has scales of what calibration saw, and decodes and predicts with keys and values "
    "in fp8") {
  const test::temporary_directory root;
  test::model_spec spec;
  test::write_weights(spec, root / "model");
  test::copy_tokenizer(root / "model");
  const test::fs::path text = root / "text.txt";
  test::write_bytes(text, test::read_bytes(test::embedded("text/heldout-persuasion.txt")).substr(20000, 1500));
  const auto quantized = [&](const std::string& output, const words& more) {
    words all = {"--model",
                 (root / "model").string(),
                 "--output",
                 (root / output).string(),
                 "--calibration",
                 text.string(),
                 "--num-calibration-samples",
                 "4",
                 "--max-seq-length",
                 "32",
                 "--group-size",
                 "32",
                 "--n-grid",
                 "1"};
    all.insert(all.end(), more.begin(), more.end());
    const auto result = test::run_program("awq_mistral", all);
    CAPTURE(result.err);
    REQUIRE(result.status == 0);
    return root / output;
  };
  const test::fs::path plain = quantized("plain", {}), rounded = quantized("rounded", {"--kv-cache", "fp8"});
  const config c = read_config(rounded);
  const checkpoint files(rounded);
  CHECK(c.json["quantization_config"]["kv_cache_scheme"]["type"] == "float");
  CHECK(read_config(plain).json["quantization_config"]["kv_cache_scheme"].is_null());
  for (index_t layer = 0; layer < c.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".self_attn.";
    CHECK(files.at(prefix + "k_scale", {1}).dtype == "BF16");
    const cache_scales scales = read_cache_scales(files, c, layer);
    CHECK((scales.k > 0 && scales.v > 0 && scales.k < 1 && scales.v < 1));
    CHECK(load_layer(files, c, layer).cache.k == scales.k);
  }
  // Decoded and in one forward pass: the same numbers but for ties of what is rounded.
  const auto both = [&](const test::fs::path& directory) {
    const config settings = read_config(directory);
    const checkpoint from(directory);
    batch tokens;
    const int32_t ids[] = {1, 300, 500, 700, 900, 1100};
    tokens.append(ids, 6);
    decoder model(from, settings);
    const auto decoded = model.prefill(tokens);
    std::vector<float> x(static_cast<size_t>(6 * settings.hidden));
    const matrix<float> rows(x.data(), 6, settings.hidden);
    embed(from, settings, tokens, rows);
    for (index_t layer = 0; layer < settings.layers; ++layer)
      forward_layer(settings, load_layer(from, settings, layer), rows, tokens.starts);
    const lm_head head = load_head(from, settings);
    rms_norm(rows.rows_at(5, 1), head.norm, head.epsilon, rows.rows_at(0, 1));
    std::vector<float> weights(static_cast<size_t>(settings.vocabulary * settings.hidden));
    head.weights->rows(0, settings.vocabulary, weights.data());
    double apart = 0, size = 0;
    std::vector<double> logits;
    for (index_t n = 0; n < settings.vocabulary; ++n) {
      double sum = 0;
      for (index_t j = 0; j < settings.hidden; ++j)
        sum += static_cast<double>(x[static_cast<size_t>(j)]) *
               static_cast<double>(weights[static_cast<size_t>(n * settings.hidden + j)]);
      apart += std::pow(sum - static_cast<double>(decoded(0, n)), 2), size += sum * sum;
      logits.push_back(sum);
    }
    CHECK(std::sqrt(apart / size) < 0.01);
    return logits;
  };
  const auto one = both(plain), other = both(rounded);
  double moved = 0, size = 0;
  for (size_t i = 0; i < one.size(); ++i) moved += std::pow(one[i] - other[i], 2), size += one[i] * one[i];
  CHECK(std::sqrt(moved / size) > 1e-3);
  CHECK(std::sqrt(moved / size) < 0.2);
  // A scale that is missing is missed.
  test::fs::copy(plain, root / "damaged", test::fs::copy_options::recursive);
  test::fs::copy_file(rounded / "config.json", root / "damaged/config.json",
                      test::fs::copy_options::overwrite_existing);
  CHECK_THROWS_WITH(load_layer(checkpoint(root / "damaged"), c, 0), Contains("model.layers.0.self_attn.k_scale"));
  CHECK_THAT(test::refused_by("perplexity", {"--model", (root / "damaged").string(), "--text", text.string()}, 1),
             Contains("self_attn.k_scale"));
  const auto refused = [&](const words& more) {
    words all = {"--output", (root / "refused").string(), "--kv-cache", "fp8"};
    all.insert(all.end(), more.begin(), more.end());
    return test::refused_by("awq_mistral", all, 2);
  };
  CHECK_THAT(refused({"--method", "rtn"}), Contains("--kv-cache fp8") && Contains("calibration"));
  CHECK_THAT(refused({"--format", "awq-gemm"}), Contains("--format compressed-tensors"));
  CHECK_THAT(test::refused_by("awq_mistral", {"--output", "x", "--kv-cache", "int4"}, 2), Contains("fp8, none"));
}

}  // namespace kv_cache_tests
