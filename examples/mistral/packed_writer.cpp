// SPDX-License-Identifier: Apache-2.0
#include "packed_writer.hpp"

#include <algorithm>
#include <cstring>

#include "coded_linear.hpp"
#include "error.hpp"
#include "nibble/fit.hpp"
#include "nibble/host/pack.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/quantize.hpp"

namespace nibble::mistral {

namespace {

/// Elements converted at a time: bounds memory whatever the tensor.
constexpr index_t slice = index_t(1) << 22;

template <class T>
std::uint64_t bytes_of(const std::vector<T>& data) {
  return static_cast<std::uint64_t>(data.size()) * sizeof(T);
}

/// The layout's words of codes (n, cols), in the shape the layout packs them in.
template <class Layout>
void add_words(safetensors_writer& out, const std::string& name, Layout layout, matrix<const uint8_t> codes) {
  const layout::extents shape = layout.packed(codes.rows, codes.cols);
  std::vector<typename Layout::word> words(static_cast<size_t>(shape.rows * shape.cols));
  host::pack(layout, codes, {words.data(), shape.rows, shape.cols});
  out.add(name, sizeof(typename Layout::word) == 2 ? "I16" : "I32", {shape.rows, shape.cols}, words.data(),
          bytes_of(words));
}

template <class T, class Layout>
void add_scales_as(safetensors_writer& out, const std::string& name, const char* type, Layout scales_layout,
                   const quantized_linear& q) {
  const layout::extents shape = scales_layout.packed(q.n, q.groups);
  std::vector<T> scales, stored(static_cast<size_t>(shape.rows * shape.cols), T(0.0f));
  scales.reserve(q.parameters.size());
  for (const params& p : q.parameters) scales.push_back(T(p.scale));
  host::pack_scales(scales_layout, matrix<const T>(scales.data(), q.n, q.groups),
                    matrix<T>(stored.data(), shape.rows, shape.cols));
  out.add(name, type, {shape.rows, shape.cols}, stored.data(), bytes_of(stored));
}

template <class Layout>
void add_scales(safetensors_writer& out, const std::string& name, dtype type, Layout scales_layout,
                const quantized_linear& q) {
  switch (type) {
    case dtype::f32:
      return add_scales_as<float>(out, name, "F32", scales_layout, q);
    case dtype::f16:
      return add_scales_as<fp16>(out, name, "F16", scales_layout, q);
    case dtype::bf16:
      return add_scales_as<bf16>(out, name, "BF16", scales_layout, q);
  }
}

std::vector<uint8_t> zero_codes(const quantized_linear& q) {
  std::vector<uint8_t> zeros;
  zeros.reserve(q.parameters.size());
  for (const params& p : q.parameters) zeros.push_back(static_cast<uint8_t>(p.zero));
  return zeros;
}

template <class Layout>
void write_awq(safetensors_writer& out, const std::string& name, const quantized_linear& q, Layout layout) {
  const auto zeros = zero_codes(q);
  add_words(out, name + ".qweight", layout, q.code_matrix());
  add_words(out, name + ".qzeros", layout.zeros(), matrix<const uint8_t>(zeros.data(), q.n, q.groups));
  add_scales(out, name + ".scales", dtype::f16, layout.scales(), q);
}

/// Zero points of GEMV-fast are numbers, stored where its scales are.
void write_gemv_fast(safetensors_writer& out, const std::string& name, const quantized_linear& q, index_t group) {
  const layout::awq_gemv_fast layout{group};
  const layout::extents shape = layout.zeros().packed(q.n, q.groups);
  std::vector<fp16> zeros, stored(static_cast<size_t>(shape.rows * shape.cols), fp16(0.0f));
  zeros.reserve(q.parameters.size());
  for (const params& p : q.parameters) zeros.push_back(awq_gemv_fast_zero(fp16(p.scale), p.zero));
  host::pack_scales(layout.zeros(), matrix<const fp16>(zeros.data(), q.n, q.groups),
                    matrix<fp16>(stored.data(), shape.rows, shape.cols));
  add_words(out, name + ".qweight", layout, q.code_matrix());
  out.add(name + ".qzeros", "F16", {shape.rows, shape.cols}, stored.data(), bytes_of(stored));
  add_scales(out, name + ".scales", dtype::f16, layout.scales(), q);
}

void write_marlin(safetensors_writer& out, const std::string& name, const quantized_linear& q, int bits) {
  const layout::marlin layout{bits};
  add_words(out, name + ".qweight", layout, q.code_matrix());
  add_scales(out, name + ".scales", dtype::f16, layout.scales(), q);
}

layout::gptq gptq_layout(const packing& how) {
  return {how.bits, how.format == packed_format::gptq ? layout::gptq_version::v1 : layout::gptq_version::v2};
}

void write_gptq(safetensors_writer& out, const std::string& name, const quantized_linear& q, const packing& how) {
  std::vector<int32_t> group_of = q.group_of;
  if (group_of.empty()) {
    const index_t width = per_group(how.group).width(q.k);
    for (index_t j = 0; j < q.k; ++j) group_of.push_back(static_cast<int32_t>(j / width));
  }
  write_awq(out, name, q, gptq_layout(how));
  out.add(name + ".g_idx", "I32", {q.k}, group_of.data(), bytes_of(group_of));
}

void write_compressed(safetensors_writer& out, const std::string& name, const quantized_linear& q, const packing& how,
                      dtype scales) {
  const layout::compressed_tensors layout{how.bits};
  add_words(out, name + ".weight_packed", layout, q.code_matrix());
  add_scales(out, name + ".weight_scale", scales, layout.scales(), q);
  const std::int64_t shape[] = {q.n, q.k};
  out.add(name + ".weight_shape", "I64", {2}, shape, sizeof(shape));
  if (how.symmetric) return;
  const auto zeros = zero_codes(q);
  add_words(out, name + ".weight_zero_point", layout.zeros(), matrix<const uint8_t>(zeros.data(), q.n, q.groups));
}

template <class Layout>
std::uint64_t layout_bytes(index_t n, index_t k, const packing& how, Layout layout, dtype scales) {
  const index_t groups = per_group(how.group).across(k);
  const auto bytes = [](layout::extents shape, index_t element) {
    return static_cast<std::uint64_t>(shape.rows * shape.cols * element);
  };
  const bool halves = how.format == packed_format::awq_gemv_fast;  // fp16 zero points, 16-bit words
  const bool without_zeros = how.symmetric && !is_gptq(how.format);
  const std::uint64_t zeros = without_zeros ? 0 : bytes(layout.zeros().packed(n, groups), halves ? 2 : 4);
  return bytes(layout.packed(n, k), halves ? 2 : 4) + bytes(layout.scales().packed(n, groups), size_of(scales)) + zeros;
}

void check_finite(const std::string& name, const float* values, index_t count) {
  if (!std::all_of(values, values + count, [](float x) { return is_finite(x); }))
    throw unusable_model("the tensor " + name +
                         " holds NaN or infinity, and a model that does cannot be quantized; check the checkpoint");
}

/// values as `type`, appended to bytes. @throws error naming the tensor for a value that `type` cannot hold.
void append(const std::string& name, dtype type, const float* values, index_t count, std::vector<std::byte>& bytes) {
  check_finite(name, values, count);
  const auto at = bytes.size();
  bytes.resize(at + static_cast<size_t>(count * size_of(type)));
  for (index_t i = 0; i < count; ++i) {
    const float stored = round_to(type, values[i]);
    if (!is_finite(stored))
      throw unusable_model("the tensor " + name + " holds " + std::to_string(values[i]) +
                           ", which fp16 cannot; choose --format compressed-tensors, which keeps the model's dtype");
    const auto target = bytes.data() + at + static_cast<size_t>(i * size_of(type));
    if (type == dtype::f32) {
      std::memcpy(target, &stored, 4);
    } else {
      const uint16_t bits = type == dtype::f16 ? fp16_bits(stored) : bf16_bits(stored);
      std::memcpy(target, &bits, 2);
    }
  }
}

}  // namespace

dtype parse_dtype(const std::string& type) {
  if (type == "F32") return dtype::f32;
  if (type == "F16") return dtype::f16;
  if (type == "BF16") return dtype::bf16;
  throw error("weights of dtype " + type + " cannot be quantized: F32, F16 and BF16 can");
}

any_scheme scheme_of(const packing& how, dtype scales) {
  any_scheme s;
  s.bits = how.bits;
  s.symmetric = how.symmetric;
  s.scale_dtype = how.format == packed_format::compressed_tensors ? scales : dtype::f16;
  s.rule = how.format == packed_format::compressed_tensors ? convention::compressed_tensors
           : is_gptq(how.format)                           ? convention::gptq
                                                           : convention::autoawq;
  return s;
}

void dequantize(const quantized_linear& q, index_t group, any_scheme scheme, matrix<float> w) {
  if (q.group_of.empty()) return host::dequantize(q.code_matrix(), q.param_matrix(), w, per_group(group), scheme);
  host::parallel_for(q.n, [&](index_t row) {
    const params* const p = q.param_matrix().row(row);
    for (index_t j = 0; j < q.k; ++j)
      w(row, j) = nibble::dequantize(q.code_matrix()(row, j), p[q.group_of[static_cast<size_t>(j)]], scheme);
  });
}

namespace {

void raise_zero_point(any_scheme scheme, const float* w, const int32_t* group_of, int32_t group, index_t k, params& p,
                      uint8_t* codes) {
  const int32_t top = max_code(scheme);
  int32_t largest = 0;
  for (index_t j = 0; j < k; ++j)
    if (group_of[j] == group) largest = max(largest, int32_t(codes[j]));
  const params before = p;
  p.zero = 1;
  if (largest == top)
    p.scale = stored_scale(before.scale * static_cast<float>(top) / static_cast<float>(top - 1), scheme);
  for (index_t j = 0; j < k; ++j)
    if (group_of[j] == group) codes[j] = largest < top ? static_cast<uint8_t>(codes[j] + 1) : quantize(w[j], p, scheme);
}

}  // namespace

void avoid_zero_point_zero(const packing& how, any_scheme scheme, matrix<const float> w, quantized_linear& q) {
  if (how.format != packed_format::gptq || how.symmetric) return;
  std::vector<int32_t> group_of = q.group_of;
  const index_t width = per_group(how.group).width(q.k);
  for (index_t j = static_cast<index_t>(group_of.size()); j < q.k; ++j)
    group_of.push_back(static_cast<int32_t>(j / width));
  host::parallel_for(q.n, [&](index_t row) {
    for (index_t g = 0; g < q.groups; ++g)
      if (params& p = q.param_matrix()(row, g); p.zero == 0)
        raise_zero_point(scheme, w.row(row), group_of.data(), static_cast<int32_t>(g), q.k, p,
                         q.code_matrix().row(row));
  });
}

void check_packable(const std::string& name, index_t n, index_t k, const packing& how) {
  layout::verdict verdict;
  if (is_coded(how)) {
    if ((verdict = can_code(n, k, how))) return;
    throw usage_error(name + " (" + std::to_string(n) + " x " + std::to_string(k) + ") cannot be stored in " +
                      to_string(how) + ": " + verdict.reason + "; choose another --scheme, or name it in --ignore");
  }
  switch (how.format) {
    case packed_format::compressed_tensors:
      verdict = layout::compressed_tensors::can_pack(n, k, how.bits, how.group);
      if (verdict && how.group > 0 && k % how.group != 0) verdict = {"vLLM needs a group size that divides the inputs"};
      break;
    case packed_format::awq_gemm:
      verdict = layout::awq_gemm::can_pack(n, k, how.bits, how.group);
      break;
    case packed_format::awq_gemv:
      verdict = layout::awq_gemv::can_pack(n, k, how.bits, how.group);
      break;
    case packed_format::awq_gemv_fast:
      verdict = layout::awq_gemv_fast::can_pack(n, k, how.bits, how.group);
      break;
    case packed_format::marlin:
      verdict = layout::marlin::original_can_pack(n, k, how.bits, how.group);
      if (verdict && how.group != 128) verdict = {"AutoAWQ loads Marlin with groups of 128 only"};
      break;
    case packed_format::gptq:
    case packed_format::gptq_v2:
      verdict = layout::gptq::can_pack(n, k, how.bits, how.group);
      if (verdict && how.group > 0 && k % how.group != 0) verdict = {"vLLM needs a group size that divides the inputs"};
      break;
  }
  if (!verdict)
    throw usage_error(name + " (" + std::to_string(n) + " x " + std::to_string(k) +
                      ") cannot be packed with --group-size " + std::to_string(how.group) + ": " + verdict.reason +
                      "; choose another --group-size (-1: one group an output), or name it in --ignore");
}

void write_packed(safetensors_writer& out, const std::string& name, const quantized_linear& q, const packing& how,
                  dtype scales) {
  if (is_coded(how)) return write_coded(out, name, q, how, scales);
  switch (how.format) {
    case packed_format::compressed_tensors:
      return write_compressed(out, name, q, how, scales);
    case packed_format::awq_gemm:
      return write_awq(out, name, q, layout::awq_gemm{});
    case packed_format::awq_gemv:
      return write_awq(out, name, q, layout::awq_gemv{how.group});
    case packed_format::awq_gemv_fast:
      return write_gemv_fast(out, name, q, how.group);
    case packed_format::marlin:
      return write_marlin(out, name, q, how.bits);
    case packed_format::gptq:
    case packed_format::gptq_v2:
      return write_gptq(out, name, q, how);
  }
}

std::uint64_t packed_bytes(index_t n, index_t k, const packing& how, dtype scales) {
  constexpr std::uint64_t shape = 2 * sizeof(std::int64_t);
  if (is_coded(how)) return coded_bytes(n, k, how, scales);
  switch (how.format) {
    case packed_format::compressed_tensors:
      return layout_bytes(n, k, how, layout::compressed_tensors{how.bits}, scales) + shape;
    case packed_format::awq_gemm:
      return layout_bytes(n, k, how, layout::awq_gemm{}, dtype::f16);
    case packed_format::awq_gemv:
      return layout_bytes(n, k, how, layout::awq_gemv{how.group}, dtype::f16);
    case packed_format::awq_gemv_fast:
      return layout_bytes(n, k, how, layout::awq_gemv_fast{how.group}, dtype::f16);
    case packed_format::marlin:
      return layout_bytes(n, k, how, layout::marlin{how.bits}, dtype::f16);
    case packed_format::gptq:
    case packed_format::gptq_v2:
      return layout_bytes(n, k, how, gptq_layout(how), dtype::f16) + static_cast<std::uint64_t>(4 * k);
  }
  return 0;
}

void check_storable(const std::string& name, const tensor& t, const std::string& type) {
  constexpr index_t piece = slice / 64;
  host::parallel_for(ceil_div(t.size(), piece), [&](index_t i) {
    std::vector<float> values(static_cast<size_t>(min(piece, t.size() - i * piece)));
    std::vector<std::byte> bytes;
    read_floats(t, i * piece, static_cast<index_t>(values.size()), values.data());
    append(name, parse_dtype(type), values.data(), static_cast<index_t>(values.size()), bytes);
  });
}

void write_tensor(safetensors_writer& out, const std::string& name, const tensor& t, const std::string& type) {
  const dtype target = parse_dtype(type);
  const bool same = t.dtype == type;
  const index_t size = t.size();
  std::vector<std::byte> bytes;
  std::vector<float> values;
  if (!same) bytes.reserve(static_cast<size_t>(size * size_of(target)));
  for (index_t first = 0; first < size; first += slice) {
    values.resize(static_cast<size_t>(min(slice, size - first)));
    read_floats(t, first, static_cast<index_t>(values.size()), values.data());
    if (same)
      check_finite(name, values.data(), static_cast<index_t>(values.size()));
    else
      append(name, target, values.data(), static_cast<index_t>(values.size()), bytes);
  }
  if (same)
    out.add(name, type, t.shape, t.data, static_cast<std::uint64_t>(t.bytes));
  else
    out.add(name, type, t.shape, bytes.data(), bytes.size());
}

void write_floats(safetensors_writer& out, const std::string& name, const std::vector<float>& values,
                  const std::string& type) {
  std::vector<std::byte> bytes;
  append(name, parse_dtype(type), values.data(), static_cast<index_t>(values.size()), bytes);
  out.add(name, type, {static_cast<index_t>(values.size())}, bytes.data(), bytes.size());
}

}  // namespace nibble::mistral
