// SPDX-License-Identifier: Apache-2.0
// Kernels without a fault: the executor runs them to the right answer under any schedule and accuses none.
#include <numeric>

#include "nibble/kernels/detail/device.cuh"
#include "nibble/kernels/launch.cuh"
#include "support/device.hpp"

using namespace nibble;
using namespace nibble::test;

namespace {

constexpr int schedules = 20;

/// out[block] = Σ of the block's 256 numbers.
__global__ void tree_sum(const float* x, float* out) {
  NIBBLE_SHARED(float, sums, 256);
  const unsigned t = threadIdx.x;
  sums[t] = x[blockIdx.x * 256 + t];
  device::barrier();
  for (unsigned half = 128; half > 0; half /= 2) {
    if (t < half) sums[t] = device::add(sums[t], sums[t + half]);
    device::barrier();
  }
  if (t == 0) out[blockIdx.x] = sums[0];
}

/// Inclusive prefix sums of one block of up to 1024 numbers.
__global__ void scan(const int32_t* x, int32_t* out) {
  NIBBLE_SHARED(int32_t, totals, 32);
  const int lane = device::lane(), warp = static_cast<int>(threadIdx.x) / 32;
  int32_t sum = x[threadIdx.x];
  for (int step = 1; step < 32; step *= 2) {
    const int32_t below = device::shuffle_up(sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == 31) totals[warp] = sum;
  device::barrier();
  for (int w = 0; w < warp; ++w) sum += totals[w];
  out[threadIdx.x] = sum;
}

/// counts[byte] += how often x has it.
__global__ void histogram(const uint8_t* x, index_t count, uint32_t* counts) {
  NIBBLE_SHARED(uint32_t, of_block, 256);
  of_block[threadIdx.x] = 0;
  device::barrier();
  for (index_t i = index_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += index_t{gridDim.x} * 256)
    device::atomic_add(&of_block[x[i]], 1u);
  device::barrier();
  device::atomic_add(&counts[threadIdx.x], of_block[threadIdx.x]);
}

/// y (cols, rows) = xᵀ, by tiles of 32 × 32, in blocks of (32, 8).
__global__ void transpose(matrix<const float> x, matrix<float> y) {
  NIBBLE_SHARED(float, tile, 32 * 33);
  const index_t row0 = index_t{blockIdx.y} * 32, col0 = index_t{blockIdx.x} * 32;
  for (index_t i = threadIdx.y; i < 32; i += 8)
    if (row0 + i < x.rows && col0 + threadIdx.x < x.cols) tile[i * 33 + threadIdx.x] = x(row0 + i, col0 + threadIdx.x);
  device::barrier();
  for (index_t i = threadIdx.y; i < 32; i += 8)
    if (col0 + i < x.cols && row0 + threadIdx.x < x.rows) y(col0 + i, row0 + threadIdx.x) = tile[threadIdx.x * 33 + i];
}

/// c (16, 8) = a (16, 16) · b (16, 8), a and b row-major, by one warp.
template <class T>
__global__ void small_matmul(const T* a, const T* b, float* c) {
  NIBBLE_SHARED(T, tile_a, 16 * 16);
  NIBBLE_SHARED(T, tile_b, 16 * 8);
  const int lane = device::lane();
  device::cp_async<16>(tile_a + lane * 8, a + lane * 8);
  device::cp_async<8>(tile_b + lane * 4, b + lane * 4);
  device::cp_async_commit();
  device::cp_async_wait<0>();
  device::warp_barrier();
  uint32_t of_a[4], of_b[2];
  device::load_matrices(of_a, tile_a + lane % 16 * 16 + lane / 16 * 8);
  device::load_matrices<true>(of_b, tile_b + lane % 16 * 8);
  float d[4] = {};
  device::mma_m16n8k16<T>(d, of_a, of_b);
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

/// c (16, 8) = a (16, 32) · bᵀ, b (8, 32), int8.
__global__ void small_int8(const int8_t* a, const int8_t* b, int32_t* c) {
  const int lane = device::lane(), g = lane / 4, t = lane % 4;
  uint32_t of_a[4], of_b[2];
  for (int i = 0; i < 4; ++i)
    of_a[i] = device::load(reinterpret_cast<const uint32_t*>(a + (g + i % 2 * 8) * 32 + i / 2 * 16 + 4 * t));
  for (int i = 0; i < 2; ++i) of_b[i] = device::load(reinterpret_cast<const uint32_t*>(b + g * 32 + i * 16 + 4 * t));
  int32_t d[4] = {1, 1, 1, 1};
  device::mma_m16n8k32(d, of_a, of_b);
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

/// out[i] = x[i] + 1, by stages of 4 floats a thread through two dynamic shared buffers; each thread reads what its left
/// neighbour copied.
__global__ void two_buffers(const float* x, float* out, int stages) {
  NIBBLE_DYNAMIC_SHARED(float, buffers);
  const int n = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x), neighbour = (t + n - 1) % n;
  const auto fetch = [&](int stage) {
    if (stage < stages) device::cp_async<16>(buffers + (stage % 2 * n + t) * 4, x + (stage * n + t) * 4);
    device::cp_async_commit();
  };
  fetch(0);
  for (int stage = 0; stage < stages; ++stage) {
    fetch(stage + 1);
    device::cp_async_wait<1>();
    device::barrier();
    const auto v = device::load(reinterpret_cast<const float4*>(buffers + (stage % 2 * n + neighbour) * 4));
    device::store(reinterpret_cast<float4*>(out + (stage * n + neighbour) * 4), {v.x + 1, v.y + 1, v.z + 1, v.w + 1});
    device::barrier();
  }
}

/// out[lane] = what each vote and shuffle tells in halves of a warp.
__global__ void half_warps(uint32_t* out) {
  const int lane = device::lane();
  const uint32_t half = lane < 16 ? 0xffffu : 0xffff0000u;
  uint32_t value = 0;
  if (lane < 16)
    value = device::ballot(lane % 2 == 0, half);
  else
    value = device::ballot(lane % 3 == 0, half);
  value += device::shuffle_xor(static_cast<uint32_t>(lane), 1, half);
  value += device::any(lane == 3, half) ? 1000u : 0u;
  value += device::all(lane >= 16, half) ? 2000u : 0u;
  value += device::match(static_cast<uint32_t>(lane / 4), half) == 0xfu << (lane / 4 * 4) ? 4000u : 0u;
  device::warp_barrier(half);
  out[lane] = value;
}

template <class T>
std::vector<T> counting(index_t count, int modulo) {
  std::vector<T> x(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = T(static_cast<float>(i * 7 % static_cast<std::size_t>(modulo)) - 3);
  return x;
}

}  // namespace

TEST_CASE("a tree reduction over many blocks") {
  const index_t blocks = 9;
  const device_array<float> x(counting<float>(blocks * 256, 101));
  const auto host = x.download();
  under_every_schedule(schedules, [&] {
    device_array<float> out(blocks);
    REQUIRE(launch(tree_sum, blocks, 256, 0, nullptr, x.data(), out.data()) == status::ok);
    const auto sums = out.download();
    for (std::size_t b = 0; b < sums.size(); ++b)
      REQUIRE(sums[b] == std::accumulate(host.begin() + 256 * long(b), host.begin() + 256 * long(b + 1), 0.0f));
  });
}

TEST_CASE("a scan by shuffles") {
  for (const index_t size : {32, 96, 256}) {
    const device_array<int32_t> x(counting<int32_t>(size, 1000));
    const auto host = x.download();
    std::vector<int32_t> expected(host.size());
    std::partial_sum(host.begin(), host.end(), expected.begin());
    under_every_schedule(schedules, [&] {
      device_array<int32_t> out(size);
      REQUIRE(launch(scan, 1, size, 0, nullptr, x.data(), out.data()) == status::ok);
      REQUIRE(out.download() == expected);
    });
  }
}

TEST_CASE("a histogram by atomics in shared and global memory") {
  std::vector<uint8_t> bytes(5000);
  std::vector<uint32_t> expected(256);
  for (std::size_t i = 0; i < bytes.size(); ++i) ++expected[bytes[i] = static_cast<uint8_t>(i * i % 251)];
  const device_array<uint8_t> x(bytes);
  under_every_schedule(schedules, [&] {
    device_array<uint32_t> counts(std::vector<uint32_t>(256));
    REQUIRE(launch(histogram, 3, 256, 0, nullptr, x.data(), x.size(), counts.data()) == status::ok);
    REQUIRE(counts.download() == expected);
  });
}

TEST_CASE("a transposition by tiles") {
  const auto host = weights<float>(70, 45);
  const device_matrix<float> x(host, 47);
  under_every_schedule(schedules, [&] {
    device_matrix<float> y(45, 70, 71);
    REQUIRE(launch(transpose, {2, 3}, {32, 8}, 0, nullptr, x.const_view(), y.view()) == status::ok);
    const auto got = y.download();
    for (index_t row = 0; row < 70; ++row)
      for (index_t col = 0; col < 45; ++col) REQUIRE(got.view()(col, row) == host.view()(row, col));
  });
}

TEMPLATE_TEST_CASE("a matmul by ldmatrix and mma", "", fp16, bf16) {
  const device_array<TestType> a(counting<TestType>(256, 13)), b(counting<TestType>(128, 11));
  const auto host_a = a.download(), host_b = b.download();
  under_every_schedule(schedules, [&] {
    device_array<float> c(128);
    REQUIRE(launch(small_matmul<TestType>, 1, 32, 0, nullptr, a.data(), b.data(), c.data()) == status::ok);
    const auto got = c.download();
    for (std::size_t row = 0; row < 16; ++row)
      for (std::size_t col = 0; col < 8; ++col) {
        float sum = 0;  // of small integers: exact in any order
        for (std::size_t k = 0; k < 16; ++k) sum += float(host_a[row * 16 + k]) * float(host_b[k * 8 + col]);
        REQUIRE(got[row * 8 + col] == sum);
      }
  });
}

TEST_CASE("a matmul of int8") {
  const device_array<int8_t> a(counting<int8_t>(512, 127)), b(counting<int8_t>(256, 113));
  const auto host_a = a.download(), host_b = b.download();
  under_every_schedule(schedules, [&] {
    device_array<int32_t> c(128);
    REQUIRE(launch(small_int8, 1, 32, 0, nullptr, a.data(), b.data(), c.data()) == status::ok);
    const auto got = c.download();
    for (std::size_t row = 0; row < 16; ++row)
      for (std::size_t col = 0; col < 8; ++col) {
        int32_t sum = 1;
        for (std::size_t k = 0; k < 32; ++k) sum += int32_t{host_a[row * 32 + k]} * host_b[col * 32 + k];
        REQUIRE(got[row * 8 + col] == sum);
      }
  });
}

TEST_CASE("copies through two buffers") {
  const int stages = 5;
  const index_t threads = 64, count = threads * 4 * stages;
  const device_array<float> x(counting<float>(count, 1000));
  const auto host = x.download();
  under_every_schedule(schedules, [&] {
    device_array<float> out(count);
    const index_t shared = 2 * threads * 16;
    REQUIRE(launch(two_buffers, 1, threads, shared, nullptr, x.data(), out.data(), stages) == status::ok);
    const auto got = out.download();
    for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(got[i] == host[i] + 1);
  });
}

TEST_CASE("votes and shuffles in halves of a warp") {
  under_every_schedule(schedules, [&] {
    device_array<uint32_t> out(32);
    REQUIRE(launch(half_warps, 1, 32, 0, nullptr, out.data()) == status::ok);
    const auto got = out.download();
    for (uint32_t lane = 0; lane < 32; ++lane) {
      uint32_t expected = (lane ^ 1u) + (lane < 16 ? 0x5555u + 1000u : 2000u) + 4000u;
      for (uint32_t i = 16; i < 32 && lane >= 16; ++i) expected += i % 3 == 0 ? 1u << i : 0u;
      REQUIRE(got[lane] == expected);
    }
  });
}
