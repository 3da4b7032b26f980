// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/block.cuh"

#include <cstring>
#include <vector>

#include "nibble/reference/block.hpp"
#include "support/block_rows.hpp"
#include "support/device.hpp"

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

}  // namespace

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
  const index_t many = index_t{1} << 50;
  CHECK(read({blocks.view().data, many, 2}, {w.view().data, many, 512}) == status::too_large);
  CHECK(read({nullptr, 0, 2}, {nullptr, 0, 512}) == status::ok);
  CHECK(read({nullptr, 4, 0}, {nullptr, 4, 0}) == status::ok);
#if defined(NIBBLE_SIMT)
  CHECK(launches_of([&] { return read(blocks, w); }) == 1);
  {
    const pretended_device old(75);
    CHECK(read(blocks, w) == status::unsupported_device);
  }
#endif
}
