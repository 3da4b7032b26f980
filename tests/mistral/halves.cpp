// SPDX-License-Identifier: Apache-2.0
/// @file
/// A half of a layer is quantized in two steps: o and down under what the linears before them, by then quantized, give.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>

#include "pass/job.hpp"
#include "pass/layer.hpp"
#include "support/model.hpp"
#include "support/program.hpp"

namespace halves_tests {

using namespace nibble;
using namespace nibble::mistral;

namespace {

pass_options options_of(const method& how, const test::fs::path& model) {
  pass_options o;
  o.program = "gptq_mistral";
  o.offered = {how};
  o.how_found = how;
  o.model = model.string();
  o.calibration = test::embedded("text/calibration-state-of-the-union-2000-2012.txt").string();
  o.scheme = how.scales == scaling::smooth ? "W8A8" : "W3A16_ASYM";
  o.group_size = 32;
  o.samples = 6;
  o.max_length = 100;
  o.grid = 8;
  o.propagate = propagation::quantized;
  check(o);
  return o;
}

/// Mean |x| of an input of a half's linears, by channel.
std::vector<double> means(const config& c, const layer_weights& w, layer_part half, half_inputs told,
                          std::vector<float> x, const std::vector<index_t>& starts) {
  std::vector<double> sums;
  observe_half(
      c, w, half, {x.data(), starts.back(), c.hidden}, starts,
      [&](layer_input, matrix<const float> read) {
        sums.resize(static_cast<size_t>(read.cols));
        for (index_t row = 0; row < read.rows; ++row)
          for (index_t i = 0; i < read.cols; ++i) sums[static_cast<size_t>(i)] += std::fabs(double{read(row, i)});
      },
      told);
  for (double& each : sums) each /= static_cast<double>(starts.back());
  return sums;
}

std::vector<float> through(const config& c, const layer_weights& w, layer_part half, std::vector<float> x,
                           const std::vector<index_t>& starts) {
  forward_layer(c, w, {x.data(), starts.back(), c.hidden}, starts, nullptr, half);
  return x;
}

/// The largest distance of two of them, in parts of the mean of the second.
template <class A, class B>
double distance(const std::vector<A>& a, const std::vector<B>& b) {
  REQUIRE(a.size() == b.size());
  double most = 0, sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    sum += std::fabs(static_cast<double>(b[i]));
  }
  return most * static_cast<double>(a.size()) / sum;
}

/// Both halves of layer 0 as the pass takes them, looked at on the way. @param room  as of gather_half
void follows(const pass_options& o, index_t room = 0) {
  const job j(o);
  const config& c = j.model;
  const std::vector<index_t> starts = j.tokens().starts;
  const std::vector<index_t> followed(starts.begin(), std::find(starts.begin(), starts.end(), j.followed_tokens()) + 1);
  REQUIRE(followed.size() == (o.drift_samples > 0 ? static_cast<size_t>(o.drift_samples) + 1 : starts.size()));
  const auto on = host_engine(j);
  const layer_task task{c, o, j.packings(0), j.stored, *on};
  const layer_weights original = load_layer(j.files, c, 0);
  layer_weights w = original;
  layer_report report;
  const linear_sink sink = [](projection, const quantized_linear&) {};
  const auto quantizer = quantizer_of(task, w, sink, report);
  on->embed();
  const auto size = static_cast<std::ptrdiff_t>(starts.back() * c.hidden);
  const auto streams = [&] {
    const std::vector<float>& both = on->get();
    return std::pair(std::vector<float>(both.begin(), both.begin() + size),
                     std::vector<float>(both.begin() + size, both.end()));
  };
  for (const layer_part half : {layer_part::attention, layer_part::mlp}) {
    CAPTURE(static_cast<int>(half));
    const layer_input first = first_input(half), last = last_input(half);
    const std::vector<float> x = streams().first, beside = streams().second;
    on->gather_half(0, w, half, o.scaled() ? half_inputs::both : half_inputs::first, 0);
    CHECK(distance(on->absolute_mean(first), means(c, original, half, half_inputs::first, x, starts)) < 1e-4);
    quantizer->search(o.scaled() ? std::vector{first, last} : std::vector{first});
    quantizer->round({first});
    CHECK(streams() == std::pair(x, beside));
    const std::vector<double> as_it_was = means(c, original, half, half_inputs::last, x, starts);
    const std::vector<double> divided = means(c, w, half, half_inputs::last, x, starts);
    quantizer->with_rows_undivided(half, [&] {
      const std::vector<double> undivided = means(c, w, half, half_inputs::last, x, starts);
      CHECK(distance(undivided, as_it_was) > (o.smoothed() ? 0.001 : 0.01));  // 8 bits, and 3
      CHECK(distance(undivided, as_it_was) < 0.5);
      if (o.smoothed()) CHECK(distance(divided, undivided) > 0.2);
      if (!o.scaled()) CHECK(divided == undivided);
      on->gather_half(0, w, half, half_inputs::last, room);
      CHECK(distance(on->absolute_mean(last), undivided) < 1e-4);
    });
    CHECK(quantizer->divides_rows(half) == o.scaled());
    CHECK(means(c, w, half, half_inputs::last, x, starts) == divided);
    CHECK(streams().first == x);
    CHECK(distance(streams().second, through(c, original, half, beside, followed)) < 1e-4);
    if (!o.scaled()) quantizer->search({last});
    quantizer->round({last});
    on->forget();
    on->forward(w, half);
    CHECK(distance(streams().first, through(c, w, half, x, starts)) < 1e-4);
    CHECK(distance(streams().second, through(c, original, half, beside, followed)) < 1e-4);
  }
  CHECK(report.linears.size() == 7);
}

}  // namespace

