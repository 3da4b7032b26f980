// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <thread>

#include "mistral/evaluation_text.hpp"
#include "mistral/json.hpp"
#include "mistral/places.hpp"
#include "nibble/host/parallel.hpp"
#include "support/files.hpp"
#include "support/places.hpp"
#include "support/program.hpp"

namespace perplexity_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;

namespace {

const test::fs::path examples = test::fs::path(mistral::source_directory) / "examples/awq_mistral";
const test::fs::path embedded = examples / "model";
const test::fs::path speeches = examples / "text/heldout-state-of-the-union-2013-2021.txt";

std::vector<int32_t> ids_of(const test::fs::path& text) {
  return read_evaluation_text(text, *open_tokenizer(embedded)).ids;
}

/// A copy of the embedded model whose tensor `name` went through `change`, in fp32.
template <class F>
void write_changed(const test::fs::path& directory, const std::string& name, F&& change) {
  for (const char* file : {"config.json", "tokenizer.json", "tokenizer_config.json"})
    test::fs::copy_file(embedded / file, directory / file);
  const checkpoint from(embedded);
  safetensors_writer writer(directory, ~std::uint64_t{0});
  for (const auto& [key, t] : from.tensors()) {
    if (key != name) {
      writer.add(key, t.dtype, t.shape, t.data, static_cast<std::uint64_t>(t.bytes));
      continue;
    }
    std::vector<float> values(static_cast<size_t>(t.size()));
    read_floats(t, 0, t.size(), values.data());
    change(values);
    writer.add(key, "F32", t.shape, values.data(), values.size() * sizeof(float));
  }
  writer.finish();
}

void write_uneven_head(const test::fs::path& directory) {
  write_changed(directory, "lm_head.weight", [](std::vector<float>& head) {
    for (size_t i = 0; i < head.size(); ++i) head[i] *= 1.0f + static_cast<float>(i / 256 % 8) / 16.0f;
  });
}

}  // namespace

TEST_CASE("windows score every id but BOS once, each predicted from all its window has before it") {
  for (const index_t ids : {2, 3, 100, 511, 512, 513, 514, 1024, 1025, 1500})
    for (const index_t length : {1, 2, 100, 512})
      for (const index_t stride : {1, 7, 50, 100, 512}) {
        if (stride > length) continue;
        std::vector<int> scored(static_cast<size_t>(ids));
        index_t begin = 0;
        for (const window& w : plan_windows(ids, 512, {length, stride, 0})) {
          CHECK(w.begin == begin);
          CHECK((w.length == length || w.begin + w.length == ids - 1));
          CHECK(w.scored > 0);
          CHECK(w.scored <= w.length);
          for (index_t i = w.begin + w.length + 1 - w.scored; i <= w.begin + w.length; ++i) ++scored[size_t(i)];
          begin += stride;
        }
        CHECK(scored[0] == 0);
        CHECK(std::all_of(scored.begin() + 1, scored.end(), [](int times) { return times == 1; }));
      }
}

TEST_CASE("a window is no longer than the model's context, and only as many are planned as asked for") {
  CHECK(plan_windows(5000, 512, {1024, 512, 0}).front().length == 512);
  CHECK(plan_windows(5000, 512, {1024, 1024, 0}).at(1).begin == 512);
  CHECK(plan_windows(5000, 512, {512, 256, 3}).size() == 3);
  CHECK_THROWS_AS(plan_windows(5000, 512, {512, 513, 0}), usage_error);
  CHECK_THROWS_AS(plan_windows(5000, 512, {0, 1, 0}), usage_error);
  CHECK_THROWS_AS(plan_windows(5000, 512, {512, 0, 0}), usage_error);
  CHECK_THROWS_AS(plan_windows(5000, 512, {512, 512, -1}), usage_error);
  CHECK_THROWS_AS(plan_windows(1, 512, {512, 512, 0}), error);
}

