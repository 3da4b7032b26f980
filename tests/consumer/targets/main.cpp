// SPDX-License-Identifier: Apache-2.0
#include <nibble/host/parallel.hpp>
#include <nibble/kernels/status.hpp>
#include <nibble/reference/quantize.hpp>

#include <atomic>
#include <cstdio>

int main() {
  std::atomic<int> tiles{0};
  nibble::host::parallel_for(8, [&](nibble::index_t) { ++tiles; });
  const float weights[] = {-1.0f, 0.0f, 0.5f, 1.0f};
  const nibble::params group{0.25f, 4};
  std::uint8_t codes[4];
  nibble::reference::quantize(nibble::matrix<const float>(weights, 1, 4),
                              nibble::matrix<const nibble::params>(&group, 1, 1),
                              nibble::matrix<std::uint8_t>(codes, 1, 4), nibble::per_tensor, nibble::scheme<4>{});
  std::printf("%d tiles, %s, codes %d %d %d %d\n", tiles.load(), to_string(nibble::status::ok), codes[0], codes[1],
              codes[2], codes[3]);
  return tiles == 8 && codes[0] == 0 && codes[1] == 4 && codes[2] == 6 && codes[3] == 8 ? 0 : 1;
}