TEST_CASE("o and down are rounded under what quantized linears give them, beside what the original's give") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.kv_heads = spec.heads;  // so that o has a scale, too
  test::write_model(spec, root / "model");
  for (const method& how : {methods::gptq, methods::awq_gptq, methods::smoothquant_gptq}) {
    CAPTURE(how.word);
    pass_options o = options_of(how, root / "model");
    if (how.scales == scaling::smooth) o.strength.fixed = 0.7f, o.smoothed_inputs = smoothing::all;
    follows(o);
    if (o.scaled()) continue;
    const index_t sample = 4 * o.max_length * spec.intermediate;
    for (const index_t room : {kept_bytes, 2 * sample, sample - 1}) follows(o, room);
  }
}

TEST_CASE("halves are followed on some samples of different lengths, and what o and down read is kept of others") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  std::string lines, text = "The state of our Union is strong, and ";
  for (int i = 0; i < 6; ++i) {
    lines += "{\"text\": \"" + text + "\"}\n";
    text += text.substr(0, 50);
  }
  test::write_bytes(root / "text.jsonl", lines);
  pass_options o = options_of(methods::gptq, root / "model");
  o.calibration = (root / "text.jsonl").string();
  for (const index_t followed : {index_t(1), index_t(4)})
    for (const index_t room : {index_t(0), index_t(60000), kept_bytes}) {
      o.drift_samples = followed;
      follows(o, room);
    }
}

TEST_CASE("a scale of values in fp8 is of the values that the checkpoint gives, whatever scales o's inputs have") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.kv_heads = spec.heads;
  test::write_model(spec, root / "model");
  for (const std::string propagate : {"original", "quantized"}) {
    CAPTURE(propagate);
    const auto run = test::run_program("smoothquant_mistral", {"--model",
                                                               (root / "model").string(),
                                                               "--output",
                                                               (root / "out").string(),
                                                               "--overwrite",
                                                               "--method",
                                                               "smoothquant+gptq",
                                                               "--scheme",
                                                               "W8A8",
                                                               "--smoothed-inputs",
                                                               "all",
                                                               "--smoothing-strength",
                                                               "0.9",
                                                               "--kv-cache",
                                                               "fp8",
                                                               "--num-calibration-samples",
                                                               "4",
                                                               "--max-seq-length",
                                                               "64",
                                                               "--propagate",
                                                               propagate});
    CAPTURE(run.err);
    REQUIRE(run.status == 0);
    pass_options o = options_of(methods::gptq, root / "model");
    o.samples = 4, o.max_length = 64;
    const job j(o);
    const batch tokens = j.tokens();
    std::vector<float> x(static_cast<size_t>(tokens.tokens() * j.model.hidden));
    const matrix<float> rows(x.data(), tokens.tokens(), j.model.hidden);
    embed(j.files, j.model, tokens, rows);
    const checkpoint written(root / "out");
    const config c = read_config(root / "out");
    layer_weights w = load_layer(written, c, 0);
    const cache_scales scales = w.cache;
    w.cache = {};
    const cache_maxima largest = largest_cached(c, w, rows, tokens.starts);
    const auto most = [](const std::vector<float>& of) { return double{*std::max_element(of.begin(), of.end())}; };
    CHECK(448 * double{scales.k} ==
          Approx(most(largest.k)).epsilon(0.02));  // v and what it reads are rounded, 8 bits each
    CHECK(448 * double{scales.v} == Approx(most(largest.v)).epsilon(0.02));
  }
}

}  // namespace halves_tests
