// SPDX-License-Identifier: Apache-2.0
/// @file
/// The steps of the forward pass between its products, on a GPU. The residual stream and what products give are float, what
/// products read is bf16; arithmetic is in float. As launchers of nibble they check, launch and answer; the residual is
/// added by the products themselves.
#pragma once

#include "mistral/cuda/detail/rows.cuh"
#include "mistral/cuda/tuning.cuh"
#include "nibble/kernels/check.hpp"
#include "nibble/kernels/launch.cuh"

namespace nibble::mistral::cuda {

using detail::head_layout;
using kernels::detail::aligned;
using kernels::detail::well_formed;

namespace detail {

template <class T>
bool aligned(const T* p, index_t items = 1) noexcept {
  return reinterpret_cast<std::size_t>(p) % (sizeof(T) * static_cast<std::size_t>(items)) == 0;
}

/// Threads of a block that has a row of `cols`, Items to an access: no warp without any.
template <class Tuned>
int row_threads(Tuned, index_t cols, int items = 1) noexcept {
  return static_cast<int>(
      min(index_t{Tuned::value.threads}, round_up(ceil_div(max(cols, index_t(1)), index_t{items}), index_t(32))));
}

/// start(tuned, items as a constant) for `rows` blocks, by four elements an access where `wide`.
template <class F>
status by_rows(bool wide, F start) {
  return dispatch(tuning::rows{}, [&](auto tuned) {
    if (wide) return start(tuned, constant<4>{});
    return start(tuned, constant<1>{});
  });
}

}  // namespace detail

/// x (tokens, hidden) row t = table (entries, hidden) row ids[t] − first_id; rows of ids that this part of the table does
/// not have stay as they are, so that a table may come in parts.
/// @returns bad_shape, misaligned, or what launch says.
inline status embed(matrix<const bf16> table, index_t first_id, const int32_t* ids, matrix<float> x,
                    cudaStream_t stream) {
  if (!well_formed(table) || !well_formed(x) || table.cols != x.cols || first_id < 0) return status::bad_shape;
  if (x.empty() || table.empty()) return status::ok;
  if (ids == nullptr) return status::bad_shape;
  if (!aligned(table) || !aligned(x) || !detail::aligned(ids)) return status::misaligned;
  const bool wide = x.cols % 4 == 0 && aligned(table, 4) && aligned(x, 4);
  return detail::by_rows(wide, [&](auto tuned, auto items) {
    return launch(detail::embed_kernel<decltype(tuned), items.value>, x.rows,
                  detail::row_threads(tuned, x.cols, items.value), 0, stream, table, first_id, ids, x);
  });
}

/// y = x / rms(x) · weight, row by row; x and y (tokens, hidden), weight (hidden).
/// @returns bad_shape, misaligned, or what launch says.
inline status rms_norm(matrix<const float> x, const float* weight, float epsilon, matrix<bf16> y, cudaStream_t stream) {
  if (!well_formed(x) || !well_formed(y) || x.rows != y.rows || x.cols != y.cols) return status::bad_shape;
  if (x.empty()) return status::ok;
  if (weight == nullptr) return status::bad_shape;
  if (!aligned(x) || !aligned(y) || !detail::aligned(weight)) return status::misaligned;
  const bool wide = x.cols % 4 == 0 && aligned(x, 4) && aligned(y, 4) && detail::aligned(weight, 4);
  return detail::by_rows(wide, [&](auto tuned, auto items) {
    return launch(detail::rms_norm_kernel<decltype(tuned), items.value>, x.rows,
                  detail::row_threads(tuned, x.cols, items.value), 0, stream, x, weight, epsilon, y);
  });
}

/// Rounds qkv (tokens, heads.width()) to `out`, with q and k turned as rotary_table turns them.
/// @param starts (sequences + 1) on the device, from 0 to the number of tokens, rising.
/// @param cosine, sine (positions, head_dim / 2). @pre no sequence is longer than `positions`.
/// @returns bad_shape, misaligned, or what launch says.
inline status rotate(matrix<const float> qkv, head_layout heads, const index_t* starts, index_t sequences,
                     matrix<const float> cosine, matrix<const float> sine, matrix<bf16> out, cudaStream_t stream) {
  if (heads.heads < 1 || heads.kv_heads < 1 || heads.head_dim < 2 || heads.head_dim % 2 != 0) return status::bad_shape;
  if (!well_formed(qkv) || !well_formed(out) || !well_formed(cosine) || !well_formed(sine)) return status::bad_shape;
  if (qkv.cols != heads.width() || out.cols != qkv.cols || out.rows != qkv.rows) return status::bad_shape;
  if (cosine.cols != heads.head_dim / 2 || sine.cols != cosine.cols || sine.rows != cosine.rows)
    return status::bad_shape;
  if (qkv.rows == 0) return status::ok;
  if (starts == nullptr || sequences < 1 || cosine.rows < 1) return status::bad_shape;
  if (!aligned(qkv) || !aligned(out) || !aligned(cosine) || !aligned(sine) || !detail::aligned(starts))
    return status::misaligned;
  const bool wide =
      heads.head_dim % 8 == 0 && aligned(qkv, 4) && aligned(out, 4) && aligned(cosine, 4) && aligned(sine, 4);
  return detail::by_rows(wide, [&](auto tuned, auto items) {
    return launch(detail::rotate_kernel<decltype(tuned), items.value>, qkv.rows,
                  detail::row_threads(tuned, qkv.cols, items.value), 0, stream, qkv, heads, starts, sequences, cosine,
                  sine, out);
  });
}

/// out (tokens, n) = silu(gate) · up, gate_up (tokens, 2 n) with gate on the left.
/// @returns bad_shape, misaligned, or what launch says.
inline status swiglu(matrix<const float> gate_up, matrix<bf16> out, cudaStream_t stream) {
  if (!well_formed(gate_up) || !well_formed(out) || gate_up.rows != out.rows || gate_up.cols != 2 * out.cols)
    return status::bad_shape;
  if (out.empty()) return status::ok;
  if (!aligned(gate_up) || !aligned(out)) return status::misaligned;
  const bool wide = out.cols % 4 == 0 && aligned(gate_up, 4) && aligned(out, 4);
  return detail::by_rows(wide, [&](auto tuned, auto items) {
    return launch(detail::swiglu_kernel<decltype(tuned), items.value>, out.rows,
                  detail::row_threads(tuned, out.cols, items.value), 0, stream, gate_up, out);
  });
}

}  // namespace nibble::mistral::cuda
