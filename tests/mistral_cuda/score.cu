// SPDX-License-Identifier: Apache-2.0
#include "mistral/cuda/score.cuh"

#include <algorithm>
#include <cmath>

#include "mistral_cuda/support.hpp"

namespace score_tests {

using namespace nibble;
using namespace nibble::test;
using nibble::mistral::token_score;
using nibble::mistral::cuda::score_state;
namespace cuda_forward = nibble::mistral::cuda;

namespace {

std::vector<int32_t> some_targets(index_t tokens, index_t vocabulary) {
  std::vector<int32_t> targets;
  for (index_t t = 0; t < tokens; ++t) targets.push_back(static_cast<int32_t>((t * 37 + vocabulary - 1) % vocabulary));
  return targets;
}

/// Scores of whole rows of logits, which come in tiles of `width` entries.
std::vector<token_score> run(const owned<float>& logits, const owned<float>* reference, index_t width) {
  const index_t tokens = logits.rows;
  const device_array<score_state> states(tokens);
  const device_array<int32_t> targets(some_targets(tokens, logits.cols));
  for (index_t entry = 0; entry < logits.cols; entry += width) {
    const index_t entries = min(width, logits.cols - entry);
    const auto upload = [&](const owned<float>& all) {
      owned<float> tile(tokens, entries);
      for (index_t t = 0; t < tokens; ++t)
        std::copy_n(all.view().row(t) + entry, static_cast<std::size_t>(entries), tile.view().row(t));
      return device_matrix<float>(tile, entries + 3, 1);
    };
    const device_matrix<float> own = upload(logits);
    if (reference != nullptr) {
      const device_matrix<float> other = upload(*reference);
      REQUIRE(cuda_forward::score_tile(own, other, entry, targets.data(), states.data(), nullptr) == status::ok);
    } else {
      REQUIRE(cuda_forward::score_tile(own, {}, entry, targets.data(), states.data(), nullptr) == status::ok);
    }
  }
  std::vector<token_score> scores;
  for (const score_state& s : states.download()) scores.push_back(cuda_forward::finish(s, reference != nullptr));
  return scores;
}

/// ln p of one row, and the largest distance from its largest logit.
struct distribution {
  std::vector<double> log_p;
  double span = 0;
  std::size_t top = 0;

