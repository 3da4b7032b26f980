// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/block.cuh"

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "nibble/reference/block.hpp"
#include "support/block_rows.hpp"
#include "support/device.hpp"

namespace block_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

/// How rows lie in memory: elements between them beyond the columns, and before the first.
struct place {
  index_t padding = 0, offset = 0;
};

template <class F>
void for_every_type(F f) {
  for (const block_type type : block_types) {
    CAPTURE(block_name(type));
    with_block(type, f);
  }
}

/// Blocks of finite d, m and dmin, else of any bytes.
template <class Block>
owned<Block> any_blocks(index_t rows, index_t cols) {
  std::vector<uint8_t> bytes(static_cast<std::size_t>(rows * cols) * sizeof(Block));
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<uint8_t>(bits16(static_cast<uint32_t>(Block::type), static_cast<uint32_t>(i)) >> 8);
  owned<Block> blocks(rows, cols);
  if (!bytes.empty()) std::memcpy(static_cast<void*>(blocks.data.data()), bytes.data(), bytes.size());
  for (Block& b : blocks.data) {
    auto u = reference::ggml::read(b);
    u.d.bits = static_cast<uint16_t>(u.d.bits & 0xbbff);
    u.minimum_d.bits = static_cast<uint16_t>(u.minimum_d.bits & 0xbbff);
    b = reference::ggml::packed<Block>(u);
  }
  return blocks;
}

template <class Block, class T>
void reading_agrees(index_t rows, index_t cols, place blocks_at = {}, place w_at = {}) {
  CAPTURE(block_name(Block::type), rows, cols, sizeof(T), blocks_at.padding, blocks_at.offset, w_at.padding,
          w_at.offset);
  const auto blocks = any_blocks<Block>(rows, cols / Block::weights);
  owned<T> expected(rows, cols);
  reference::dequantize_blocks(blocks.view(), expected.view());
  const device_matrix<Block> there(blocks, blocks.cols + blocks_at.padding, blocks_at.offset);
  const device_matrix<T> out(rows, cols, cols + w_at.padding, w_at.offset);
  REQUIRE(kernels::dequantize_blocks(there.const_view(), out.view(), nullptr) == status::ok);
  REQUIRE(same_bytes(out.download(), expected));
}

template <class T>
owned<T> rows_of(std::size_t kind, index_t rows, index_t cols) {
  const auto wide = block_rows(kind, rows, cols);
  owned<T> w(rows, cols);
  for (std::size_t i = 0; i < w.data.size(); ++i) w.data[i] = static_cast<T>(wide.data[i]);
  return w;
}

template <class Block, class T>
void making_agrees(const owned<T>& w, bool weighed, place w_at = {}, place blocks_at = {}) {
  CAPTURE(block_name(Block::type), w.rows, w.cols, sizeof(T), weighed, w_at.padding, w_at.offset, blocks_at.padding,
          blocks_at.offset);
  const auto importance = column_importance(w.cols);
  owned<Block> expected(w.rows, w.cols / Block::weights);
  reference::quantize_blocks(w.view(), expected.view(), weighed ? importance.data() : nullptr);
  const device_matrix<T> there(w, w.cols + w_at.padding, w_at.offset);
  const device_matrix<Block> out(w.rows, expected.cols, expected.cols + blocks_at.padding, blocks_at.offset);
  if (!weighed) {
    REQUIRE(kernels::quantize_blocks(there.const_view(), out.view(), nullptr) == status::ok);
  } else {
    const device_array<float> columns(importance);
    index_t bytes = 0;
    REQUIRE(kernels::quantize_blocks(there.const_view(), out.view(), columns.data(), nullptr, bytes, nullptr) ==
            status::ok);
    const device_array<char> workspace(bytes);
    REQUIRE(kernels::quantize_blocks(there.const_view(), out.view(), columns.data(), workspace.data(), bytes,
                                     nullptr) == status::ok);
  }
  REQUIRE(same_bytes(out.download(), expected));
}

}  // namespace

