// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/kv_cache.cuh"

#include <algorithm>
#include <numeric>
#include <random>

#include "nibble/reference/fp8.hpp"
#include "nibble/reference/kv_cache.hpp"
#include "support/device.hpp"
#include "support/weights.hpp"

namespace kv_cache_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

using e4m3 = float_scheme<float_format::e4m3>;

struct sizes {
  index_t tokens, heads, key_dim, value_dim;
};

/// How rows lie in memory: elements between them beyond the columns, and before the first.
struct place {
  index_t padding = 0, offset = 0;
};

/// A slot each, no two the same; some are padding, some past the cache.
std::vector<index_t> some_slots(index_t tokens, index_t slots) {
  std::vector<index_t> all(static_cast<std::size_t>(slots));
  std::iota(all.begin(), all.end(), index_t{0});
  std::shuffle(all.begin(), all.end(), std::mt19937(11));
  all.resize(static_cast<std::size_t>(tokens));
  const index_t odd[] = {-1, slots, -(index_t{1} << 62), index_t{1} << 62};
  for (std::size_t i = 2; i < all.size(); i += 5) all[i] = odd[i / 5 % 4];
  return all;
}

template <class T, class Scheme>
void kernel_agrees(sizes n, bool per_head, Scheme s, place from_at = {}, place cache_at = {}) {
  CAPTURE(n.tokens, n.heads, n.key_dim, n.value_dim, per_head, from_at.padding, from_at.offset, cache_at.padding,
          cache_at.offset);
  const index_t k_cols = n.heads * n.key_dim, v_cols = n.heads * n.value_dim, slots = n.tokens + 7;
  const index_t scale_count = per_head ? n.heads : 1;
  const auto k = nasty_weights<T>(n.tokens, k_cols, 3), v = nasty_weights<T>(n.tokens, v_cols, 4);
  owned<float> k_scales(1, scale_count), v_scales(1, scale_count);
  for (index_t i = 0; i < scale_count; ++i) {
    k_scales.data[std::size_t(i)] = 0.001f * static_cast<float>(i + 1);
    v_scales.data[std::size_t(i)] = 0.0007f * static_cast<float>(2 * i + 1);
  }
  owned<uint8_t> k_cache(slots, k_cols, 0x5a), v_cache(slots, v_cols, 0xa5);
  const device_matrix<uint8_t> k_there(k_cache, k_cols + cache_at.padding, cache_at.offset);
  const device_matrix<uint8_t> v_there(v_cache, v_cols + cache_at.padding, cache_at.offset);
  const auto at = some_slots(n.tokens, slots);
  reference::write_cache<Scheme, T>({k.view(), v.view()}, at.data(),
                                    {std::as_const(k_scales).view(), std::as_const(v_scales).view()},
                                    {k_cache.view(), v_cache.view()}, s);

  const device_matrix<T> k_from(k, k_cols + from_at.padding, from_at.offset);
  const device_matrix<T> v_from(v, v_cols + from_at.padding, from_at.offset);
  const device_matrix<float> k_scales_there(k_scales, scale_count, 1), v_scales_there(v_scales, scale_count, 2);
  const device_array<index_t> slots_there(at);
  const keys_values<const T> from{k_from, v_from};
  const keys_values<const float> scales{k_scales_there, v_scales_there};
  const keys_values<uint8_t> cache{k_there, v_there};
  REQUIRE(kernels::write_cache(from, slots_there.data(), scales, cache, s, nullptr) == status::ok);
  REQUIRE(k_there.download().data == k_cache.data);
  REQUIRE(v_there.download().data == v_cache.data);
}

}  // namespace

TEST_CASE("keys and values come to their tokens' slots under a scale a tensor or a head, and no other slot changes") {
  for (const bool per_head : {false, true}) {
    kernel_agrees<bf16>({9, 8, 128, 128}, per_head, e4m3{});
    kernel_agrees<fp16>({9, 4, 64, 64}, per_head, e4m3{});
    kernel_agrees<float>({9, 2, 32, 32}, per_head, e4m3{});
    kernel_agrees<bf16>({5, 3, 24, 16}, per_head, float_scheme<float_format::e5m2>{});
    kernel_agrees<bf16>({5, 3, 192, 128}, per_head, any_float_scheme{});
    kernel_agrees<bf16>({6, 3, 5, 7}, per_head, e4m3{});
    kernel_agrees<bf16>({6, 2, 20, 4}, per_head, e4m3{}, {0, 0}, {0, 0});
  }
}

TEST_CASE("a cache takes every number of tokens, also more than a block has") {
  for (index_t tokens = 0; tokens <= 20; ++tokens) kernel_agrees<bf16>({tokens, 2, 8, 8}, true, e4m3{});
  for (const index_t tokens : {63, 64, 65, 130}) kernel_agrees<bf16>({tokens, 1, 16, 16}, true, e4m3{});
  kernel_agrees<bf16>({3, 8, 256, 512}, true, e4m3{});
}

