// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/fp4.cuh"

#include "nibble/fp4.hpp"
#include "nibble/reference/fp4.hpp"
#include "support/device.hpp"
#include "support/weights.hpp"

namespace fp4_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

/// How rows lie in memory: elements between them beyond the columns, and before the first.
struct place {
  index_t padding = 0, offset = 0;
};

template <class T, class BlockFormat>
void kernels_agree(index_t rows, index_t cols, BlockFormat f, place w_at = {}, place packed_at = {}) {
  CAPTURE(rows, cols, f.block, w_at.padding, w_at.offset, packed_at.padding, packed_at.offset);
  const auto w = nasty_weights<T>(rows, cols);
  const index_t bytes = ceil_div(cols, 2), blocks = ceil_div(cols, f.block);
  owned<uint8_t> packed(rows, bytes), scales(rows, blocks);
  owned<T> back(rows, cols);
  reference::fit_quantize_pack(w.view(), packed.view(), scales.view(), f);
  reference::unpack_dequantize(std::as_const(packed).view(), std::as_const(scales).view(), back.view(), f);

  const device_matrix<T> w_there(w, cols + w_at.padding, w_at.offset);
  const device_matrix<uint8_t> packed_there(rows, bytes, bytes + packed_at.padding, packed_at.offset);
  const device_matrix<uint8_t> scales_there(rows, blocks, blocks + 1, 3);
  REQUIRE(kernels::fit_quantize_pack(w_there.const_view(), packed_there.view(), scales_there.view(), f, nullptr) ==
          status::ok);
  REQUIRE(scales_there.download().data == scales.data);
  REQUIRE(packed_there.download().data == packed.data);

  const device_matrix<T> out(rows, cols, cols + w_at.padding, w_at.offset);
  REQUIRE(kernels::unpack_dequantize(packed_there.const_view(), scales_there.const_view(), out.view(), f, nullptr) ==
          status::ok);
  REQUIRE(same_bytes(out.download(), back));
}

}  // namespace

TEST_CASE("fp4 kernels store the reference's bytes and read back its numbers") {
  const auto all = [](auto f) {
    for (const index_t cols : {96, 101, 300}) {
      kernels_agree<float>(9, cols, f);
      kernels_agree<fp16>(9, cols, f);
      kernels_agree<bf16>(9, cols, f);
    }
  };
  all(mxfp4{});
  all(mxfp4{mx_rounding::down});
  all(nvfp4{});
  all(nvfp4_of(0.07f, dtype::bf16));
  all(nvfp4_of(3e38f));
  all(nvfp4_of(1e-30f));
}

TEST_CASE("fp4 kernels take every remainder of rows and columns") {
  for (index_t cols = 1; cols <= 70; ++cols) {
    const place whole{(8 - cols % 8) % 8}, whole_bytes{(4 - ceil_div(cols, 2) % 4) % 4};
    kernels_agree<bf16>(3, cols, mxfp4{}, whole, whole_bytes);
    kernels_agree<bf16>(2, cols, nvfp4{}, whole, whole_bytes);
    kernels_agree<float>(2, cols, mxfp4{}, whole, whole_bytes);
    kernels_agree<bf16>(2, cols, mxfp4{});
  }
  for (index_t rows = 1; rows <= 36; ++rows) kernels_agree<bf16>(rows, 16, nvfp4{});
  for (const index_t rows : {255, 256, 257, 300}) kernels_agree<bf16>(rows, 32, mxfp4{});
  for (const index_t cols : {2047, 2048, 2056, 4100}) kernels_agree<bf16>(5, cols, nvfp4{});
}

TEST_CASE("fp4 kernels take any stride and offset, aligned for wide accesses or not") {
  for (const index_t offset : {0, 1, 2, 4, 8})
    for (const index_t padding : {0, 1, 4, 8}) {
      kernels_agree<bf16>(6, 64, mxfp4{}, {padding, offset});
      kernels_agree<bf16>(6, 64, mxfp4{}, {}, {padding, offset});
      kernels_agree<float>(6, 64, nvfp4{}, {padding, offset}, {padding, offset});
    }
}

