// SPDX-License-Identifier: Apache-2.0
/// @file
/// A linear's weights N(0, 0.02²) in device memory, their parameters and 4-bit codes, for the benches of kernels.
#pragma once

#include "nibble/matrix.hpp"
#include "support/device.cuh"

namespace bench {

constexpr nibble::group_shape group = nibble::per_group(128);
constexpr float deviation = 0.02f;

/// Parameters that fit such weights well enough for codes to take all values; codes of their own, uniform.
struct linear {
  extents shape;
  buffer<nibble::bf16> w;
  buffer<nibble::params> p;
  buffer<uint8_t> q;

  linear(extents e, unsigned seed) : shape(e), w(e.size()), p(e.n * group.across(e.k)), q(e.size()) {
    fill(w, normal<nibble::bf16>{deviation}, seed);
    fill(p, uniform_params{6 * deviation / 15, 8}, seed);
    fill(q, uniform_bits<uint8_t>{4}, seed);
  }
  nibble::matrix<nibble::bf16> weights() const { return {w.data(), shape.n, shape.k}; }
  nibble::matrix<const nibble::params> parameters() const { return {p.data(), shape.n, group.across(shape.k)}; }
  nibble::matrix<const uint8_t> codes() const { return {q.data(), shape.n, shape.k}; }
  nibble::matrix<uint8_t> codes_out() const { return {q.data(), shape.n, shape.k}; }
};

}  // namespace bench
