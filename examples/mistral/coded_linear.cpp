// SPDX-License-Identifier: Apache-2.0
#include "coded_linear.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.hpp"
#include "nibble/host/parallel.hpp"
#include "rounding.hpp"

namespace nibble::mistral {
namespace {

/// Scales of a linear (n, k), as they are stored.
std::vector<index_t> scale_shape(index_t n, index_t k, const packing& how) {
  if (how.rows < 0) return {1};
  return {ceil_div(n, how.rows), per_group(how.group).across(k)};
}

/// Codes are kept 128 more than what they mean, I8 has what they mean: a flipped sign bit.
uint8_t flipped(uint8_t code) {
  return static_cast<uint8_t>(code ^ 0x80u);
}

const char* stored_type(const packing& how) {
  return how.type == code_type::integer ? "I8" : "F8_E4M3";
}

bool is_nan_code(uint8_t code) {
  return (code & 0x7fu) == 0x7fu;
}

/// A scale or scales. @throws error for one that is no positive number.
std::vector<float> read_scales(const tensor& t) {
  if (t.dtype != "F32" && t.dtype != "F16" && t.dtype != "BF16")
    throw error(t.file.string() + ": the tensor \"" + t.name + "\" has dtype " + t.dtype +
                " where F32, F16 or BF16 is needed");
  std::vector<float> scales(static_cast<size_t>(t.size()));
  read_floats(t, 0, t.size(), scales.data());
  for (const float scale : scales)
    if (!std::isfinite(scale) || !(scale > 0.0f))
      throw error(t.file.string() + ": the tensor \"" + t.name + "\" holds a scale that is not a positive number");
  return scales;
}

/// One scale for a whole tensor, stored as a list of one, or as a number.
const tensor& single(const checkpoint& from, const std::string& name) {
  const tensor& t = from.at(name);
  if (t.size() != 1)
    throw error(t.file.string() + ": the tensor \"" + name + "\" holds " + std::to_string(t.size()) +
                " numbers where one is needed");
  return t;
}

class coded_weights : public linear_weights {
 public:
  coded_weights(const checkpoint& from, const packing& how, const std::string& name, index_t n, index_t k)
      : from_(from), how_(how), weight_(from.at(name + ".weight", {n, k})) {
    if (weight_.dtype != stored_type(how))
      throw error(weight_.file.string() + ": the tensor \"" + weight_.name + "\" has dtype " + weight_.dtype +
                  " where " + stored_type(how) + " is needed");
    const std::string scales = name + ".weight_scale";
    const tensor& scale = how.rows < 0 ? single(from, scales) : from.at(scales, scale_shape(n, k, how));
    scale_type_ = parse_dtype(scale.dtype);
    for (const float each : read_scales(scale)) params_.push_back({each, how.type == code_type::integer ? 128 : 0});
    from.release(scale);
    rounded_ = {how.inputs, how.type, 0};
    if (how.inputs == input_rounding::tensor) rounded_.scale = read_single_scale(from, name + ".input_scale");
    if (from.contains(name + ".weight_zero_point"))
      throw error(from.directory().string() + ": the linear \"" + name +
                  "\" has zero points, which codes of symmetric weights have not");
    const auto* const codes = reinterpret_cast<const uint8_t*>(weight_.data);
    if (how.type == code_type::e4m3 && std::any_of(codes, codes + weight_.bytes, is_nan_code))
      throw error(weight_.file.string() + ": the tensor \"" + weight_.name + "\" holds NaN");
  }

  index_t outputs() const override { return weight_.shape[0]; }
  index_t inputs() const override { return weight_.shape[1]; }
  rounded_inputs rounded() const override { return rounded_; }
  void release() const override { from_.release(weight_); }
  bool packed() const override { return true; }

  integer_codes codes() const override {
    if (how_.type != code_type::integer) return {};
    const index_t rows = how_.rows < 0 ? outputs() : how_.rows, width = how_.group < 0 ? inputs() : how_.group;
    return {how_.bits, rows, width, {params_.data(), ceil_div(outputs(), rows), ceil_div(inputs(), width)}};
  }

  void read_codes(index_t first, index_t count, uint8_t* out) const override {
    const auto* const stored = reinterpret_cast<const uint8_t*>(weight_.data) + first * inputs();
    std::transform(stored, stored + count * inputs(), out, flipped);
  }

  /// Rows begin where a block of scales may be in its middle.
  void rows(index_t first, index_t count, float* out) const override {
    const index_t height = max(how_.rows, index_t(1)), begin = first / height * height;
    const quantized_linear q = piece(begin, first + count - begin);
    std::vector<float> values(static_cast<size_t>(q.n * q.k));
    unround(q, how_, scale_type_, {values.data(), q.n, q.k});
    std::copy(values.begin() + static_cast<std::ptrdiff_t>((first - begin) * q.k), values.end(), out);
  }