TEST_CASE("fp4 scales and codes are the same under every schedule and on every architecture") {
  on_architectures([] {
    under_schedules(3, [] {
      kernels_agree<bf16>(9, 600, mxfp4{});
      kernels_agree<bf16>(9, 600, nvfp4{});
    });
  });
}

TEST_CASE("fp4 kernels have nothing to do in an empty matrix") {
  const matrix<const float> none(nullptr, 0, 32), narrow(nullptr, 8, 0);
  const matrix<uint8_t> no_bytes(nullptr, 0, 16), no_scales(nullptr, 0, 1), narrow_bytes(nullptr, 8, 0);
  REQUIRE(kernels::fit_quantize_pack(none, no_bytes, no_scales, mxfp4{}, nullptr) == status::ok);
  REQUIRE(kernels::fit_quantize_pack(narrow, narrow_bytes, narrow_bytes, mxfp4{}, nullptr) == status::ok);
  REQUIRE(kernels::unpack_dequantize(matrix<const uint8_t>(no_bytes), matrix<const uint8_t>(no_scales),
                                     matrix<float>(nullptr, 0, 32), mxfp4{}, nullptr) == status::ok);
}

TEST_CASE("fp4 launchers refuse what they cannot do, and say why") {
  const device_matrix<float> w(4, 48);
  const device_matrix<uint8_t> packed(4, 24), scales(4, 3);
  const auto both = [&](matrix<float> w_, matrix<uint8_t> packed_, matrix<uint8_t> scales_) {
    const status there = kernels::fit_quantize_pack(matrix<const float>(w_), packed_, scales_, nvfp4{}, nullptr);
    const status back = kernels::unpack_dequantize(matrix<const uint8_t>(packed_), matrix<const uint8_t>(scales_), w_,
                                                   nvfp4{}, nullptr);
    REQUIRE(there == back);
    return there;
  };
  const auto at = [](const auto& m) { return m.view().data; };
  CHECK(both(w.view().rows_at(0, 3), packed, scales) == status::bad_shape);
  CHECK(both(w.view().cols_at(0, 46), packed, scales) == status::bad_shape);
  CHECK(both(w, packed.view().cols_at(0, 23), scales) == status::bad_shape);
  CHECK(both(w, packed.view().rows_at(0, 3), scales) == status::bad_shape);
  CHECK(both(w, packed, scales.view().cols_at(0, 2)) == status::bad_shape);
  CHECK(both(w, packed, scales.view().rows_at(0, 3)) == status::bad_shape);
  CHECK(both({at(w), 4, 48, 47}, packed, scales) == status::bad_shape);
  CHECK(both(w, {at(packed), 4, 24, 23}, scales) == status::bad_shape);
  CHECK(both(w, packed, {at(scales), 4, 3, 2}) == status::bad_shape);
  CHECK(both({nullptr, 4, 48}, packed, scales) == status::bad_shape);
  CHECK(both(w, {nullptr, 4, 24}, scales) == status::bad_shape);
  CHECK(both(w, packed, {nullptr, 4, 3}) == status::bad_shape);
  const auto askew = reinterpret_cast<float*>(reinterpret_cast<char*>(at(w)) + 2);
  CHECK(both({askew, 4, 48}, packed, scales) == status::misaligned);
  const index_t many = index_t{1} << 50;
  CHECK(both({at(w), many, 1}, {at(packed), many, 1}, {at(scales), many, 1}) == status::too_large);
#if defined(NIBBLE_SIMT)
  CHECK(launches_of([&] {
          return kernels::fit_quantize_pack(w.const_view(), packed.view(), scales.view(), nvfp4{}, nullptr);
        }) == 1);
  CHECK(launches_of([&] {
          return kernels::unpack_dequantize(packed.const_view(), scales.const_view(), w.view(), nvfp4{}, nullptr);
        }) == 1);
  {
    const pretended_device old(75);
    CHECK(both(w, packed, scales) == status::unsupported_device);
  }
  {
    const pretended_device none(-1);
    CHECK(both(w, packed, scales) == status::unsupported_device);
  }
#endif
}

}  // namespace fp4_tests
