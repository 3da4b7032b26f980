// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of gptq, without their launcher: this much compiles under NVRTC. A block of up to 128 columns goes by in steps, a column
/// each, and a warp has a row of W: column 32·part + lane is its lane's part-th. Lanes that made a code tell the others its error.
#pragma once

#include "nibble/fit.hpp"
#include "nibble/gptq.hpp"
#include "nibble/kernels/detail/hessian.cuh"
#include "nibble/kernels/detail/range.cuh"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {

/// Columns as they are solved, as host::column_order has them. Neighbours with the same parameters are a group whose parameters are
/// found when it begins. Null pointers: columns as they lie.
struct solving_order {
  const index_t* column = nullptr;      ///< (k) in device memory: the column of W that comes i-th
  const index_t* parameters = nullptr;  ///< (k) in device memory: the column of p that it takes
  const index_t* on_host =
      nullptr;  ///< `parameters` in host memory, read before the launcher returns; only where ranges are found
};

namespace detail {

inline constexpr int gptq_parts = factor_block / 32;

/// What a block of columns is made of: columns [first, first + count) in the order of solving, count ≤ 128.
struct column_block {
  index_t first;
  int count;
  const index_t *column, *parameters;  ///< of the whole order, or null
  index_t width;                       ///< of a group, where parameters are null

  __device__ index_t place(int i) const { return column == nullptr ? first + i : column[first + i]; }
  __device__ index_t group(int i) const { return parameters == nullptr ? (first + i) / width : parameters[first + i]; }
};

/// Where L_ji, j ≥ i, of a block lies in shared memory: columns one after another, so that lanes with neighbouring j read neighbours.
NIBBLE_HOST_DEVICE constexpr int factor_place(int j, int i) noexcept {
  return i * (2 * factor_block - i - 1) / 2 + j;
}

/// A row of W in a block of columns: this lane's weights and what the errors of the columns before are worth to them.
struct solved_row {
  const float* l;  ///< the factor's diagonal block
  float w[gptq_parts], z[gptq_parts];

  /// f(constant part, i) of columns [begin, end), in order.
  template <class F>
  __device__ void steps(int begin, int end, F f) const {
    each(begin, end, f, constant<0>{});
  }

  /// `to` of all columns after i += L_ji·error, rounded as the host rounds it. Nobody asks any more what those before hold then, nor
  /// those past the block's end.
  template <class Part>
  __device__ void spread(Part, int i, float error, float (&to)[gptq_parts]) const {
#pragma unroll
    for (int part = Part::value; part < gptq_parts; ++part) {
      const int j = part * 32 + device::lane();
      to[part] = device::add(to[part], device::multiply(l[factor_place(j, i)], error));
    }
  }

  /// How columns [begin, end) move when all after them may still give way: y of L·yᵀ = zᵀ; others stay.
  __device__ void give_way(int begin, int end, float (&y)[gptq_parts]) const {
    float left[gptq_parts];
#pragma unroll
    for (int part = 0; part < gptq_parts; ++part) left[part] = z[part];
    steps(begin, end, give_way_step{*this, y, left});
  }

 private:
  /// What lanes do when column i gives way. A struct, for NVRTC takes no lambda whose parameters are templates.
  struct give_way_step {
    const solved_row& row;
    float (&y)[gptq_parts];
    float (&left)[gptq_parts];

    template <class Part>
    __device__ void operator()(Part part, int i) const {
      constexpr int at = Part::value;
      if (device::lane() == i % 32) y[at] = device::divide(left[at], row.l[factor_place(i, i)]);
      row.spread(part, i, -device::shuffle(y[at], i % 32), left);
    }
  };

  template <class F, int Part>
  __device__ void each(int begin, int end, F f, constant<Part> part) const {
    for (int i = max(begin, Part * 32); i < min(end, Part * 32 + 32); ++i) f(part, i);
    if constexpr (Part + 1 < gptq_parts) each(begin, end, f, constant<Part + 1>{});
  }
};

/// The factor's diagonal block in shared memory, and which parameters the block's columns take.
template <class Tuned>
__device__ void stage_block(matrix<const float> l, const column_block& block, float* to, index_t* groups) {
  constexpr int warps = Tuned::value.threads / 32;
  const int me = static_cast<int>(threadIdx.x);
  for (int j = me / 32; j < block.count; j += warps)
    for (int i = me % 32; i <= j; i += 32) to[factor_place(j, i)] = l(j, i);
  for (int i = me; i < block.count; i += Tuned::value.threads) groups[i] = block.group(i);
  device::barrier();
}

template <class Tuned>
__device__ solved_row load_row(matrix<const float> w, matrix<const float> z, const column_block& block, index_t row,
                               const float* l) {
  solved_row mine{l, {}, {}};
#pragma unroll
  for (int part = 0; part < gptq_parts; ++part) {
    const int i = part * 32 + device::lane();
    if (i >= block.count) continue;
    mine.w[part] = w(row, block.place(i));
    if (z.data != nullptr) mine.z[part] = z(row, i);
  }
  return mine;
}

/// Parameters of a group of the block from the least and the greatest of what is left of it, known to all lanes.
template <class Scheme>
__device__ params fit_left(const solved_row& mine, int begin, int end, Scheme scheme) {
  float y[gptq_parts] = {};
  mine.give_way(begin, end, y);
  range seen = range::none();
#pragma unroll
  for (int part = 0; part < gptq_parts; ++part) {
    const int i = part * 32 + device::lane();
    if (i >= begin && i < end) seen.add(device::add(mine.w[part], y[part]));
  }
  const range ends = warp_range(seen, 32).or_zero();
  return fit(ends.low, ends.high, scheme);
}

/// What lanes do when column i is given its code: the lane that has it tells the others its error.
template <class Scheme>
struct code_step {
  solved_row& mine;
  Scheme scheme;
  const params (&of)[gptq_parts];
  uint8_t (&code)[gptq_parts];
  float (&apart)[gptq_parts];
  double& missed;

