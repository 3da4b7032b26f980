// SPDX-License-Identifier: Apache-2.0
#include "mistral/forward.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>

#include "mistral/evaluation_text.hpp"
#include "mistral/tokenizer.hpp"
#include "mistral/vector_math.hpp"
#include "nibble/distortion.hpp"
#include "support/golden.hpp"
#include "support/model.hpp"

namespace forward_tests {

using namespace nibble;
using namespace nibble::mistral;

namespace {

/// A model opened from files.
struct opened {
  test::temporary_directory directory;
  config settings;
  std::unique_ptr<checkpoint> files;

  explicit opened(const test::model_spec& spec) {
    test::write_weights(spec, directory / "model");
    settings = read_config(directory / "model");
    files = std::make_unique<checkpoint>(directory / "model");
  }

  /// The last layer's output (tokens, hidden) of sequences end to end.
  std::vector<float> run(const batch& b, const observer& observe = nullptr) const {
    std::vector<float> data(static_cast<size_t>(b.tokens() * settings.hidden));
    const matrix<float> x(data.data(), b.tokens(), settings.hidden);
    embed(*files, settings, b, x);
    for (index_t layer = 0; layer < settings.layers; ++layer)
      forward_layer(settings, load_layer(*files, settings, layer), x, b.starts, observe);
    return data;
  }