TEST_CASE("perplexity, divergence and agreement are those of transformers on the same windows") {
  const json golden = read_json(test::fs::path(nibble::test::golden_directory) / "perplexity/figures.json");
  const test::temporary_directory uneven;
  write_uneven_head(uneven.path());
  const config c = read_config(embedded), uneven_config = read_config(uneven.path());
  const checkpoint files(embedded), uneven_files(uneven.path());
  const auto check = [&](const json& figure, size_t most_ids) {
    std::vector<int32_t> ids = ids_of(examples / "text" / figure["text"].get<std::string>());
    ids.resize(std::min(ids.size(), most_ids));
    const window_options options{figure["window"], figure["stride"], figure["windows"]};
    const auto windows = plan_windows(static_cast<index_t>(ids.size()), c.context, options);
    std::vector<evaluated_model> models = {{files, c, nullptr}};
    const bool compare = figure.contains("agreement_of_uneven_head");
    if (compare) models.push_back({uneven_files, uneven_config, nullptr});
    const auto results = evaluate(models, ids, windows);
    CHECK(results[0].windows == figure["windows"].get<index_t>());
    CHECK(results[0].tokens == figure["tokens"].get<index_t>());
    // Both sum fp32 products in different orders; their figures differ by about 1e-6 of the value.
    CHECK(results[0].perplexity == Approx(figure["perplexity"].get<double>()).epsilon(1e-5));
    if (!compare) return;
    CHECK(results[1].shift.divergence == Approx(figure["divergence_of_uneven_head"].get<double>()).epsilon(1e-4));
    // A top token may change hands where two are equal to the last bits: at most two of the positions.
    CHECK(std::abs(results[1].shift.agreement - figure["agreement_of_uneven_head"].get<double>()) * 2200 < 2.5);
    CHECK(results[1].increase == Approx(results[1].perplexity - results[0].perplexity));
  };
  for (const json& figure : golden["figures"]) check(figure, ~size_t{0});
  check(golden["first_1300_ids"], 1301);
}