  resident_linear resident() const override {
    quantized_linear q = piece(0, outputs());
    q.input_scale = rounded_.scale;
    return resident_of(q, how_, scale_type_);
  }

 private:
  /// Rows [first, first + count), `first` the first of those that share a scale.
  quantized_linear piece(index_t first, index_t count) const {
    quantized_linear q = quantized_linear::blank(count, inputs(), how_.group, how_.rows);
    std::memcpy(q.codes.data(), weight_.data + first * inputs(), q.codes.size());
    if (how_.type == code_type::integer) std::transform(q.codes.begin(), q.codes.end(), q.codes.begin(), flipped);
    const index_t before = how_.rows < 0 ? 0 : first / how_.rows * q.groups;
    std::copy_n(params_.begin() + static_cast<std::ptrdiff_t>(before), q.parameters.size(), q.parameters.begin());
    return q;
  }

  const checkpoint& from_;
  packing how_;
  const tensor& weight_;
  dtype scale_type_ = dtype::f32;
  std::vector<params> params_;  ///< (row groups, groups)
  rounded_inputs rounded_;
};

template <class T>
void add_scales(safetensors_writer& out, const std::string& name, const char* type, const std::vector<index_t>& shape,
                const std::vector<float>& scales) {
  std::vector<T> stored;
  for (const float scale : scales) stored.push_back(T(scale));
  out.add(name, type, shape, stored.data(), static_cast<std::uint64_t>(stored.size() * sizeof(T)));
}

void add_scales(safetensors_writer& out, const std::string& name, dtype type, const std::vector<index_t>& shape,
                const std::vector<float>& scales) {
  switch (type) {
    case dtype::f32:
      return add_scales<float>(out, name, "F32", shape, scales);
    case dtype::f16:
      return add_scales<fp16>(out, name, "F16", shape, scales);
    case dtype::bf16:
      return add_scales<bf16>(out, name, "BF16", shape, scales);
  }
}

}  // namespace

layout::verdict can_code(index_t n, index_t k, const packing& how) {
  if (how.rows > 1 && (n % how.rows != 0 || k % how.group != 0))
    return {"vLLM needs blocks that divide the outputs and the inputs"};
  if (how.inputs == input_rounding::token_block && k % coded_block != 0)
    return {"inputs are rounded 128 at a time, and these are no multiple of that"};
  return {};
}

void write_coded(safetensors_writer& out, const std::string& name, const quantized_linear& q, const packing& how,
                 dtype scales) {
  std::vector<uint8_t> codes = q.codes;
  if (how.type == code_type::integer) std::transform(codes.begin(), codes.end(), codes.begin(), flipped);
  out.add(name + ".weight", stored_type(how), {q.n, q.k}, codes.data(), static_cast<std::uint64_t>(codes.size()));
  std::vector<float> values;
  for (const params& p : q.parameters) values.push_back(p.scale);
  add_scales(out, name + ".weight_scale", scales, scale_shape(q.n, q.k, how), values);
  if (how.inputs == input_rounding::tensor) add_scales(out, name + ".input_scale", scales, {1}, {q.input_scale});
}

std::uint64_t coded_bytes(index_t n, index_t k, const packing& how, dtype scales) {
  index_t count = how.inputs == input_rounding::tensor ? 1 : 0, weight_scales = 1;
  for (const index_t extent : scale_shape(n, k, how)) weight_scales *= extent;
  return static_cast<std::uint64_t>(n * k + (count + weight_scales) * size_of(scales));
}

std::unique_ptr<linear_weights> open_coded(const checkpoint& from, const packing& how, const std::string& name,
                                           index_t n, index_t k) {
  return std::make_unique<coded_weights>(from, how, name, n, k);
}

float read_single_scale(const checkpoint& from, const std::string& name) {
  return read_scales(single(from, name)).front();
}

resident_linear resident_of(const quantized_linear& q, const packing& how, dtype stored) {
  resident_linear w;
  if (how.type == code_type::integer && how.rows == 1) {
    w = pack_resident(q.code_matrix(), q.param_matrix(), how.bits, how.group, how.symmetric, stored);
  } else {
    w.n = q.n, w.k = q.k, w.type = dtype::f32;
    w.weights = resident_bytes(4 * q.n * q.k);
    unround(q, how, stored, {reinterpret_cast<float*>(w.weights.data()), q.n, q.k});
  }
  w.inputs = {how.inputs, how.type, q.input_scale};
  return w;
}

}  // namespace nibble::mistral
