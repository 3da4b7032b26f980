// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch.hpp>

#include "nibble/kernels/grid.hpp"
#include "nibble/kernels/tuning.hpp"

namespace launch_tests {

using namespace nibble;

namespace {

constexpr index_t shared = 227 * 1024;

struct policy {
  int threads;
};

struct two_generations {
  static constexpr int architectures[] = {80, 90};
  constexpr policy operator()(int sm) const { return sm >= 90 ? policy{512} : policy{128}; }
};

/// Threads of the policy chosen for `sm`; 0 when it is refused.
int threads_on(int sm) {
  int threads = 0;
  const status chosen = choose(sm, two_generations{}, [&](auto tuning) {
    constexpr policy p = tuning.value;  // known at compile time, or this would not compile
    threads = p.threads;
    return status::ok;
  });
  REQUIRE(chosen == (threads == 0 ? status::unsupported_device : status::ok));
  return threads;
}

}  // namespace

TEST_CASE("a launch at each of the device's limits passes, one past it is too large") {
  REQUIRE(check_launch({2147483647, 65535, 65535}, {1024}, shared, shared) == status::ok);
  REQUIRE(check_launch(1, {16, 1, 64}, 0, shared) == status::ok);
  REQUIRE(check_launch(index_t{2147483648}, 1, 0, shared) == status::too_large);
  REQUIRE(check_launch({1, 65536}, 1, 0, shared) == status::too_large);
  REQUIRE(check_launch({1, 1, 65536}, 1, 0, shared) == status::too_large);
  REQUIRE(check_launch(1, 1025, 0, shared) == status::too_large);
  REQUIRE(check_launch(1, {1, 1025}, 0, shared) == status::too_large);
  REQUIRE(check_launch(1, {1, 1, 65}, 0, shared) == status::too_large);
  REQUIRE(check_launch(1, {32, 33}, 0, shared) == status::too_large);  // 1056 threads
  REQUIRE(check_launch(1, 1, shared + 1, shared) == status::too_large);
}

TEST_CASE("a grid that 32 bits cannot hold is refused, not wrapped round") {
  REQUIRE(check_launch((index_t{1} << 32) + 1, 256, 0, shared) == status::too_large);
  REQUIRE(check_launch(1, index_t{1} << 32, 0, shared) == status::too_large);
  REQUIRE(check_launch(1, {1024, 1024, 64}, 0, shared) == status::too_large);
}

TEST_CASE("negative extents and empty blocks are bad shapes, an empty grid is nothing to do") {
  REQUIRE(check_launch(-1, 1, 0, shared) == status::bad_shape);
  REQUIRE(check_launch({1, -1}, 1, 0, shared) == status::bad_shape);
  REQUIRE(check_launch({1, 1, -1}, 1, 0, shared) == status::bad_shape);
  REQUIRE(check_launch(1, 0, 0, shared) == status::bad_shape);
  REQUIRE(check_launch(1, {1, 0}, 0, shared) == status::bad_shape);
  REQUIRE(check_launch(1, {1, 1, -5}, 0, shared) == status::bad_shape);
  REQUIRE(check_launch(1, 1, -1, shared) == status::bad_shape);
  REQUIRE(check_launch(0, 256, 0, shared) == status::ok);
  REQUIRE(extent3(0).empty());
  REQUIRE(extent3(4, 0).empty());
  REQUIRE_FALSE(extent3(1).empty());
}

TEST_CASE("the policy of the newest architecture not newer than the device is chosen") {
  REQUIRE(threads_on(80) == 128);
  REQUIRE(threads_on(89) == 128);
  REQUIRE(threads_on(90) == 512);
  REQUIRE(threads_on(120) == 512);
}

TEST_CASE("a device older than every architecture listed is refused") {
  REQUIRE(threads_on(75) == 0);
  REQUIRE(threads_on(0) == 0);
}

TEST_CASE("what the chosen launch answers comes back") {
  const auto refuse = [](auto) { return status::misaligned; };
  REQUIRE(choose(86, two_generations{}, refuse) == status::misaligned);
}

}  // namespace launch_tests
