// SPDX-License-Identifier: Apache-2.0
/// @file
/// GPTQ: codes of a row w (k) chosen one after another, each allowing for the error of all before it, so that
///     (w − ŵ)·H·(w − ŵ)ᵀ,   H = E[x·xᵀ] + λ·mean(diag H)·I                                  (all of a linear's inputs x)
/// stays small. With H = Lᵀ·L, L lower triangular, that is
///     Σ_i (L_ii·(t_i − ŵ_i))²,   t_i = w_i + Σ_{j<i} L_ij·(w_j − ŵ_j) / L_ii
/// and ŵ_i is what is nearest to t_i. This is the published update with U, the upper factor of H⁻¹ (U_ii = 1 / L_ii): both
/// take the columns in order and leave the later ones where they lose least. Here nothing is inverted.
///
/// The weights a group begins with, when all before it are chosen and all after it may still give way, are u = w + y with
///     L_gg·yᵀ = Σ_{j<g} L_gj·(w_j − ŵ_j)ᵀ,
/// and an error d of the group will cost d·(L_ggᵀ·L_gg)·dᵀ: ranges are found for u under that matrix.
///
/// Afterwards codes stay and a group's scale and zero point move: ŵ = a·c, c = codes − zero, is a parabola in a.
///
/// Sources: Frantar et al., arXiv 2210.17323; the triangular form as in Chen et al., arXiv 2507.18553; OBQ, arXiv 2208.11580.
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"
#include "nibble/math.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN

/// The order in which columns are solved, by falling diagonal of H: those that matter most first, while all others can still
/// make up for their errors.
///     none          as they lie
///     static_groups any column may be next; groups, and their parameters, are those of the layout and found beforehand
///     group_aware   columns within their groups, groups by their greatest column: groups stay those of the layout
///     descending    groups are formed of the columns in the order of solving; files need g_idx ("desc_act")
enum class activation_order : uint8_t { none, static_groups, group_aware, descending };

/// How a group's range is found when it begins, of the weights as they are then; `given`: it was found beforehand.
///     minmax   their least and greatest
///     mse      ends_search, each input's error weighted by the Hessian's diagonal
///     gram     the same, then clip_under_gram's search under what the group's errors will cost
enum class gptq_ranges : uint8_t { given, minmax, mse, gram };

/// The λ to try next where one gave no factor; 1 is the last.
NIBBLE_HOST_DEVICE constexpr double raised_damping(double damping) noexcept {
  return min(1.0, max(damping, 1e-3) * 4);
}

/// A diagonal element where no λ gave a factor: at least the sum of what is `beside` it in its row, and a share more that rounding
/// cannot eat up.
NIBBLE_HOST_DEVICE constexpr double floored_diagonal(double own, double beside) noexcept {
  return max(own, 1.001 * beside);
}

/// What refitted() needs of one group of one row; c = (q − zero) / s and e = 1 / s over its inputs, r = (ŵ − w)/s·H there.
struct group_products {
  double cc, ce, ee;  ///< c·H·cᵀ, c·H·eᵀ, e·H·eᵀ
  double rc, re;      ///< r·cᵀ, r·eᵀ
};

/// The scale, stored as the scheme stores it, and the zero point, at most one from p's, that lose least with the group's codes
/// as they are; a zero point moves only where that gains more than rounding could feign.
/// Codes and zero point stay in their range, the scale positive.
template <class Scheme>
NIBBLE_HOST_DEVICE constexpr params refitted(params p, const group_products& m, Scheme scheme = {}) noexcept {
  const auto a = static_cast<double>(p.scale);
  const double unsure = 1e-6 * a * a * m.cc;  // sums in float, which a moved zero point combines anew
  params best = p;
  double least = 0;
  for (int32_t i = 0; i < 3; ++i) {
    const int32_t step = i == 2 ? -1 : i;
    if (p.zero + step < 0 || p.zero + step > max_code(scheme) || (step != 0 && scheme.symmetric)) continue;
    // b·c' in place of a·c, c' = c − step·e
    const auto d = static_cast<double>(step);
    const double new_new = m.cc - 2 * d * m.ce + d * d * m.ee, old_new = m.cc - d * m.ce, slope = m.rc - d * m.re;
    const double wanted = (a * old_new - slope) / new_new;
    const float stored = round_to(scheme.scale_dtype, static_cast<float>(wanted));
    if (!(new_new > 0) || !(stored > 0) || !is_finite(stored)) continue;
    const auto b = static_cast<double>(stored);
    const double change =
        step == 0 ? (b - a) * (2 * m.rc + (b - a) * m.cc)
                  : unsure + 2 * (b * slope - a * m.rc) + b * b * new_new - 2 * a * b * old_new + a * a * m.cc;
    if (change < least) {
      least = change;
      best = params{stored, p.zero + step};
    }
  }
  return best;
}

NIBBLE_NAMESPACE_END