  /// ln p (tokens, vocabulary), by scoring every id at every position.
  std::vector<double> log_probabilities(const std::vector<float>& x_data) const {
    const index_t tokens = static_cast<index_t>(x_data.size()) / settings.hidden, v = settings.vocabulary;
    const matrix<const float> x(x_data.data(), tokens, settings.hidden);
    const lm_head head = load_head(*files, settings);
    std::vector<double> all(static_cast<size_t>(tokens * v));
    std::vector<token_score> scores(static_cast<size_t>(tokens));
    for (index_t id = 0; id < v; ++id) {
      const std::vector<int32_t> targets(scores.size(), static_cast<int32_t>(id));
      score(head, x, targets.data(), scores.data());
      for (index_t t = 0; t < tokens; ++t) all[static_cast<size_t>(t * v + id)] = -scores[static_cast<size_t>(t)].nll;
    }
    return all;
  }
};

batch random_batch(const std::vector<index_t>& lengths, index_t vocabulary, std::uint64_t seed = 5) {
  batch b;
  for (const index_t length : lengths) {
    std::vector<int32_t> ids;
    for (index_t i = 0; i < length; ++i)
      ids.push_back(static_cast<int32_t>(test::mixed(seed++) % static_cast<std::uint64_t>(vocabulary)));
    b.append(ids.data(), length);
  }
  return b;
}

double largest_difference(const float* a, const float* b, size_t count) {
  double most = 0;
  for (size_t i = 0; i < count; ++i)
    most = std::max(most, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return most;
}

test::model_spec golden_spec(const nlohmann::json& m) {
  test::model_spec s;
  s.hidden = m.at("hidden"), s.intermediate = m.at("intermediate"), s.layers = m.at("layers");
  s.heads = m.at("heads"), s.kv_heads = m.at("kv_heads"), s.head_dim = m.at("head_dim");
  s.vocabulary = m.at("vocabulary"), s.sliding_window = m.at("sliding_window");
  s.tied = m.at("tied"), s.llama = m.at("llama");
  s.rope_theta = m.at("rope_theta"), s.scale = m.at("scale"), s.seed = m.at("seed");
  s.stored = dtype::f32;
  return s;
}

}  // namespace

TEST_CASE("the exponential is right to 2e-7 wherever it does not saturate, and that of NaN is NaN") {
  double worst = 0;
  for (float x = -87; x <= 88; x += 1e-3f)
    worst = std::max(worst, std::fabs(static_cast<double>(fast_exp(x)) / std::exp(static_cast<double>(x)) - 1));
  CHECK(worst < 2e-7);
  CHECK(fast_exp(-1000) == fast_exp(-87));
  CHECK(fast_exp(1000) == fast_exp(88));
  CHECK(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE(
    "log-probabilities are those of transformers: grouped and plain heads, odd shapes, sliding window, tied, Llama") {
  const auto models = golden("forward/golden.json").at("models");
  CHECK(models.size() == 6);
  for (const auto& [name, m] : models.items()) {
    CAPTURE(name);
    const opened model(golden_spec(m));
    batch b;
    const auto ids = m.at("ids").get<std::vector<int32_t>>();
    b.append(ids.data(), static_cast<index_t>(ids.size()));
    const auto own = model.log_probabilities(model.run(b));
    double worst = 0;
    size_t at = 0;
    for (const auto& row : m.at("log_probabilities"))
      for (const double expected : row) worst = std::max(worst, std::fabs(own.at(at++) - expected));
    CHECK(at == own.size());
    // Two fp32 passes that add in different orders differ from the exact one by about as much: a few times what
    // transformers' own fp32 pass does, and the six digits that the file keeps.
    const double bound = 4 * m.at("float32_deviation").get<double>() + 1e-6;
    CHECK(worst < bound);
  }
}

TEST_CASE("the embedded model predicts the first windows of both held-out texts as well as in transformers") {
  const auto windows = golden("forward/golden.json").at("windows");
  const config c = read_config(test::embedded("model"));
  const checkpoint files(test::embedded("model"));
  const auto tok = open_tokenizer(test::embedded("model"));
  CHECK(windows.size() == 2);
  for (const auto& [text, expected] : windows.items()) {
    const auto ids = read_evaluation_text(test::embedded("text") / text, *tok).ids;
    const auto nll = expected.at("nll").get<std::vector<double>>();
    const auto length = expected.at("window").get<index_t>();
    const auto planned =
        plan_windows(static_cast<index_t>(ids.size()), c.context, {length, length, static_cast<index_t>(nll.size())});
    double sum = 0;
    for (const double each : nll) sum += each;
    const double perplexity = std::exp(sum / static_cast<double>(length * static_cast<index_t>(nll.size())));
    const auto own = evaluate({{files, c, nullptr}}, ids, planned);
    CHECK(own.front().tokens == length * static_cast<index_t>(nll.size()));
    // An fp32 logit of ten or so is off by 1e-5 at most, and errors of 2048 tokens average out.
    CHECK(own.front().perplexity == Approx(perplexity).epsilon(1e-5));
  }
}

TEST_CASE("sequences do not see each other, nor tokens what comes later") {
  for (const index_t window : {0, 3}) {
    test::model_spec spec;
    spec.sliding_window = window;
    spec.vocabulary = 50;
    const opened model(spec);
    const batch together = random_batch({7, 1, 300, 130}, 50);
    const auto all = model.run(together);
    for (index_t s = 0; s < together.sequences(); ++s) {
      const index_t first = together.starts[static_cast<size_t>(s)];
      const index_t length = together.starts[static_cast<size_t>(s) + 1] - first;
      batch alone;
      alone.append(together.ids.data() + first, length);
      const auto own = model.run(alone);
      // Rows of a product do not depend on their number, but for the order of a sum that a BLAS chooses by the shape.
      CHECK(largest_difference(own.data(), all.data() + first * spec.hidden, own.size()) < 1e-3);
    }
    batch changed = together;
    changed.ids[8 + 200] = (changed.ids[8 + 200] + 1) % 50;
    const auto other = model.run(changed);
    const auto rows = [&](index_t from, index_t to) {
      return std::memcmp(all.data() + from * spec.hidden, other.data() + from * spec.hidden,
                         static_cast<size_t>((to - from) * spec.hidden) * sizeof(float)) == 0;
    };
    CHECK(rows(0, 208));
    CHECK_FALSE(rows(208, 209));
    CHECK(rows(308, 438));
    // Two layers of a window of 3 reach 4 tokens on: position 204 sees 200, 205 does not.
    if (window == 3) CHECK(rows(213, 308));
    CHECK_FALSE(rows(209, window == 3 ? 213 : 308));
  }
}

TEST_CASE("an observer sees every activation that a linear reads, chunk by chunk in token order") {
  test::model_spec spec;
  spec.vocabulary = 50;
  spec.layers = 1;
  spec.hidden = 32, spec.intermediate = 64, spec.heads = 2, spec.kv_heads = 1;
  const opened model(spec);
  const config& c = model.settings;
  // 64 MiB of scratch hold fewer tokens than these.
  const batch b = random_batch(std::vector<index_t>(1100, 90), 50);
  std::array<std::vector<float>, 4> seen;
  int chunks = 0;
  const auto x = model.run(b, [&](layer_input input, matrix<const float> activations) {
    const index_t width = input == layer_input::down ? c.intermediate
                          : input == layer_input::o  ? c.q_width()
                                                     : c.hidden;
    CHECK(activations.cols == width);
    chunks += input == layer_input::o ? 1 : 0;
    auto& all = seen[static_cast<size_t>(input)];
    for (index_t row = 0; row < activations.rows; ++row)
      all.insert(all.end(), activations.row(row), activations.row(row) + width);
  });
  CHECK(chunks > 1);
  const index_t tokens = b.tokens();
  for (const layer_input input : layer_inputs)
    CHECK(seen[static_cast<size_t>(input)].size() ==
          static_cast<size_t>(tokens * (input == layer_input::down ? c.intermediate
                                        : input == layer_input::o  ? c.q_width()
                                                                   : c.hidden)));
  const layer_weights w = load_layer(*model.files, c, 0);
  std::vector<float> embedded(x.size()), normed(x.size());
  const matrix<float> e(embedded.data(), tokens, c.hidden), n(normed.data(), tokens, c.hidden);
  embed(*model.files, c, b, e);
  rms_norm(matrix<const float>(e), w.input_norm, c.rms_norm_eps, n);
  CHECK((normed == seen[static_cast<size_t>(layer_input::attention)]));
  // The layer's output is what its parts make of what was seen.
  const index_t last = tokens - 90;
  const auto& read = seen[static_cast<size_t>(layer_input::mlp)];
  std::vector<float> mlp(static_cast<size_t>(90 * c.hidden)), attention(mlp.size());
  mlp_block(c, w, {read.data() + last * c.hidden, 90, c.hidden}, {mlp.data(), 90, c.hidden});
  attention_block(c, w, {normed.data() + last * c.hidden, 90, c.hidden}, {0, 90}, {attention.data(), 90, c.hidden});
  for (size_t i = 0; i < mlp.size(); ++i) mlp[i] += embedded[static_cast<size_t>(last * c.hidden) + i] + attention[i];
  CHECK(largest_difference(mlp.data(), x.data() + last * c.hidden, mlp.size()) < 1e-3);
}

TEST_CASE("a layer in bfloat16 gives what it gives in float32 but for rounding, and tells what its linears read") {
  const std::pair<index_t, bool> cases[] = {{0, false}, {9, false}, {0, true}};
  for (const auto& [window, clipped] : cases) {
    CAPTURE(window, clipped);
    test::model_spec spec;
    spec.vocabulary = 50;
    const opened model(spec);
    config c = model.settings;
    c.sliding_window = window;
    const batch b = random_batch({13, 1, 270}, 50);
    layer_weights w = load_layer(*model.files, c, 0);
    REQUIRE(w.precision == host::matmul_precision::float32);
    // Some of the linears that read one input want it another way, by far.
    if (clipped)
      for (const projection p : {projection::k, projection::up})
        w.rounded[static_cast<size_t>(p)] = {input_rounding::tensor, code_type::e4m3, 0.001f};
    std::vector<float> start(static_cast<size_t>(b.tokens() * c.hidden));
    embed(*model.files, c, b, {start.data(), b.tokens(), c.hidden});
    const auto run = [&](host::matmul_precision precision, std::array<std::vector<float>, 4>& seen) {
      w.precision = precision;
      std::vector<float> x = start;
      forward_layer(c, w, {x.data(), b.tokens(), c.hidden}, b.starts, [&](layer_input input, matrix<const float> rows) {
        auto& all = seen[static_cast<size_t>(input)];
        all.insert(all.end(), rows.data, rows.data + rows.size());
      });
      return x;
    };
    std::array<std::vector<float>, 4> wanted_seen, seen;
    const auto wanted = run(host::matmul_precision::float32, wanted_seen);
    const auto got = run(host::matmul_precision::bfloat16, seen);
    // 2^-9 is the largest rounding of a factor; what it does to sums of many is less, beside them as a whole.
    const auto apart = [](const std::vector<float>& a, const std::vector<float>& b_) {
      REQUIRE(a.size() == b_.size());
      double off = 0, size = 0;
      for (size_t i = 0; i < a.size(); ++i) {
        off += std::pow(static_cast<double>(a[i]) - static_cast<double>(b_[i]), 2);
        size += std::pow(static_cast<double>(a[i]), 2);
      }
      return std::sqrt(off / size);
    };
    CHECK(apart(wanted, got) < 0.01);
    CHECK(apart(wanted, got) > 1e-6);
    CHECK(seen[0] == wanted_seen[0]);
    for (size_t input = 1; input < 4; ++input) {
      CAPTURE(input);
      CHECK(apart(wanted_seen[input], seen[input]) < 0.01);
      CHECK(apart(wanted_seen[input], seen[input]) > 1e-6);
    }
  }
}

TEST_CASE("models that turn positions by other angles do not share them") {
  test::model_spec spec;
  spec.vocabulary = 50;
  const opened model(spec);
  config c = model.settings;
  const batch b = random_batch({13, 40}, 50);
  const layer_weights w = load_layer(*model.files, c, 0);
  const auto run = [&](double theta) {
    c.rope_theta = theta;
    std::vector<float> x(static_cast<size_t>(b.tokens() * c.hidden));
    embed(*model.files, c, b, {x.data(), b.tokens(), c.hidden});
    forward_layer(c, w, {x.data(), b.tokens(), c.hidden}, b.starts);
    return x;
  };
  const auto first = run(1e4), other = run(1e6);
  CHECK(first != other);
  CHECK(run(1e4) == first);
}

TEST_CASE(
    "two halves of a layer are the layer, and what linears read of a half, or some of them, can be told without going "
    "through it") {
  test::model_spec spec;
  spec.vocabulary = 50;
  const opened model(spec);
  const config& c = model.settings;
  const batch b = random_batch({13, 1, 70}, 50);
  const layer_weights w = load_layer(*model.files, c, 0);
  using told = std::vector<std::pair<layer_input, std::vector<float>>>;
  const auto tell = [](told& to) {
    return [&to](layer_input which, matrix<const float> x) {
      to.emplace_back(which, std::vector<float>(x.data, x.data + x.size()));
    };
  };
  std::vector<float> whole(static_cast<size_t>(b.tokens() * c.hidden));
  const auto of = [&](std::vector<float>& data) { return matrix<float>(data.data(), b.tokens(), c.hidden); };
  embed(*model.files, c, b, of(whole));
  std::vector<float> halves = whole;
  told of_whole, of_halves, aside, in_steps;
  forward_layer(c, w, of(whole), b.starts, tell(of_whole));
  for (const layer_part half : {layer_part::attention, layer_part::mlp}) {
    const std::vector<float> before = halves;
    observe_half(c, w, half, of(halves), b.starts, tell(aside));
    for (const half_inputs each : {half_inputs::first, half_inputs::last})
      observe_half(c, w, half, of(halves), b.starts, tell(in_steps), each);
    CHECK(halves == before);
    std::vector<float> finished = before;
    const index_t width = inputs(c, last_linear(half));
    finish_half(c, w, half, {in_steps.back().second.data(), b.tokens(), width}, of(finished));
    forward_layer(c, w, of(halves), b.starts, tell(of_halves), half);
    CHECK(finished == halves);
  }
  CHECK(halves == whole);
  CHECK(of_halves == of_whole);
  CHECK(aside == of_whole);
  CHECK(in_steps == of_whole);
  CHECK(of_whole.size() == 4);
}

TEST_CASE("a norm divides by the root mean square, whatever the magnitude and width") {
  for (const index_t width : {1, 2, 15, 16, 17, 64})
    for (const float size : {1e-6f, 1.0f, 1e6f}) {
      const auto data = test::random_values(9, "x", 3 * width, 0.1f, 1.0f);
      std::vector<float> in(data), weight = test::random_values(9, "w", width, 1.0f, 0.5f), out(in.size());
      for (float& value : in) value *= size;
      rms_norm({in.data(), 3, width}, weight, 1e-5f, {out.data(), 3, width});
      for (index_t row = 0; row < 3; ++row) {
        double squares = 0;
        for (index_t i = 0; i < width; ++i)
          squares += std::pow(static_cast<double>(in[static_cast<size_t>(row * width + i)]), 2);
        const double rms = std::sqrt(squares / static_cast<double>(width) + 1e-5);
        for (index_t i = 0; i < width; ++i) {
          const auto at = static_cast<size_t>(row * width + i);
          const double expected =
              static_cast<double>(in[at]) / rms * static_cast<double>(weight[static_cast<size_t>(i)]);
          // Some ten roundings of half an ulp.
          CHECK(static_cast<double>(out[at]) == Approx(expected).epsilon(1e-6).margin(1e-12));
        }
      }
    }
}

TEST_CASE("divergence and agreement are those of the two distributions written out") {
  test::model_spec spec;
  spec.vocabulary = 700;  // more than one tile of the vocabulary
  test::model_spec other = spec;
  other.seed = 2;
  const opened a(spec), b(other);
  const batch tokens = random_batch({40, 23}, 700);
  const auto x = a.run(tokens), y = b.run(tokens);
  const auto p = a.log_probabilities(x), q = b.log_probabilities(y);
  const lm_head first = load_head(*a.files, a.settings), second = load_head(*b.files, b.settings);
  std::vector<token_score> scores(63), itself(63);
  std::vector<int32_t> targets(63);
  for (size_t t = 0; t < targets.size(); ++t) targets[t] = static_cast<int32_t>(t * 11 % 700);
  const matrix<const float> of_a(x.data(), 63, spec.hidden), of_b(y.data(), 63, spec.hidden);
  score(second, of_b, targets.data(), scores.data(), &first, of_a);
  score(first, of_a, targets.data(), itself.data(), &first, of_a);
  // Log probabilities are logits as good as any: the row `distortion` sees the same distributions.
  const std::vector<float> p_logits(p.begin(), p.end()), q_logits(q.begin(), q.end());
  const auto row_divergence = [&](size_t t) { return kl_divergence(&p_logits[t * 700], &q_logits[t * 700], 700); };
  int same = 0;
  for (size_t t = 0; t < 63; ++t) {
    double sum = 0, divergence = 0;
    size_t top_p = 0, top_q = 0;
    for (size_t v = 0; v < 700; ++v) {
      sum += std::exp(p[t * 700 + v]);
      divergence += std::exp(p[t * 700 + v]) * (p[t * 700 + v] - q[t * 700 + v]);
      if (p[t * 700 + v] > p[t * 700 + top_p]) top_p = v;
      if (q[t * 700 + v] > q[t * 700 + top_q]) top_q = v;
    }
    CHECK(sum == Approx(1).epsilon(1e-5));
    CHECK(scores[t].divergence == Approx(divergence).epsilon(1e-4).margin(1e-5));
    CHECK(scores[t].divergence == Approx(row_divergence(t)).epsilon(1e-4).margin(1e-5));
    CHECK(scores[t].nll == Approx(-q[t * 700 + static_cast<size_t>(targets[t])]).epsilon(1e-6));
    CHECK(scores[t].same_top == (top_p == top_q));
    same += top_p == top_q ? 1 : 0;
    CHECK(itself[t].divergence == Approx(0).margin(1e-5));
    CHECK(itself[t].same_top);
  }
  CHECK(same < 63);
}

TEST_CASE("every projection has its name, its shape and the activation it reads") {
  test::model_spec spec;
  spec.head_dim = 32;
  spec.vocabulary = 50;
  const opened model(spec);
  for (const projection p : projections) {
    const std::string name = projection_name(1, p) + ".weight";
    CHECK(name == "model.layers.1." + std::string(to_string(p)) + ".weight");
    CHECK(model.files->at(name).shape == std::vector<index_t>{outputs(model.settings, p), inputs(model.settings, p)});
  }
  CHECK(input_of(projection::q) == layer_input::attention);
  CHECK(input_of(projection::k) == layer_input::attention);
  CHECK(input_of(projection::v) == layer_input::attention);
  CHECK(input_of(projection::o) == layer_input::o);
  CHECK(input_of(projection::gate) == layer_input::mlp);
  CHECK(input_of(projection::up) == layer_input::mlp);
  CHECK(input_of(projection::down) == layer_input::down);
}

}  // namespace forward_tests
