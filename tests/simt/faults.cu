// SPDX-License-Identifier: Apache-2.0
// Kernels with one planted fault each, and what tells of it: the executor itself under every preset, AddressSanitizer, ThreadSanitizer,
// or the poison that uninitialised memory is filled with.
#include <sys/mman.h>

#include <cmath>

#include "nibble/kernels/detail/device.cuh"
#include "nibble/kernels/launch.cuh"
#include "support/child.hpp"
#include "support/device.hpp"

using namespace nibble;
using namespace nibble::test;

namespace faults {  // not without a name, so that messages can name kernels

#if defined(NIBBLE_SIMT_ASAN)
constexpr bool under_asan = true, under_tsan = false;
#elif defined(NIBBLE_SIMT_TSAN)
constexpr bool under_asan = false, under_tsan = true;
#else
constexpr bool under_asan = false, under_tsan = false;
#endif

/// The line of the last fault that a thread came to; shared with the child process that came to it.
int* const fault_line =
    static_cast<int*>(::mmap(nullptr, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));

/// Opens a faulty line.
#define FAULT __atomic_store_n(fault_line, __LINE__, __ATOMIC_RELAXED);

/// Launches `kernel` in a child process, under every one of some schedules: whoever watches must say `text` and the line.
template <class... Parameters, class... Arguments>
void is_told(const char* text, void (*kernel)(Parameters...), extent3 grid, extent3 block, index_t shared_bytes,
             Arguments... arguments) {
  for (unsigned schedule = 1; schedule <= (under_tsan ? 2 : 5); ++schedule) {
    const auto words = in_child([&] {
      simt::set_schedule(schedule);
      static_cast<void>(launch(kernel, grid, block, shared_bytes, nullptr, arguments...));
    });
    const std::string line = "faults.cu:" + std::to_string(__atomic_load_n(fault_line, __ATOMIC_RELAXED));
    CAPTURE(schedule);
    CHECK_THAT(words.err, Catch::Contains(text) && Catch::Contains(line));
    CHECK((under_tsan || !words.ended_well));
  }
}

/// Whether some schedule makes `wrong` true, which launches and looks at the result.
template <class F>
bool some_schedule(F wrong) {
  for (unsigned schedule = 1; schedule <= 20; ++schedule) {
    simt::set_schedule(schedule);
    if (wrong()) return true;
  }
  return false;
}

__global__ void divergent_barriers(int) {
  if (threadIdx.x < 32) {
    FAULT device::barrier();
  } else {
    FAULT device::barrier();
  }
}

__global__ void barrier_after_some_ended(int) {
  if (threadIdx.x >= 40) return;
  FAULT device::barrier();
}

__global__ void barrier_and_warp(int) {
  if (threadIdx.x == 7)
    device::barrier();
  else
    device::warp_barrier();
}

__global__ void not_in_own_mask(int) {
  FAULT device::warp_barrier(0xffu);
}

__global__ void masks_disagree(int) {
  FAULT device::ballot(true, threadIdx.x == 3 ? 0xffu : device::all_lanes);
}

__global__ void operations_disagree(int) {
  FAULT threadIdx.x % 2 == 0 ? device::any(true) : device::all(true);
}

__global__ void lane_has_ended(int) {
  if (threadIdx.x == 5) return;
  device::warp_barrier(~(1u << 5));
  FAULT device::shuffle_xor(1, 1);
}

__global__ void lane_outside_the_block(int) {
  FAULT device::warp_barrier();
}

__global__ void reads_outside_the_mask(int) {
  if (threadIdx.x >= 16) return;
  FAULT device::shuffle(1, 20, 0xffffu);
}

__global__ void misaligned_load(const float* x) {
  FAULT device::load(reinterpret_cast<const float4*>(x + 1));
}

__global__ void misaligned_store(float* x) {
  FAULT device::store_once(reinterpret_cast<float2*>(x + threadIdx.x), {1, 2});
}

__global__ void misaligned_copy(const float* x) {
  NIBBLE_SHARED(float, tile, 64);
  FAULT device::cp_async<16>(tile, x + 2);
}

__global__ void misaligned_matrix(int) {
  NIBBLE_SHARED(fp16, tile, 8 * 12);
  uint32_t r[1];
  FAULT device::load_matrices(r, tile + device::lane() % 8 * 12);
}

__global__ void too_much_shared(int) {
  FAULT NIBBLE_SHARED(float, tile, 12 * 1024 + 1);
  tile[threadIdx.x] = 0;
}

__global__ void no_dynamic_shared(int) {
  FAULT NIBBLE_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = 0;
}

__global__ void waits_for_nobody(uint32_t* flag) {
  FAULT while (device::load_acquire(flag) == 0) {}
}

__global__ void reads_uninitialised(float* out) {
  NIBBLE_SHARED(float, tile, 64);
  if (threadIdx.x < 63) tile[threadIdx.x] = 1;
  device::barrier();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void reads_copy_early(const float* x, float* out) {
  NIBBLE_SHARED(float, tile, 4 * 32);
  device::cp_async<16>(tile + 4 * threadIdx.x, x + 4 * threadIdx.x);
  device::cp_async_commit();
  device::cp_async_commit();
  device::cp_async_wait<2>();
  FAULT out[threadIdx.x] = tile[4 * threadIdx.x];
}

__global__ void overruns_shared(float* out) {
  NIBBLE_SHARED(float, tile, 64);
  NIBBLE_SHARED(float, other, 64);
  other[threadIdx.x] = 1;
  float* const p = tile;
  FAULT p[threadIdx.x + 1] = 2;
  out[threadIdx.x] = other[threadIdx.x];
}

__global__ void overruns_dynamic_shared(int) {
  NIBBLE_DYNAMIC_SHARED(float, tile);
  FAULT tile[threadIdx.x + 1] = 2;
}

__global__ void overruns_global(float* out, int by) {
  FAULT out[static_cast<int>(threadIdx.x) + by] = 2;
}

/// out[t] = 255 − t, by way of shared memory; without the barrier in between unless `whole`.
__global__ void missing_barrier(float* out, bool whole) {
  NIBBLE_SHARED(float, tile, 256);
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (whole) device::barrier();
  FAULT out[threadIdx.x] = tile[255 - threadIdx.x];
}

/// The same when a buffer is used again: what a loop's second barrier is for.
__global__ void missing_second_barrier(float* out, bool whole) {
  NIBBLE_SHARED(float, tile, 256);
  float sum = 0;
  for (int i = 0; i < 2; ++i) {
    if (whole && i > 0) device::barrier();
    FAULT tile[threadIdx.x] = static_cast<float>(threadIdx.x + 1000 * i);
    device::barrier();
    sum += tile[255 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}

/// The same in more threads, all blocks together, than ThreadSanitizer keeps apart.
__global__ void missing_second_barriers(float* out) {
  NIBBLE_SHARED(float, tile, 256);
  float sum = 0;
  for (int i = 0; i < 2; ++i) {
    FAULT tile[threadIdx.x] = static_cast<float>(threadIdx.x + 1000 * i);
    device::barrier();
    sum += tile[255 - threadIdx.x];
  }
  out[blockIdx.x * 256 + threadIdx.x] = sum;
}

/// The same in a warp.
__global__ void missing_warp_barrier(float* out, bool whole) {
  NIBBLE_SHARED(float, tile, 32);
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (whole) device::warp_barrier();
  FAULT out[threadIdx.x] = tile[31 - threadIdx.x];
}

/// The same again: all lanes meet, but a vote orders nothing.
__global__ void vote_for_a_barrier(float* out) {
  NIBBLE_SHARED(float, tile, 32);
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  device::any(true);
  FAULT out[threadIdx.x] = tile[31 - threadIdx.x];
}

/// out[t] = what the left neighbour's copy brought; the wait is for one's own copies only.
__global__ void missing_barrier_after_copy(const float* x, float* out, bool whole) {
  NIBBLE_SHARED(float, tile, 64);
  device::cp_async<4>(&tile[threadIdx.x], &x[threadIdx.x]);
  device::cp_async_commit();
  device::cp_async_wait<0>();
  if (whole) device::barrier();
  FAULT out[threadIdx.x] = tile[(threadIdx.x + 63) % 64];
}

__global__ void blocks_write_one_element(int* out) {
  FAULT out[threadIdx.x] = static_cast<int>(blockIdx.x);
}

/// The last block to come sums what all wrote; `whole`: with the fences that this needs.
__global__ void last_block_sums(float* partial, uint32_t* came, float* out, bool whole) {
  partial[blockIdx.x] = static_cast<float>(blockIdx.x);
  if (whole) device::fence();
  if (device::atomic_add(came, 1u) + 1 != gridDim.x) return;
  if (whole) device::fence();
  float sum = 0;
  FAULT for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
  *out = sum;
}

}  // namespace faults

using namespace faults;

TEST_CASE("barriers that not all threads of a block can meet at are errors") {
  is_told("divergent barriers", divergent_barriers, 2, 64, 0, 0);
  is_told("barrier", barrier_after_some_ended, 1, 64, 0, 0);
}

TEST_CASE("a deadlock tells what everybody waits for") {
  const auto words = in_child([] { static_cast<void>(launch(barrier_and_warp, 1, 32, 0, nullptr, 0)); });
  CHECK_FALSE(words.ended_well);
  CHECK_THAT(words.err, Catch::Contains("deadlock") && Catch::Contains("31 wait at warp_barrier in ") &&
                            Catch::Contains("with mask 0xffffffff, the first being (0, 0, 0)") &&
                            Catch::Contains("1 wait at a barrier in ") &&
                            Catch::Contains(", the first being (7, 0, 0)"));
}

TEST_CASE("a mask that is not what the warp's lanes make of it is an error") {
  is_told("in which lane", not_in_own_mask, 1, 32, 0, 0);
  is_told("while lane", masks_disagree, 1, 32, 0, 0);
  is_told("while lane", operations_disagree, 1, 32, 0, 0);
  is_told("but lane 5 has ended", lane_has_ended, 1, 32, 0, 0);
  is_told("the warp has only 16 lanes", lane_outside_the_block, 1, 48, 0, 0);
  is_told("reads from lane 20", reads_outside_the_mask, 1, 32, 0, 0);
}

TEST_CASE("a vector access off its alignment is an error") {
  const device_array<float> x(64);
  is_told("misaligned: a load of 16 bytes", misaligned_load, 1, 1, 0, x.data());
  is_told("misaligned: a store of 8 bytes", misaligned_store, 1, 32, 0, x.data());
  is_told("misaligned: cp.async of 16 bytes", misaligned_copy, 1, 1, 0, x.data());
  is_told("misaligned: ldmatrix of 16 bytes", misaligned_matrix, 1, 32, 0, 0);
}

TEST_CASE("shared memory that no device gives is an error") {
  is_told("take 49168 bytes", too_much_shared, 1, 32, 0, 0);
  is_told("no dynamic shared memory", no_dynamic_shared, 1, 32, 0, 0);
}

TEST_CASE("waiting for what nobody will write ends") {
  device_array<uint32_t> flag(std::vector<uint32_t>(1));
  is_told("no thread changes any more", waits_for_nobody, 1, 1, 0, flag.data());
}

TEST_CASE("a message names kernel, block, thread and seed") {
  const auto words = in_child([] {
    simt::set_schedule(7);
    static_cast<void>(launch(not_in_own_mask, {2, 1}, {2, 32}, 0, nullptr, 0));
  });
  CHECK_THAT(words.err, Catch::Contains("[faults::not_in_own_mask, block (") && Catch::Contains(", 0, 0), thread (") &&
                            Catch::Contains(", 0), schedule 7 of NIBBLE_SIMT_SEED="));
}

TEST_CASE("shared memory that nobody wrote reads as NaN") {
  const device_array<float> out(64);
  REQUIRE(launch(reads_uninitialised, 1, 64, 0, nullptr, out.data()) == status::ok);
  REQUIRE(std::isnan(out.download()[63]));
  REQUIRE(out.download()[62] == 1);
}

TEST_CASE("what cp.async copies is not there before the wait") {
  const device_array<float> x(std::vector<float>(128, 1.0f)), out(32);
  if (under_asan) return is_told("use-after-poison", reads_copy_early, 1, 32, 0, x.data(), out.data());
  REQUIRE(launch(reads_copy_early, 1, 32, 0, nullptr, x.data(), out.data()) == status::ok);
  for (const float value : out.download()) REQUIRE(std::isnan(value));
}

TEST_CASE("a write past a buffer in global memory breaks a guard band, and AddressSanitizer tells its line") {
  for (const int by : {1, 64, -1}) {
    const device_array<float> out(64);
    if (under_asan) {
      is_told("use-after-poison", overruns_global, 1, 64, 0, out.data(), by);
    } else {
      REQUIRE(launch(overruns_global, 1, 64, 0, nullptr, out.data(), by) == status::ok);
      CHECK_FALSE(in_child([&] { static_cast<void>(out.download()); }).ended_well);
    }
  }
}

TEST_CASE("AddressSanitizer tells the line of an access past shared memory") {
  if (!under_asan) return;
  const device_array<float> out(64);
  is_told("heap-buffer-overflow", overruns_shared, 1, 64, 0, out.data());
  is_told("heap-buffer-overflow", overruns_dynamic_shared, 1, 64, 64 * 4, 0);
}

TEST_CASE("a missing barrier shows in the result under some schedule, and ThreadSanitizer tells its line") {
  const device_array<float> x(std::vector<float>(64, 1.0f));
  const auto lost = [&](auto kernel, index_t threads, auto... leading) {
    const device_array<float> out(threads);
    if (under_tsan) return is_told("data race", kernel, 1, threads, 0, leading..., out.data(), false);
    const auto run = [&](bool whole) {
      REQUIRE(launch(kernel, 1, threads, 0, nullptr, leading..., out.data(), whole) == status::ok);
      return out.download();
    };
    const auto right = run(true);
    CHECK_FALSE(some_schedule([&] { return run(true) != right; }));
    CHECK(some_schedule([&] { return run(false) != right; }));
  };
  lost(missing_barrier, 256);
  lost(missing_second_barrier, 256);
  if (!under_asan) lost(missing_barrier_after_copy, 64, static_cast<const float*>(x.data()));
  lost(missing_warp_barrier, 32);
}

TEST_CASE("ThreadSanitizer tells of races that no result shows, and accuses no kernel that fences") {
  const device_array<float> partial(8), sum(1);
  const auto sums = [&](bool whole) {
    const device_array<uint32_t> came(std::vector<uint32_t>(1));
    REQUIRE(launch(last_block_sums, 8, 1, 0, nullptr, partial.data(), came.data(), sum.data(), whole) == status::ok);
  };
  under_every_schedule(10, [&] {
    sums(true);
    REQUIRE(sum.download()[0] == 28);
  });
  if (!under_tsan) return;
  const device_array<int> out(32);
  const device_array<float> turned(32), of_blocks(8 * 256);
  is_told("data race", missing_second_barriers, 8, 256, 0, of_blocks.data());
  is_told("data race", vote_for_a_barrier, 1, 32, 0, turned.data());
  is_told("data race", blocks_write_one_element, 4, 32, 0, out.data());
  const auto words = in_child([&] { sums(false); });
  CHECK_THAT(words.err, Catch::Contains("data race"));
}
