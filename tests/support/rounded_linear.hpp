// SPDX-License-Identifier: Apache-2.0
/// @file
/// A linear as what improves on rounding finds it: scaled weights, rounded to nearest with min-max ranges.
#pragma once

#include <utility>
#include <vector>

#include "nibble/host/fit.hpp"
#include "nibble/host/quantize.hpp"
#include "support/linears.hpp"

struct rounded_linear {
  owned<float> w;
  std::vector<float> s;
  nibble::index_t group;
  nibble::any_scheme scheme;
  owned<nibble::params> p;
  owned<uint8_t> q;

  rounded_linear(owned<float> w_, std::vector<float> s_, nibble::index_t group_, nibble::any_scheme scheme_)
      : w(std::move(w_)),
        s(std::move(s_)),
        group(group_),
        scheme(scheme_),
        p(w.rows, nibble::per_group(group).across(w.cols), nibble::params{}),
        q(w.rows, w.cols) {
    for (nibble::index_t row = 0; row < w.rows; ++row)
      for (nibble::index_t col = 0; col < w.cols; ++col) w.view()(row, col) *= s[static_cast<size_t>(col)];
    nibble::host::fit(std::as_const(w).view(), p.view(), nibble::per_group(group), scheme, nibble::minmax{});
    nibble::host::quantize(std::as_const(w).view(), std::as_const(p).view(), q.view(), nibble::per_group(group),
                           scheme);
  }
};