TEST_CASE("figures do not depend on the batches or on the number of threads") {
  const config c = read_config(embedded);
  const checkpoint files(embedded);
  const auto ids = ids_of(speeches);
  const auto windows = plan_windows(static_cast<index_t>(ids.size()), c.context, {128, 64, 12});
  const auto whole = evaluate({{files, c, nullptr}}, ids, windows).front();
  const auto single = evaluate({{files, c, nullptr}}, ids, windows, nullptr, 1).front();
  CHECK(whole.perplexity == Approx(single.perplexity).epsilon(1e-7));
  CHECK(whole.standard_error == Approx(single.standard_error).epsilon(1e-6));
  host::set_threads(1);
  const auto one = evaluate({{files, c, nullptr}}, ids, windows).front();
  host::set_threads(3);
  const auto three = evaluate({{files, c, nullptr}}, ids, windows).front();
  host::set_threads(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  CHECK(one.perplexity == three.perplexity);
}

TEST_CASE("a model is no distance from itself") {
  const config c = read_config(embedded);
  const checkpoint files(embedded);
  const auto ids = ids_of(speeches);
  const auto windows = plan_windows(static_cast<index_t>(ids.size()), c.context, {256, 256, 4});
  const auto results = evaluate({{files, c, nullptr}, {files, c, nullptr}}, ids, windows);
  CHECK(results[1].perplexity == results[0].perplexity);
  CHECK(results[1].increase == 0.0);
  CHECK(results[1].increase_standard_error == 0.0);
  CHECK(results[1].shift.divergence < 1e-7);
  CHECK(results[1].shift.agreement == 1.0);
}

TEST_CASE("divergence by position is that of each position scored by itself, sorted into sixteenths of the window") {
  const test::temporary_directory uneven;
  write_uneven_head(uneven.path());
  const config c = read_config(embedded);
  const checkpoint files(embedded), uneven_files(uneven.path());
  const auto ids = ids_of(speeches);
  // A window that 16 does not divide, one that is shorter than 16, and windows that overlap, so that few score their
  // first positions; a last window that is cut short.
  for (const window_options options :
       {window_options{100, 100, 12}, window_options{5, 5, 40}, window_options{96, 32, 9}}) {
    const auto windows = plan_windows(static_cast<index_t>(ids.size()), c.context, options);
    const auto found = evaluate({{files, c, nullptr}, {uneven_files, c, nullptr}}, ids, windows)[1];
    std::map<index_t, std::vector<token_score>> by_bin;
    std::vector<double> all;
    const index_t bins = std::min<index_t>(16, options.window);
    for (const window& w : windows) {
      batch b;
      b.append(ids.data() + w.begin, w.length);
      std::vector<float> x_data(static_cast<size_t>(w.length * c.hidden));
      const matrix<float> x(x_data.data(), w.length, c.hidden);
      embed(files, c, b, x);
      for (index_t layer = 0; layer < c.layers; ++layer) forward_layer(c, load_layer(files, c, layer), x, b.starts);
      const lm_head own = load_head(uneven_files, c), first = load_head(files, c);
      std::vector<token_score> scores(static_cast<size_t>(w.length));
      const matrix<const float> read(x_data.data(), w.length, c.hidden);
      score(own, read, ids.data() + w.begin + 1, scores.data(), &first, read);
      for (index_t i = w.length - w.scored; i < w.length; ++i) {
        by_bin[i * bins / options.window].push_back(scores[static_cast<size_t>(i)]);
        all.push_back(scores[static_cast<size_t>(i)].divergence);
      }
    }
    REQUIRE(found.by_position.size() == by_bin.size());
    auto part = found.by_position.begin();
    const auto quantile = [](std::vector<double> values) {
      std::sort(values.begin(), values.end());
      const auto below = [&](double v) { return std::upper_bound(values.begin(), values.end(), v) - values.begin(); };
      for (const double v : values)
        if (static_cast<double>(below(v)) >= 0.99 * static_cast<double>(values.size())) return v;
      return -1.0;
    };
    for (const auto& [bin, scores] : by_bin) {
      std::vector<double> divergence;
      double sum = 0, agreeing = 0;
      for (const token_score& s : scores) {
        divergence.push_back(s.divergence);
        sum += s.divergence;
        agreeing += s.same_top ? 1 : 0;
      }
      CHECK(part->first * bins >= bin * options.window);
      CHECK((part->first - 1) * bins < bin * options.window);
      CHECK(part->last * bins >= (bin + 1) * options.window);
      CHECK(part->tokens == static_cast<index_t>(scores.size()));
      CHECK(part->divergence == Approx(sum / static_cast<double>(scores.size())).epsilon(1e-5));
      CHECK(part->divergence_99 == Approx(quantile(divergence)).epsilon(1e-5));
      CHECK(part->agreement == Approx(agreeing / static_cast<double>(scores.size())));
      ++part;
    }
    CHECK(found.shift.divergence_99 == Approx(quantile(all)).epsilon(1e-5));
    CHECK(found.shift.divergence_99 > found.shift.divergence);
    CHECK(found.shift.tokens == found.tokens);
  }
}

TEST_CASE("standard errors are those of leaving one window out") {
  const test::temporary_directory uneven;
  write_uneven_head(uneven.path());
  const config c = read_config(embedded);
  const checkpoint files(embedded), uneven_files(uneven.path());
  const std::vector<evaluated_model> models = {{files, c, nullptr}, {uneven_files, c, nullptr}};
  const auto ids = ids_of(speeches);
  const auto windows = plan_windows(static_cast<index_t>(ids.size()), c.context, {96, 80, 40});
  // Each window by itself, for both models; then every sum but one window's.
  std::vector<double> own, other;
  for (const window& w : windows) {
    const auto results = evaluate(models, ids, {w});
    own.push_back(std::log(results[0].perplexity) * static_cast<double>(w.scored));
    other.push_back(std::log(results[1].perplexity) * static_cast<double>(w.scored));
  }
  std::vector<double> left_out, left_out_increase;
  for (size_t i = 0; i < windows.size(); ++i) {
    double sum = 0, other_sum = 0, tokens = 0;
    for (size_t j = 0; j < windows.size(); ++j) {
      if (j == i) continue;
      sum += own[j], other_sum += other[j], tokens += static_cast<double>(windows[j].scored);
    }
    left_out.push_back(std::exp(sum / tokens));
    left_out_increase.push_back(std::exp(other_sum / tokens) - std::exp(sum / tokens));
  }
  const auto jackknife = [](const std::vector<double>& values) {
    double mean = 0, squares = 0;
    for (const double v : values) mean += v / static_cast<double>(values.size());
    for (const double v : values) squares += (v - mean) * (v - mean);
    return std::sqrt(squares * static_cast<double>(values.size() - 1) / static_cast<double>(values.size()));
  };
  const auto all = evaluate(models, ids, windows);
  // The linearised error and the jackknife differ by terms of order 1 / windows.
  CHECK(all[0].standard_error == Approx(jackknife(left_out)).epsilon(0.1));
  CHECK(all[1].increase_standard_error == Approx(jackknife(left_out_increase)).epsilon(0.1));
  CHECK(std::isnan(evaluate(models, ids, {windows.front()})[0].standard_error));
}

TEST_CASE("a model whose weights hold NaN is refused instead of scored") {
  const test::temporary_directory broken;
  write_changed(broken.path(), "model.layers.2.mlp.up_proj.weight",
                [](std::vector<float>& w) { w[1000] = std::numeric_limits<float>::quiet_NaN(); });
  const std::string what = test::refused_by("perplexity",
                                            {"--model", broken.path().string(), "--text", speeches.string(),
                                             "--max-windows", "1", "--json", (broken / "figures.json").string()},
                                            1);
  CHECK_THAT(what, Contains(broken.path().string()) && Contains("NaN"));
  CHECK(test::listing(broken.path()) == "config.json model.safetensors tokenizer.json tokenizer_config.json");
}

TEST_CASE("perplexity prints its figures, and writes them as JSON") {
  const test::temporary_directory work;
  const std::vector<std::string> common = {"--model", embedded.string(), "--text", speeches.string(), "--window",
                                           "512",     "--max-windows",   "4",      "--threads",       "2"};
  auto arguments = common;
  arguments.insert(arguments.end(), {"--against", embedded.string(), "--json", (work / "figures.json").string()});
  const auto compared = test::run_program("perplexity", arguments);
  CHECK(compared.status == 0);
  CHECK(compared.err.empty());
  const json file = read_json(work / "figures.json");
  CHECK(test::listing(work.path()) == "figures.json");
  CHECK(file["windows"] == 4);
  CHECK(file["window"] == 512);
  CHECK(file["stride"] == 512);
  CHECK(file["increase"] == 0.0);
  CHECK(file["top_token_agreement"] == 1.0);
  CHECK(file["kl_by_position"].size() == 16);
  CHECK(file["against"]["perplexity"] == file["perplexity"]);
  char shown[32];
  std::snprintf(shown, sizeof(shown), "%.3f", file["perplexity"].get<double>());
  CHECK_THAT(compared.out, Contains(shown) && Contains("KL divergence") && Contains("±"));
  arguments = common;
  arguments.emplace_back("--json");
  const auto printed = test::run_program("perplexity", arguments);
  CHECK(printed.status == 0);
  CHECK(json::parse(printed.out)["perplexity"] == file["perplexity"]);
  test::write_bytes(work / "t\xff.txt", test::read_bytes(speeches).substr(0, 4000));  // a name that is no UTF-8
  const auto named = test::run_program(
      "perplexity", {"--model", embedded.string(), "--text", work / "t\xff.txt", "--max-windows", "1", "--json"});
  CHECK(named.status == 0);
  CHECK(json::parse(named.out)["windows"] == 1);
  for (const char* program : {"perplexity", "generate"}) {
    const auto version = test::run_program(program, {"--version"});
    CHECK(version.status == 0);
    CHECK_THAT(version.out, Contains("nibble "));
  }
  const auto help = test::run_program("perplexity", {"--help"});
  CHECK(help.status == 0);
  for (const char* option :
       {"--model", "--text", "--window", "--stride", "--max-windows", "--against", "--threads", "--json"})
    CHECK_THAT(help.out, Contains(option));
}

TEST_CASE("a wrong option ends perplexity with status 2 and one sentence") {
  const std::vector<std::string> good = {"--model", embedded.string(), "--text", speeches.string()};
  const auto refused = [&](std::vector<std::string> more) {
    more.insert(more.begin(), good.begin(), good.end());
    return test::refused_by("perplexity", more, 2);
  };
  CHECK_THAT(refused({"--no-such-option"}), Contains("--no-such-option"));
  CHECK_THAT(refused({"--window", "0"}), Contains("--window"));
  CHECK_THAT(refused({"--window", "many"}), Contains("--window"));
  CHECK_THAT(refused({"--window", "256", "--stride", "512"}), Contains("--stride"));
  CHECK_THAT(refused({"--stride", "-1"}), Contains("--stride"));
  CHECK_THAT(refused({"--max-windows", "-1"}), Contains("--max-windows"));
  CHECK_THAT(refused({"--threads", "0"}), Contains("--threads"));
  CHECK_THAT(refused({"stray"}), Contains("stray"));
  CHECK_THAT(test::refused_by("perplexity", {}, 2), Contains("--model"));
  CHECK_THAT(test::refused_by("perplexity", {"--model", embedded.string()}, 2), Contains("--text"));
  CHECK_THAT(test::refused_by("perplexity", {"--modell", "x"}, 2), Contains("--modell"));
}

TEST_CASE("bad input ends perplexity with status 1 and a sentence that names the file") {
  const test::temporary_directory work;
  const auto refused = [&](const test::fs::path& model, const test::fs::path& text,
                           std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"--model", model.string(), "--text", text.string(), "--max-windows", "1"});
    return test::refused_by("perplexity", more, 1);
  };
  const std::string absent = (work / "absent").string();
  CHECK_THAT(refused(absent, speeches), Contains(absent));
  CHECK_THAT(refused(embedded, absent), Contains(absent));
  CHECK_THAT(refused(embedded, work.path()), Contains(work.path().string()));
  CHECK_THAT(refused(embedded, speeches, {"--against", absent}), Contains(absent));
  CHECK_THAT(refused(embedded, speeches, {"--json", absent + "/figures.json"}), Contains(absent));
  test::write_bytes(work / "empty.txt", "");
  CHECK_THAT(refused(embedded, work / "empty.txt"), Contains("empty.txt"));
  test::write_bytes(work / "latin1.txt", "caf\xe9");
  CHECK_THAT(refused(embedded, work / "latin1.txt"), Contains("latin1.txt") && Contains("UTF-8") && Contains("byte 3"));
  test::fs::create_directory(work / "model");
  for (const auto& file : test::fs::directory_iterator(embedded))
    test::fs::copy(file.path(), work / "model" / file.path().filename().string());
  const std::string weights = test::read_bytes(work / "model/model.safetensors");
  test::write_bytes(work / "model/model.safetensors", std::string_view(weights).substr(0, weights.size() - 100));
  CHECK_THAT(refused(work / "model", speeches), Contains("model.safetensors") && Contains("cut short"));
  test::write_bytes(work / "model/model.safetensors", weights);
  json c = read_json(work / "model/config.json");
  c["num_hidden_layers"] = 5;
  test::write_bytes(work / "model/config.json", c.dump());
  CHECK_THAT(refused(work / "model", speeches), Contains("\"model.layers.4.input_layernorm.weight\""));
  c["num_hidden_layers"] = 4;
  c["vocab_size"] = 1024;
  test::write_bytes(work / "model/config.json", c.dump());
  CHECK_THAT(refused(work / "model", speeches), Contains("model.embed_tokens.weight") && Contains("1024"));
  CHECK(test::listing(work.path()) == "empty.txt latin1.txt model");
}

}  // namespace perplexity_tests