TEST_CASE("blocks made on a GPU have the reference's bytes in every type for rows of every kind") {
  for_every_type([](auto tag) {
    using Block = typename decltype(tag)::type;
    for (std::size_t kind = 0; kind < row_kinds; ++kind) {
      CAPTURE(row_kind_names.at(kind));
      const auto w = rows_of<float>(kind, 2, 768);
      making_agrees<Block>(w, false);
      making_agrees<Block>(w, true);
    }
  });
  for (const bool weighed : {false, true}) {
    making_agrees<q4_k>(rows_of<fp16>(1, 3, 512), weighed);
    making_agrees<q4_k>(rows_of<bf16>(8, 129, 256), weighed);
    making_agrees<q4_k>(rows_of<bf16>(1, 1, 256 * 17), weighed);
    making_agrees<q4_0>(rows_of<bf16>(8, 129, 256), weighed);
  }
}

TEST_CASE("blocks are made on a GPU at any stride and offset and from any number of them") {
  for (const bool weighed : {false, true}) {
    for (const index_t padding : {0, 1, 8})
      for (const index_t offset : {0, 1, 8}) {
        making_agrees<q5_1>(rows_of<bf16>(0, 4, 96), weighed, {padding, offset});
        making_agrees<q4_k>(rows_of<bf16>(0, 2, 512), weighed, {padding, offset}, {padding, offset});
        making_agrees<q6_k>(rows_of<float>(0, 2, 512), weighed, {}, {padding, offset});
      }
    for (index_t blocks = 1; blocks <= 9; ++blocks) {
      making_agrees<q4_0>(rows_of<bf16>(0, 1, 32 * blocks), weighed);
      making_agrees<q3_k>(rows_of<bf16>(0, 1, 256 * blocks), weighed);
    }
  }
}

TEST_CASE("blocks are the same under every schedule and on every architecture") {
  on_architectures([] {
    under_schedules(3, [] {
      making_agrees<q4_k>(rows_of<bf16>(0, 3, 512), true);
      making_agrees<q3_k>(rows_of<bf16>(0, 3, 512), false);
      making_agrees<q5_0>(rows_of<bf16>(0, 3, 512), true);
    });
  });
}

TEST_CASE("weights that are not finite spoil no block but their own on a GPU either") {
  auto w = rows_of<float>(0, 1, 768);
  owned<q4_k> expected(1, 3);
  reference::quantize_blocks(std::as_const(w).view(), expected.view());
  w.data[300] = std::nanf("");
  w.data[301] = INFINITY;
  const device_matrix<float> there(w);
  const device_matrix<q4_k> out(1, 3);
  REQUIRE(kernels::quantize_blocks(there.const_view(), out.view(), nullptr) == status::ok);
  const auto made = out.download();
  REQUIRE(std::memcmp(&made.data[0], &expected.data[0], sizeof(q4_k)) == 0);
  REQUIRE(std::memcmp(&made.data[2], &expected.data[2], sizeof(q4_k)) == 0);
}

TEST_CASE("weights read out of blocks on a GPU have the reference's bits in every type") {
  for_every_type([](auto tag) {
    using Block = typename decltype(tag)::type;
    reading_agrees<Block, float>(9, 768);
    reading_agrees<Block, bf16>(9, 768);
    reading_agrees<Block, fp16>(3, 256);
    reading_agrees<Block, bf16>(1, 4096);
    reading_agrees<Block, bf16>(260, 256);
  });
}

TEST_CASE("blocks are read on a GPU at any stride and offset") {
  for (const index_t padding : {0, 1, 8})
    for (const index_t offset : {0, 1, 8}) {
      reading_agrees<q4_k, bf16>(5, 512, {}, {padding, offset});
      reading_agrees<q4_0, bf16>(5, 96, {padding, offset});
      reading_agrees<q6_k, float>(5, 512, {padding, offset}, {padding, offset});
    }
}

TEST_CASE("blocks read the same under every schedule and on every architecture") {
  on_architectures([] { under_schedules(3, [] { reading_agrees<q5_k, bf16>(5, 512); }); });
}

