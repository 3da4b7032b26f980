// SPDX-License-Identifier: Apache-2.0
/// @file
/// Where GPTQ chooses the codes, AWQ's scales are judged by what GPTQ loses with them.
#include <catch2/catch.hpp>
#include <cmath>

#include "pass/awq_scaling.hpp"
#include "pass/job.hpp"
#include "pass/judged_rows.hpp"
#include "support/model.hpp"

namespace judged_scales_tests {

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
  o.scheme = "W3A16_ASYM";
  o.samples = 8;
  o.max_length = 128;
  o.grid = 8;
  o.order = activation_order::static_groups;
  return o;
}

/// A layer of a model, and the engine that gathered what its linears read.
struct gathered {
  pass_options o;
  job j;
  std::unique_ptr<engine> on;
  layer_weights w;
  layer_task task;

  explicit gathered(pass_options options, index_t layer = 0)
      : o(settled(std::move(options))),
        j(o),
        on(host_engine(j)),
        w(load_layer(j.files, j.model, layer)),
        task{j.model, o, j.packings(layer), j.stored, *on} {
    on->embed();
    for (index_t before = 0; before < layer; ++before) on->forward(before);
    on->gather(layer, w, true);
  }
  static pass_options settled(pass_options o) {
    check(o);
    return o;
  }
  scale_group hold(layer_input input) {
    const scale_group group = *scale_group_of(j.model, task.how, input);
    on->hold(w, group.linears);
    return group;
  }
  double loss(layer_input input, const std::vector<float>& s) {
    double sum = 0;
    for (const projection p : hold(input).linears) sum += on->scaled_loss(p, task.as(p), s.data());
    return sum;
  }
  host::awq_result search(layer_input input) { return search_awq_scale(task, hold(input), w); }
};

/// Mean energy of a channel of layer 0 · ‖W' − W‖², W' what codes stand for, scales undone.
double lost_elsewhere(gathered& in, projection p, const quantized_linear& q, const std::vector<float>& s) {
  const matrix<const float> scaled = in.w.at(in.j.model, p);
  std::vector<float> coded(static_cast<size_t>(scaled.size()));
  dequantize(q, in.task.as(p).group, in.task.as(p).scheme, {coded.data(), scaled.rows, scaled.cols});
  double error = 0;
  for (index_t i = 0; i < scaled.size(); ++i) {
    const auto off = static_cast<double>(coded[static_cast<size_t>(i)]) - static_cast<double>(scaled.data[i]);
    error += std::pow(off / static_cast<double>(s[static_cast<size_t>(i % scaled.cols)]), 2);
  }
  const index_t k = width(in.j.model, input_of(p));
  double energy = 0;
  index_t tokens = 0;
  const auto observe = [&](layer_input input, matrix<const float> x) {
    if (input != input_of(p)) return;
    tokens += x.rows;
    for (index_t i = 0; i < x.size(); ++i) energy += static_cast<double>(x.data[i]) * static_cast<double>(x.data[i]);
  };
  const batch all = in.j.tokens();
  std::vector<float> x(static_cast<size_t>(all.tokens() * in.j.model.hidden));
  const matrix<float> view(x.data(), all.tokens(), in.j.model.hidden);
  embed(in.j.files, in.j.model, all, view);
  layer_weights original = load_layer(in.j.files, in.j.model, 0);
  forward_layer(in.j.model, original, view, all.starts, observe);
  return error * energy / static_cast<double>(tokens * k);
}

std::vector<float> some_scale(index_t k) {
  std::vector<float> s(static_cast<size_t>(k));
  for (size_t i = 0; i < s.size(); ++i) s[i] = 0.5f + 0.37f * static_cast<float>(i % 7);
  return s;
}

}  // namespace