  template <class Part>
  __device__ void operator()(Part at, int i) const {
    constexpr int part = Part::value;
    if (device::lane() == i % 32) {
      const float pivot = mine.l[factor_place(i, i)];
      const float target = device::add(mine.w[part], device::divide(mine.z[part], pivot));
      code[part] = nibble::quantize(target, of[part], scheme);
      const float value = dequantize(code[part], of[part], scheme);
      const auto miss = static_cast<double>(device::multiply(device::subtract(target, value), pivot));
      missed = device::fused(miss, miss, missed);
      apart[part] = device::subtract(mine.w[part], value);
    }
    mine.spread(at, i, device::shuffle(apart[part], i % 32), mine.z);
  }
};

/// Codes of a block's columns, and their errors w − ŵ, a warp a row. With Fit, parameters are found as groups begin, by min-max; whole
/// groups then. w (rows, k), z (rows, count) or null for 0, l (count, count), p (rows, groups), q (rows, k), error (rows, count);
/// loss (rows) += Σ (L_ii·(t_i − ŵ_i))².
template <class Tuned, bool Fit, class Scheme>
__global__ void __launch_bounds__(Tuned::value.threads)
    codes_kernel(matrix<const float> w, matrix<const float> z, matrix<const float> l, column_block block, Scheme scheme,
                 matrix<params> p, matrix<uint8_t> q, matrix<float> error, double* loss) {
  NIBBLE_SHARED(float, factor, triangle);
  NIBBLE_SHARED(index_t, groups, factor_block);
  stage_block<Tuned>(l, block, factor, groups);
  const index_t row = index_t{blockIdx.x} * (Tuned::value.threads / 32) + threadIdx.x / 32;
  if (row >= w.rows) return;
  const int lane = device::lane();
  solved_row mine = load_row<Tuned>(w, z, block, row, factor);
  params of[gptq_parts];
  uint8_t code[gptq_parts] = {};
  float apart[gptq_parts] = {};
  double missed = 0;
#pragma unroll
  for (int part = 0; part < gptq_parts; ++part) {
    of[part] = {1.0f, 0};
    if (!Fit && part * 32 + lane < block.count) of[part] = p(row, groups[part * 32 + lane]);
  }
  for (int begin = 0, end = block.count; begin < block.count; begin = end) {
    if constexpr (Fit) {
      end = begin + 1;
      while (end < block.count && groups[end] == groups[begin]) ++end;
      const params fitted = fit_left(mine, begin, end, scheme);
      if (lane == 0) p(row, groups[begin]) = fitted;
#pragma unroll
      for (params& one : of) one = fitted;
    }
    mine.steps(begin, end, code_step<Scheme>{mine, scheme, of, code, apart, missed});
  }
#pragma unroll
  for (int part = 0; part < gptq_parts; ++part) {
    const int i = part * 32 + lane;
    if (i >= block.count) continue;
    q(row, block.place(i)) = code[part];
    error(row, i) = apart[part];
  }
  for (int flip = 16; flip > 0; flip /= 2) missed = device::add(missed, device::shuffle_xor(missed, flip));
  if (lane == 0) loss[row] = device::add(loss[row], missed);
}

/// What is left of a block's columns, a part of a group, when all before it are chosen and all after them may give way: left (rows,
/// count) ← w + y, and error (rows, count) ← −y, which is what the group's other parts are to see of it.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    give_way_kernel(matrix<const float> w, matrix<const float> z, matrix<const float> l, column_block block,
                    matrix<float> left, matrix<float> error) {
  NIBBLE_SHARED(float, factor, triangle);
  NIBBLE_SHARED(index_t, groups, factor_block);
  stage_block<Tuned>(l, block, factor, groups);
  const index_t row = index_t{blockIdx.x} * (Tuned::value.threads / 32) + threadIdx.x / 32;
  if (row >= w.rows) return;
  const solved_row mine = load_row<Tuned>(w, z, block, row, factor);
  float y[gptq_parts] = {};
  mine.give_way(0, block.count, y);
#pragma unroll
  for (int part = 0; part < gptq_parts; ++part) {
    const int i = part * 32 + device::lane();
    if (i >= block.count) continue;
    left(row, i) = device::add(mine.w[part], y[part]);
    error(row, i) = -y[part];
  }
}

/// importance (c) ← the diagonal of Lᵀ·L of a group's corner l (c, c), summed in double; lower (c, c), unless its data is null, ← L
/// with 0 above the diagonal, and ones (c) ← 1. A thread a column.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    group_cost_kernel(matrix<const float> l, float* importance, matrix<float> lower, float* ones) {
  const index_t col = index_t{blockIdx.x} * Tuned::value.threads + threadIdx.x;
  if (col >= l.cols) return;
  double sum = 0;
  for (index_t row = 0; row < l.rows; ++row) {
    const float value = row < col ? 0.0f : l(row, col);
    if (lower.data != nullptr) lower(row, col) = value;
    sum = device::fused(static_cast<double>(value), static_cast<double>(value), sum);
  }
  importance[col] = static_cast<float>(sum);
  if (lower.data != nullptr) ones[col] = 1.0f;
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