TEST_CASE("launchers of blocks refuse what they cannot do and say why") {
  const device_matrix<q4_k> blocks(4, 2);
  const device_matrix<bf16> w(4, 512);
  const auto read = [](matrix<const q4_k> blocks_, matrix<bf16> w_) {
    return kernels::dequantize_blocks(blocks_, w_, nullptr);
  };
  REQUIRE(read(blocks, w) == status::ok);
  CHECK(read(blocks, w.view().cols_at(0, 480)) == status::bad_group);
  CHECK(read(blocks, w.view().cols_at(0, 256)) == status::bad_shape);
  CHECK(read(blocks, w.view().rows_at(0, 3)) == status::bad_shape);
  CHECK(read(blocks, {w.view().data, 4, 512, 511}) == status::bad_shape);
  CHECK(read({blocks.view().data, 4, 2, 1}, w) == status::bad_shape);
  CHECK(read({nullptr, 4, 2}, w) == status::bad_shape);
  CHECK(read(blocks, {nullptr, 4, 512}) == status::bad_shape);
  const auto one_on = [](auto* p) { return reinterpret_cast<decltype(p)>(reinterpret_cast<char*>(p) + 1); };
  CHECK(read({one_on(blocks.view().data), 4, 2}, w) == status::misaligned);
  CHECK(read(blocks, {one_on(w.view().data), 4, 512}) == status::misaligned);
  const auto make = [](matrix<const bf16> w_, matrix<q4_k> blocks_) {
    return kernels::quantize_blocks(w_, blocks_, nullptr);
  };
  CHECK(make(w, blocks) == status::ok);
  CHECK(make(w.view().cols_at(0, 480), blocks) == status::bad_group);
  CHECK(make(w.view().cols_at(0, 256), blocks) == status::bad_shape);
  CHECK(make(w.view().rows_at(0, 3), blocks) == status::bad_shape);
  CHECK(make({nullptr, 4, 512}, blocks) == status::bad_shape);
  CHECK(make(w, {one_on(blocks.view().data), 4, 2}) == status::misaligned);
  CHECK(make({one_on(w.view().data), 4, 512}, blocks) == status::misaligned);
  CHECK(make({nullptr, 0, 512}, {nullptr, 0, 2}) == status::ok);
  CHECK(make({nullptr, 4, 0}, {nullptr, 4, 0}) == status::ok);

  const device_matrix<q4_0> small(4, 16);
  const device_array<float> importance(512);
  index_t bytes = 0;
  const auto weigh = [&](const float* columns, void* workspace) {
    return kernels::quantize_blocks(w.const_view(), small.view(), columns, workspace, bytes, nullptr);
  };
  CHECK(weigh(importance.data(), nullptr) == status::ok);
  CHECK(bytes == 16);
  const device_array<char> workspace(bytes + 4);
  CHECK(weigh(importance.data(), workspace.data()) == status::ok);
  CHECK(weigh(nullptr, workspace.data()) == status::bad_shape);
  CHECK(weigh(one_on(importance.data()), workspace.data()) == status::misaligned);
  CHECK(weigh(importance.data(), workspace.data() + 4) == status::misaligned);
  bytes = 15;
  CHECK(weigh(importance.data(), workspace.data()) == status::workspace_too_small);
  CHECK(kernels::quantize_blocks(w.const_view(), blocks.view(), importance.data(), nullptr, bytes, nullptr) ==
        status::ok);
  CHECK(bytes == 1);
  const index_t many = index_t{1} << 50;
  CHECK(make({w.view().data, many, 512}, {blocks.view().data, many, 2}) == status::too_large);
  CHECK(read({blocks.view().data, many, 2}, {w.view().data, many, 512}) == status::too_large);
  CHECK(read({nullptr, 0, 2}, {nullptr, 0, 512}) == status::ok);
  CHECK(read({nullptr, 4, 0}, {nullptr, 4, 0}) == status::ok);
#if defined(NIBBLE_SIMT)
  CHECK(launches_of([&] { return read(blocks, w); }) == 1);
  CHECK(launches_of([&] { return make(w, blocks); }) == 1);
  {
    const pretended_device old(75);
    CHECK(read(blocks, w) == status::unsupported_device);
    CHECK(make(w, blocks) == status::unsupported_device);
  }
#endif
}

}  // namespace block_tests
