// SPDX-License-Identifier: Apache-2.0
#include "packed_writer.hpp"

#include <algorithm>
#include <cstring>

#include "coded_linear.hpp"
#include "error.hpp"
#include "nibble/host/pack.hpp"

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
  out.add(name, "I32", {shape.rows, shape.cols}, words.data(), bytes_of(words));
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
  const std::uint64_t zeros = how.symmetric ? 0 : bytes(layout.zeros().packed(n, groups), 4);
  return bytes(layout.packed(n, k), 4) + bytes(layout.scales().packed(n, groups), size_of(scales)) + zeros;
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
  s.rule = how.format == packed_format::compressed_tensors ? convention::compressed_tensors : convention::autoawq;
  return s;
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
  }
  return 0;
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