TEST_CASE("a cache takes heads of which one access holds several, or pieces of two") {
  for (const index_t dim : {1, 2, 3, 4, 6, 12, 20})
    kernel_agrees<bf16>({4, 4, dim, dim}, true, e4m3{}, {(8 - 4 * dim % 8) % 8}, {(8 - 4 * dim % 8) % 8});
}

TEST_CASE("a cache takes any stride and offset, aligned for wide accesses or not") {
  for (const index_t offset : {0, 1, 2, 4, 8})
    for (const index_t padding : {0, 1, 4, 8}) {
      kernel_agrees<bf16>({4, 2, 16, 16}, true, e4m3{}, {padding, offset});
      kernel_agrees<bf16>({4, 2, 16, 16}, true, e4m3{}, {}, {padding, offset});
      kernel_agrees<float>({4, 2, 16, 16}, true, e4m3{}, {padding, offset}, {padding, offset});
    }
}

TEST_CASE("a cache is the same under every schedule and on every architecture") {
  on_architectures([] { under_schedules(3, [] { kernel_agrees<bf16>({9, 4, 64, 64}, true, e4m3{}); }); });
}

TEST_CASE("write_cache refuses what it cannot do, and says why") {
  const device_matrix<float> k(4, 32), v(4, 16), scales(1, 2);
  const device_matrix<uint8_t> k_cache(8, 32), v_cache(8, 16);
  const device_array<index_t> slots(std::vector<index_t>{0, 1, 2, 3});
  const auto write = [&](matrix<const float> k_, matrix<const float> v_, matrix<const float> p, matrix<uint8_t> kc,
                         matrix<uint8_t> vc, const index_t* at) {
    return kernels::write_cache(keys_values<const float>{k_, v_}, at, {p, p}, {kc, vc}, e4m3{}, nullptr);
  };
  const index_t* const at = slots.data();
  CHECK(write(k, v, scales, k_cache, v_cache, at) == status::ok);
  CHECK(write(k.view().rows_at(0, 3), v, scales, k_cache, v_cache, at) == status::bad_shape);
  CHECK(write(k, v, scales, v_cache, v_cache, at) == status::bad_shape);
  CHECK(write(k, v, scales, k_cache, k_cache, at) == status::bad_shape);
  CHECK(write(k, v, scales, k_cache, v_cache, nullptr) == status::bad_shape);
  CHECK(write({nullptr, 4, 32}, v, scales, k_cache, v_cache, at) == status::bad_shape);
  CHECK(write(k, {v.view().data, 4, 16, 15}, scales, k_cache, v_cache, at) == status::bad_shape);
  CHECK(write(k, v, scales, {nullptr, 8, 32}, v_cache, at) == status::bad_shape);
  CHECK(write(k, v, {scales.view().data, 2, 1}, k_cache, v_cache, at) == status::bad_shape);
  CHECK(write(k, v, {scales.view().data, 1, 0}, k_cache, v_cache, at) == status::bad_shape);
  CHECK(write(k, v, {nullptr, 1, 2}, k_cache, v_cache, at) == status::bad_shape);
  CHECK(write(k, v, {scales.view().data, 1, 3}, k_cache, v_cache, at) == status::bad_group);
  const auto askew = [](auto* p) { return reinterpret_cast<decltype(p)>(reinterpret_cast<uintptr_t>(p) + 2); };
  CHECK(write({askew(k.view().data), 4, 32}, v, scales, k_cache, v_cache, at) == status::misaligned);
  CHECK(write(k, {askew(v.view().data), 4, 16}, scales, k_cache, v_cache, at) == status::misaligned);
  CHECK(write(k, v, {askew(scales.view().data), 1, 2}, k_cache, v_cache, at) == status::misaligned);
  CHECK(write(k, v, scales, k_cache, v_cache, askew(at)) == status::misaligned);
  const index_t many = index_t{1} << 50;
  CHECK(write({k.view().data, many, 32}, {v.view().data, many, 16}, scales, k_cache, v_cache, at) == status::too_large);
#if defined(NIBBLE_SIMT)
  CHECK(launches_of([&] { return write(k, v, scales, k_cache, v_cache, at); }) == 1);
  {
    const pretended_device old(75);
    CHECK(write(k, v, scales, k_cache, v_cache, at) == status::unsupported_device);
  }
  {
    const pretended_device none(-1);
    CHECK(write(k, v, scales, k_cache, v_cache, at) == status::unsupported_device);
  }
#endif
}

}  // namespace kv_cache_tests