  distribution(const float* logits, index_t count) : log_p(logits, logits + count) {
    top = static_cast<std::size_t>(std::max_element(log_p.begin(), log_p.end()) - log_p.begin());
    const double largest = log_p[top];
    double sum = 0;
    for (const double l : log_p) {
      sum += std::exp(l - largest);
      span = std::max(span, largest - l);
    }
    for (double& l : log_p) l -= largest + std::log(sum);
  }
};

/// Arguments of the exponential are rounded thrice, span · 3 · 2^-24 of its value; a thread adds entries / 256 of them in
/// float, and a tile rescales the ones before, each by a rounding or two.
double relative_error(const distribution& d, index_t width) {
  const double tiles = std::ceil(static_cast<double>(d.log_p.size()) / static_cast<double>(width));
  return (3 * d.span + static_cast<double>(width) / 256 + 8 + tiles * (3 * d.span + 8)) * 0x1p-24;
}

void scores_agree(index_t tokens, index_t vocabulary, index_t width, float size) {
  CAPTURE(tokens, vocabulary, width, size);
  const auto logits = random_matrix(tokens, vocabulary, "own", size);
  auto reference = random_matrix(tokens, vocabulary, "reference", size);
  for (index_t t = 0; t < tokens; t += 2)  // every other row close by, as models compared are
    for (index_t v = 0; v < vocabulary; ++v)
      reference.view()(t, v) = logits.view()(t, v) + 0.01f * reference.view()(t, v);
  const auto alone = run(logits, nullptr, width), compared = run(logits, &reference, width);
  const auto targets = some_targets(tokens, vocabulary);
  for (index_t t = 0; t < tokens; ++t) {
    CAPTURE(t);
    const auto at = static_cast<std::size_t>(t);
    const distribution own(logits.view().row(t), vocabulary), other(reference.view().row(t), vocabulary);
    const double error = relative_error(own, width), other_error = relative_error(other, width);
    const double nll = -own.log_p[static_cast<std::size_t>(targets[at])];
    REQUIRE(std::fabs(alone[at].nll - nll) <= error);
    REQUIRE(alone[at].nll == compared[at].nll);
    double divergence = 0, magnitude = 0;
    for (std::size_t v = 0; v < own.log_p.size(); ++v) {
      const double p = std::exp(other.log_p[v]);
      divergence += p * (other.log_p[v] - own.log_p[v]);
      magnitude += p * std::fabs(double{reference.view()(t, index_t(v))} - double{logits.view()(t, index_t(v))});
    }
    REQUIRE(std::fabs(compared[at].divergence - divergence) <=
            error + other_error + (2 * other_error + 0x1p-23) * magnitude);
    REQUIRE(compared[at].same_top == (own.top == other.top));
    REQUIRE(alone[at].same_top);
  }
}

}  // namespace

TEST_CASE("scores of tiles of logits are those of the whole distributions written out") {
  for (const index_t width : {37, 255, 256, 257, 1000}) scores_agree(2, 300, width, 8.0f);
  scores_agree(1, 9, 1, 8.0f);
  for (const float size : {0.01f, 1.0f, 30.0f, 300.0f}) scores_agree(2, 700, 512, size);
  for (const index_t vocabulary : {1, 2, 31, 33}) scores_agree(2, vocabulary, 16, 4.0f);
}

TEST_CASE("the first of equal logits is the top, whichever thread and tile has it") {
  for (const index_t first : {0, 5, 40, 255, 256, 299}) {
    owned<float> logits(2, 300, 1.0f), reference(2, 300, 0.0f);
    for (index_t v = first; v < 300; v += 7) logits.view()(0, v) = 3.0f;
    for (index_t v = first; v < 300; v += 7) logits.view()(1, v) = 3.0f;
    reference.view()(0, first) = 1.0f;
    reference.view()(1, (first + 1) % 300) = 1.0f;
    for (const index_t width : {64, 300}) {
      const auto scores = run(logits, &reference, width);
      REQUIRE(scores[0].same_top);
      REQUIRE_FALSE(scores[1].same_top);
    }
  }
}

TEST_CASE("scores are the same bytes under every schedule, and NaN stays in its row") {
  auto logits = random_matrix(3, 600, "own", 5.0f);
  const auto reference = random_matrix(3, 600, "reference", 5.0f);
  logits.view()(1, 333) = not_a_number;
  const auto first = run(logits, &reference, 256);
  CHECK(std::isfinite(first[0].nll));
  CHECK(std::isnan(first[1].nll));
  CHECK(std::isfinite(first[2].nll));
  under_schedules(6, [&] {
    const auto again = run(logits, &reference, 256);
    for (const std::size_t t : {0, 2}) {
      REQUIRE(again[t].nll == first[t].nll);
      REQUIRE(again[t].divergence == first[t].divergence);
    }
  });
}

TEST_CASE("scoring refuses what it cannot do, and says why") {
  const device_matrix<float> logits(2, 8), reference(2, 8);
  const device_array<int32_t> targets(std::vector<int32_t>{0, 0});
  const device_array<score_state> states(2);
  const auto told = [&](matrix<const float> l, matrix<const float> r, index_t entry, const int32_t* t, score_state* s) {
    return cuda_forward::score_tile(l, r, entry, t, s, nullptr);
  };
  const matrix<const float> l = logits.view(), r = reference.view();
  CHECK(told(l, r, 0, targets.data(), states.data()) == status::ok);
  CHECK(told({l.data, 2, 8, 7}, r, 0, targets.data(), states.data()) == status::bad_shape);
  CHECK(told({nullptr, 2, 8}, r, 0, targets.data(), states.data()) == status::bad_shape);
  CHECK(told(l, {r.data, 2, 8, 7}, 0, targets.data(), states.data()) == status::bad_shape);
  CHECK(told(l, r.rows_at(0, 1), 0, targets.data(), states.data()) == status::bad_shape);
  CHECK(told(l, r.cols_at(0, 7), 0, targets.data(), states.data()) == status::bad_shape);
  CHECK(told(l, r, -1, targets.data(), states.data()) == status::bad_shape);
  CHECK(told(l, r, 0, nullptr, states.data()) == status::bad_shape);
  CHECK(told(l, r, 0, targets.data(), nullptr) == status::bad_shape);
  CHECK(told({nullptr, 0, 8}, {}, 0, nullptr, nullptr) == status::ok);
  CHECK(told({askew(l.data), 2, 8}, r, 0, targets.data(), states.data()) == status::misaligned);
  CHECK(told(l, {askew(r.data), 2, 8}, 0, targets.data(), states.data()) == status::misaligned);
  CHECK(told(l, r, 0, askew(targets.data()), states.data()) == status::misaligned);
  CHECK(told(l, r, 0, targets.data(), askew(states.data())) == status::misaligned);
  CHECK(told(l, r, 2147483640, targets.data(), states.data()) == status::too_large);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device old(sm);
    CHECK(told(l, r, 0, targets.data(), states.data()) == status::unsupported_device);
  }
#endif
}

}  // namespace score_tests