TEST_CASE("a scale that rounding to nearest gains by and GPTQ loses by is refused where GPTQ chooses the codes") {
  const auto with = [](const method& how) {
    pass_options o = options_of(how, test::embedded("model"));
    o.shrinkage = 0;  // the more inputs correlate, the more GPTQ makes up for by itself
    return o;
  };
  gathered nearest(with(methods::awq), 3), solved(with(methods::awq_gptq), 3);
  const host::awq_result liked = nearest.search(layer_input::attention);
  CHECK_FALSE(liked.ratio.identity());
  CHECK(liked.loss < 0.98 * liked.identity_loss);  // measured: 0.963
  const host::awq_result chosen = solved.search(layer_input::attention);
  CHECK(solved.loss(layer_input::attention, liked.scale) > 1.01 * chosen.identity_loss);  // 1.021
  CHECK(chosen.scale != liked.scale);
  for (const layer_input input : {layer_input::attention, layer_input::mlp, layer_input::down}) {
    const host::awq_result found = solved.search(input);
    CHECK(found.loss <= found.identity_loss);
    CHECK(found.loss == solved.loss(input, found.scale));
    CHECK(found.identity_loss == solved.loss(input, std::vector<float>(found.scale.size(), 1.0f)));
  }
}

TEST_CASE("a scale is judged by the codes that GPTQ will choose with it, before sweeps, and judging leaves no trace") {
  const test::temporary_directory root;
  test::model_spec spec;
  spec.intermediate = 96;  // no linear has so many rows that some are passed over
  spec.scale = 0.1f;
  test::write_model(spec, root / "model");
  const auto with = [&](activation_order order, clip_search clip) {
    pass_options o = options_of(methods::awq_gptq, root / "model");
    o.group_size = 32;
    o.format = order == activation_order::descending ? packed_format::gptq_v2 : packed_format::compressed_tensors;
    o.order = order, o.clip = clip, o.sweeps = 0;
    return o;
  };
  const auto agree = [&](activation_order order, clip_search clip, layer_input input) {
    CAPTURE(static_cast<int>(order), static_cast<int>(clip), static_cast<int>(input));
    gathered judging(with(order, clip)), fresh(with(order, clip));
    const std::vector<float> s = some_scale(width(judging.j.model, input));
    const scale_group group = judging.hold(input);
    std::vector<double> judged;
    const std::vector<float> ones(s.size(), 1.0f);
    for (const projection p : group.linears) judging.on->scaled_loss(p, judging.task.as(p), ones.data());
    for (const projection p : group.linears) judged.push_back(judging.on->scaled_loss(p, judging.task.as(p), s.data()));
    for (gathered* each : {&judging, &fresh}) fold(each->j.model, group, s, dtype::f32, each->w);
    for (size_t i = 0; i < judged.size(); ++i) {
      const projection p = group.linears[i];
      const chosen_codes codes = judging.on->choose_codes(judging.w, p, judging.task.as(p), s, nullptr);
      const double elsewhere = judged[i] - codes.loss;
      CHECK(elsewhere == Approx(lost_elsewhere(judging, p, codes.q, s)).epsilon(1e-3));
      CHECK(elsewhere > 0.1 * judged[i]);
      CHECK(codes.q.codes == fresh.on->choose_codes(fresh.w, p, fresh.task.as(p), s, nullptr).q.codes);
    }
  };
  agree(activation_order::none, clip_search::mse, layer_input::attention);
  agree(activation_order::static_groups, clip_search::gram, layer_input::attention);
  agree(activation_order::group_aware, clip_search::none, layer_input::down);
  agree(activation_order::descending, clip_search::none, layer_input::attention);
}

TEST_CASE("rows that are judged are evenly apart, 64 at least where there are, and stand for all") {
  for (const index_t n : {1, 63, 64, 127, 128, 129, 1000, 14336}) {
    std::vector<float> data(static_cast<size_t>(3 * n));
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
    const float s[] = {1.0f, 2.0f, 0.5f};
    const judged_rows judged({data.data(), n, 3}, s);
    CAPTURE(n, judged.rows);
    CHECK(judged.rows >= std::min(n, index_t(64)));
    CHECK(judged.rows < 128);
    CHECK(judged.times * static_cast<double>(judged.rows) == Approx(static_cast<double>(n)));
    const index_t apart = std::max(index_t(1), n / 64);
    index_t wrong = 0;
    for (index_t row = 0; row < judged.rows; ++row)
      for (index_t col = 0; col < 3; ++col)
        wrong += judged.scaled()(row, col) != static_cast<float>(3 * row * apart + col) * s[col] ? 1 : 0;
    CHECK(wrong == 0);
  }
}

}  // namespace judged_scales_tests
