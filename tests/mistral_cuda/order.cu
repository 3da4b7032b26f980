// SPDX-License-Identifier: Apache-2.0
#include "pass/cuda/order.cuh"

#include "mistral_cuda/support.hpp"

namespace order_tests {

using namespace nibble;
using namespace nibble::test;
using namespace nibble::mistral;

TEST_CASE("a symmetric matrix is put in the order of a permutation, and what does not fit is refused") {
  const index_t k = 300;
  const owned<float> g = random_matrix(k, k, "gram");
  std::vector<index_t> column(static_cast<size_t>(k));
  for (index_t i = 0; i < k; ++i) column[static_cast<size_t>(i)] = i * 7 % k;
  const device_matrix<float> from(g, k + 3), to(k, k, k + 5, 2);
  const device_array<index_t> there(column);
  REQUIRE(cuda::reorder(from.const_view(), there.data(), to.view(), nullptr) == status::ok);
  const owned<float> got = to.download();
  index_t wrong = 0;
  for (index_t i = 0; i < k; ++i)
    for (index_t j = 0; j < k; ++j)
      wrong += got.view()(i, j) != g.view()(column[static_cast<size_t>(i)], column[static_cast<size_t>(j)]) ? 1 : 0;
  CHECK(wrong == 0);
  const device_matrix<float> narrow(k, k - 1);
  CHECK(cuda::reorder(from.const_view(), there.data(), narrow.view(), nullptr) == status::bad_shape);
  CHECK(cuda::reorder(from.const_view(), nullptr, to.view(), nullptr) == status::bad_shape);
  CHECK(cuda::reorder(from.const_view(), askew(there.data()), to.view(), nullptr) == status::misaligned);
  CHECK(cuda::reorder(matrix<const float>(), nullptr, matrix<float>(), nullptr) == status::ok);
}

}  // namespace order_tests
