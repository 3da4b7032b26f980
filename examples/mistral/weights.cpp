// SPDX-License-Identifier: Apache-2.0
/// @file
/// Dense weights come back as stored, packed ones as the fp32 product (code − zero) · scale: what transformers computes
/// when a model is loaded in fp32; loaded in bf16 or fp16 it rounds the product to that once more.
#include "weights.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "coded_linear.hpp"
#include "error.hpp"
#include "gguf_blocks.hpp"
#include "gguf_model.hpp"
#include "nibble/host/pack.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"
#include "quantization.hpp"

namespace nibble::mistral {
namespace {

/// Bytes a thread copies at a time, and rows it packs.
constexpr index_t copied_at_once = index_t(1) << 22, rows_at_once = 64;

dtype dtype_of_floating(const tensor& t) {
  return t.dtype == "F32" ? dtype::f32 : t.dtype == "F16" ? dtype::f16 : dtype::bf16;
}

resident_bytes copied(const std::byte* data, index_t bytes) {
  resident_bytes copy(bytes);
  host::parallel_for(ceil_div(bytes, copied_at_once), [&](index_t piece) {
    const index_t first = piece * copied_at_once;
    std::memcpy(copy.data() + first, data + first, static_cast<size_t>(min(copied_at_once, bytes - first)));
  });
  return copy;
}

const tensor& floating(const tensor& t) {
  if (!is_floating(t))
    throw error(t.file.string() + ": the tensor \"" + t.name + "\" has dtype " + t.dtype +
                " where F32, F16 or BF16 is needed");
  return t;
}

const tensor& of_dtype(const tensor& t, const char* type) {
  if (t.dtype != type && t.dtype != std::string(type).replace(0, 1, "U"))
    throw error(t.file.string() + ": the tensor \"" + t.name + "\" has dtype " + t.dtype + " where " + type +
                " is needed");
  return t;
}

const tensor& words_of(const checkpoint& from, const std::string& name, layout::extents extents,
                       const char* type = "I32") {
  return of_dtype(from.at(name, {extents.rows, extents.cols}), type);
}

/// The group of each input, of `groups`; empty where they are as without it. −1 is what compressed-tensors has there when
/// it never chose any.
std::vector<int32_t> read_group_of(const tensor& t, index_t groups, index_t width) {
  of_dtype(t, "I32");
  std::vector<int32_t> group_of(static_cast<size_t>(t.size()));
  std::memcpy(group_of.data(), t.data, group_of.size() * sizeof(int32_t));
  bool plain = true, unset = true;
  for (size_t j = 0; j < group_of.size(); ++j) {
    plain = plain && group_of[j] == static_cast<index_t>(j) / width;
    unset = unset && group_of[j] == -1;
  }
  if (plain || unset) return {};
  for (size_t j = 0; j < group_of.size(); ++j)
    if (group_of[j] < 0 || group_of[j] >= groups)
      throw error(t.file.string() + ": the tensor \"" + t.name + "\" puts input " + std::to_string(j) + " into group " +
                  std::to_string(group_of[j]) + ", but there are " + std::to_string(groups) + " groups");
  return group_of;
}

/// Inputs by group, those of one group as they lie; empty where groups are not all of `width` inputs.
std::vector<int32_t> inputs_by_group(const std::vector<int32_t>& group_of, index_t groups, index_t width) {
  std::vector<int32_t> order(group_of.size());
  std::vector<index_t> next(static_cast<size_t>(groups));
  for (index_t g = 0; g < groups; ++g) next[static_cast<size_t>(g)] = g * width;
  for (size_t j = 0; j < group_of.size(); ++j) {
    const auto g = static_cast<index_t>(group_of[j]);
    index_t& at = next[static_cast<size_t>(g)];
    if (at == min((g + 1) * width, static_cast<index_t>(group_of.size()))) return {};
    order[static_cast<size_t>(at++)] = static_cast<int32_t>(j);
  }
  return order;
}

/// Rows [first, first + rows), columns [col, col + cols) of a tensor of words, copied: a map may be unaligned.
template <class Word = uint32_t>
std::vector<Word> words_at(const tensor& t, index_t first, index_t rows, index_t col, index_t cols) {
  constexpr index_t size = sizeof(Word);
  std::vector<Word> words(static_cast<size_t>(rows * cols));
  for (index_t row = 0; row < rows; ++row)
    std::memcpy(words.data() + row * cols, t.data + size * ((first + row) * t.shape[1] + col),
                static_cast<size_t>(size * cols));
  return words;
}

/// How a layout's words lie: outputs that share some, and whether an output's are a piece of each row.
template <class Layout>
struct arrangement {
  static constexpr index_t outputs = 1;
  static constexpr bool across = false;
};
template <>
struct arrangement<layout::awq_gemm> {
  static constexpr index_t outputs = 8;
  static constexpr bool across = true;
};
template <>
struct arrangement<layout::awq_gemv_fast> {
  static constexpr index_t outputs = 4;
  static constexpr bool across = false;
};
template <>
struct arrangement<layout::marlin> {
  static constexpr index_t outputs = 64;
  static constexpr bool across = true;
};
template <>
struct arrangement<layout::gptq> {
  static constexpr index_t outputs = 1;
  static constexpr bool across = true;
};

/// A string of codes along each row, as resident_linear has them.
template <class Layout>
constexpr bool is_string =
    std::is_same_v<Layout, layout::compressed_tensors> || std::is_same_v<Layout, layout::awq_gemv>;

/// Weights multiplied as fp32.
resident_linear dense_rows(const linear_weights& from) {
  resident_linear w;
  w.n = from.outputs(), w.k = from.inputs(), w.type = dtype::f32;
  w.weights = resident_bytes(4 * w.n * w.k);
  host::parallel_for(ceil_div(w.n, rows_at_once), [&](index_t tile) {
    const index_t first = tile * rows_at_once;
    from.rows(first, min(rows_at_once, w.n - first), reinterpret_cast<float*>(w.weights.data()) + first * w.k);
  });
  return w;
}

class dense_weights : public linear_weights {
 public:
  dense_weights(const checkpoint& from, const tensor& weight) : from_(from), weight_(floating(weight)) {}

  index_t outputs() const override { return weight_.shape[0]; }
  index_t inputs() const override { return weight_.shape[1]; }
  void rows(index_t first, index_t count, float* out) const override {
    read_floats(weight_, first * inputs(), count * inputs(), out);
  }
  resident_linear resident() const override {
    resident_linear w;
    w.n = outputs(), w.k = inputs();
    w.type = dtype_of_floating(weight_);
    w.weights = copied(weight_.data, weight_.bytes);
    return w;
  }
  void release() const override { from_.release(weight_); }

 private:
  const checkpoint& from_;
  const tensor& weight_;
};

/// A GGUF file's linear in blocks, or with its rows in pairs.
class block_weights : public linear_weights {
 public:
  block_weights(const checkpoint& from, const tensor& weight) : from_(from), weight_(weight) {}

  index_t outputs() const override { return weight_.shape[0]; }
  index_t inputs() const override { return weight_.shape[1]; }
  void rows(index_t first, index_t count, float* out) const override {
    read_floats(weight_, first * inputs(), count * inputs(), out);
  }
  resident_linear resident() const override {
    resident_linear w;
    w.n = outputs(), w.k = inputs();
    const gguf_type type = find_gguf_type(weight_.dtype)->type;
    if (is_block_type(weight_.dtype)) {
      w.blocks = {weight_.data, type, weight_.bytes, weight_.paired_heads};
      return w;
    }
    w.type = dtype_of_floating(weight_);
    w.weights = resident_bytes(weight_.bytes);
    const index_t row_bytes = weight_.bytes / w.n;
    host::parallel_for(ceil_div(w.n, rows_at_once), [&](index_t tile) {
      for (index_t row = tile * rows_at_once; row < min(w.n, (tile + 1) * rows_at_once); ++row)
        std::memcpy(w.weights.data() + row * row_bytes,
                    weight_.data + paired_row(row, weight_.paired_heads) * row_bytes, static_cast<size_t>(row_bytes));
    });
    return w;
  }
  void release() const override { from_.release(weight_); }

 private:
  const checkpoint& from_;
  const tensor& weight_;
};

/// Where a packed linear's tensors are: `Layout` packs its weights, zeros() its zero points, scales() its scales.
template <class Layout>
class packed_weights : public linear_weights {
 public:
  /// @param zeros null for a symmetric packing whose zero points are not stored.
  /// @param group_of (k), or empty where neighbours make up groups.
  packed_weights(const checkpoint& from, Layout layout, index_t n, index_t k, index_t group, const tensor& weight,
                 const tensor& scales, const tensor* zeros, std::vector<int32_t> group_of)
      : from_(from),
        layout_(layout),
        n_(n),
        k_(k),
        width_(group < 0 ? k : group),
        weight_(weight),
        scale_type_(dtype_of_floating(scales)),
        group_of_(std::move(group_of)) {
    read_scales(scales);
    read_zeros(zeros);
    const int32_t middle = 1 << (layout_.bits - 1);
    symmetric_ = std::all_of(params_.begin(), params_.end(), [&](const params& p) { return p.zero == middle; });
    from.release(scales);
    if (zeros) from.release(*zeros);
  }

  index_t outputs() const override { return n_; }
  index_t inputs() const override { return k_; }
  void release() const override { from_.release(weight_); }
  bool packed() const override { return true; }

  integer_codes codes() const override {
    return {
        layout_.bits, 1, width_, {params_.data(), n_, ceil_div(k_, width_)}, group_of_.empty() ? nullptr : &group_of_};
  }

  void read_codes(index_t first, index_t count, uint8_t* out) const override {
    const index_t unit = arrangement<Layout>::outputs;
    const index_t begin = first / unit * unit, end = round_up(first + count, unit);
    if (begin == first && end == first + count) return unpack(begin, end, {out, count, k_});
    std::vector<uint8_t> buffer(static_cast<size_t>((end - begin) * k_));
    unpack(begin, end, {buffer.data(), end - begin, k_});
    std::copy_n(buffer.data() + (first - begin) * k_, count * k_, out);
  }

  resident_linear resident() const override {
    resident_linear w;
    w.n = n_, w.k = k_;
    if (!group_of_.empty()) {
      w.order = inputs_by_group(group_of_, ceil_div(k_, width_), width_);
      if (w.order.empty()) return dense_rows(*this);  // groups differ in size
    }
    w.bits = layout_.bits, w.group = width_ < k_ ? width_ : -1;
    w.type = scale_type_, w.symmetric = symmetric_;
    w.weights = is_string<Layout> && w.order.empty() ? copied(weight_.data, weight_.bytes) : strings(w.order);
    w.set_params({params_.data(), n_, ceil_div(k_, width_)});
    return w;
  }

  void rows(index_t first, index_t count, float* out) const override {
    constexpr any_scheme exact{8, false, convention::compressed_tensors, dtype::f32, dtype::f32};
    std::vector<uint8_t> buffer(static_cast<size_t>(count * k_));
    read_codes(first, count, buffer.data());
    const matrix<const uint8_t> codes(buffer.data(), count, k_);
    const index_t groups = ceil_div(k_, width_);
    if (!group_of_.empty()) {
      for (index_t i = 0; i < count; ++i)
        for (index_t j = 0; j < k_; ++j)
          out[i * k_ + j] =
              dequantize(codes(i, j),
                         params_[static_cast<size_t>((first + i) * groups + group_of_[static_cast<size_t>(j)])], exact);
      return;
    }
    for (index_t i = 0; i < count; ++i)
      for (index_t g = 0; g < groups; ++g) {
        const params p = params_[static_cast<size_t>((first + i) * groups + g)];
        const uint8_t* code = codes.row(i);
        float* row = out + i * k_;
        for (index_t j = g * width_; j < min(k_, (g + 1) * width_); ++j) row[j] = dequantize(code[j], p, exact);
      }
  }

 private:
  /// The codes as a string of bits along each row, of inputs in this order, or as they lie where it is empty.
  resident_bytes strings(const std::vector<int32_t>& order) const {
    const layout::compressed_tensors along{layout_.bits};
    const index_t words = along.packed(n_, k_).cols;
    resident_bytes packed(4 * n_ * words);
    host::parallel_for(ceil_div(n_, rows_at_once), [&](index_t tile) {
      const index_t first = tile * rows_at_once, count = min(rows_at_once, n_ - first);
      std::vector<uint8_t> buffer(static_cast<size_t>(count * k_));
      const matrix<uint8_t> codes(buffer.data(), count, k_);
      unpack(first, first + count, codes);
      std::vector<uint8_t> row;
      for (index_t i = 0; i < count && !order.empty(); ++i) {
        row.assign(codes.row(i), codes.row(i) + k_);
        for (index_t j = 0; j < k_; ++j) codes(i, j) = row[static_cast<size_t>(order[static_cast<size_t>(j)])];
      }
      host::pack(along, codes, {reinterpret_cast<uint32_t*>(packed.data()) + first * words, count, words});
    });
    return packed;
  }

  void unpack(index_t begin, index_t end, matrix<uint8_t> codes) const {
    using word = typename Layout::word;
    constexpr bool across = arrangement<Layout>::across;
    const layout::extents extents = layout_.packed(end - begin, k_), before = layout_.packed(begin, k_);
    const auto words =
        words_at<word>(weight_, across ? 0 : before.rows, extents.rows, across ? before.cols : 0, extents.cols);
    host::unpack(layout_, matrix<const word>(words.data(), extents.rows, extents.cols), codes);
  }

  void read_scales(const tensor& t) {
    const index_t groups = ceil_div(k_, width_);
    std::vector<float> stored(static_cast<size_t>(t.size())), scales(static_cast<size_t>(n_ * groups));
    read_floats(t, 0, t.size(), stored.data());
    host::unpack_scales(layout_.scales(), matrix<const float>(stored.data(), t.shape[0], t.shape[1]),
                        matrix<float>(scales.data(), n_, groups));
    for (const float scale : scales) {
      if (!std::isfinite(scale))
        throw error(t.file.string() + ": the tensor \"" + t.name + "\" holds a scale that is NaN or infinite");
      params_.push_back({scale, 0});
    }
  }

  void read_zeros(const tensor* t) {
    const int32_t middle = 1 << (layout_.bits - 1);
    if (!t)
      for (params& p : params_) p.zero = middle;
    if (!t) return;
    if constexpr (std::is_same_v<Layout, layout::awq_gemv_fast>)
      read_zero_values(*t);
    else if constexpr (!std::is_same_v<Layout, layout::marlin>)
      read_zero_words(*t);
  }

  /// Zero points as GEMV-fast has them, −scale·zero.
  void read_zero_values(const tensor& t) {
    std::vector<float> stored(static_cast<size_t>(t.size())), values(params_.size());
    read_floats(t, 0, t.size(), stored.data());
    host::unpack_scales(layout_.zeros(), matrix<const float>(stored.data(), t.shape[0], t.shape[1]),
                        matrix<float>(values.data(), n_, ceil_div(k_, width_)));
    for (size_t i = 0; i < values.size(); ++i) {
      const float zero = -values[i] / params_[i].scale, whole = round_even(zero);
      // fp16 rounds −scale·zero by a relative 2⁻¹¹ at most, less than 0.01 of 15 steps, unless it is subnormal.
      if (!(whole >= 0.0f && whole <= 15.0f && std::abs(zero - whole) < 0.45f))
        throw error(t.file.string() + ": the tensor \"" + t.name + "\" holds " + std::to_string(values[i]) +
                    ", which is not the scale times a zero point from 0 to 15");
      params_[i].zero = static_cast<int32_t>(whole);
    }
  }

  void read_zero_words(const tensor& t) {
    const auto words = words_at(t, 0, t.shape[0], 0, t.shape[1]);
    std::vector<uint8_t> zeros(params_.size());
    host::unpack(layout_.zeros(), matrix<const uint32_t>(words.data(), t.shape[0], t.shape[1]),
                 matrix<uint8_t>(zeros.data(), n_, ceil_div(k_, width_)));
    for (size_t i = 0; i < zeros.size(); ++i) params_[i].zero = zeros[i];
  }

  const checkpoint& from_;
  Layout layout_;
  index_t n_, k_, width_;
  const tensor& weight_;
  dtype scale_type_;
  bool symmetric_ = false;
  std::vector<params> params_;     ///< (n, groups)
  std::vector<int32_t> group_of_;  ///< (k); empty: j / width_
};

/// @throws error unless weight_shape, two integers, says (n, k).
void check_weight_shape(const checkpoint& from, const std::string& name, index_t n, index_t k) {
  const tensor& t = from.at(name, {2});
  int64_t stored[2] = {};
  int32_t narrow[2] = {};
  if (t.dtype == "I64") std::memcpy(stored, t.data, sizeof(stored));
  if (t.dtype == "I32") {
    std::memcpy(narrow, t.data, sizeof(narrow));
    stored[0] = narrow[0], stored[1] = narrow[1];
  }
  if (stored[0] != n || stored[1] != k)
    throw error(t.file.string() + ": the tensor \"" + name + "\" says [" + std::to_string(stored[0]) + ", " +
                std::to_string(stored[1]) + "], but config.json asks for [" + std::to_string(n) + ", " +
                std::to_string(k) + "]");
}

template <class Layout>
std::unique_ptr<linear_weights> open_packed(const checkpoint& from, Layout layout, const packing& how,
                                            const std::string& name, index_t n, index_t k) {
  const bool compressed = how.format == packed_format::compressed_tensors;
  if (const auto verdict = Layout::can_pack(n, k, how.bits, how.group); !verdict)
    throw error(from.directory().string() + ": the linear \"" + name + "\" [" + std::to_string(n) + ", " +
                std::to_string(k) + "] cannot be packed as config.json says: " + verdict.reason);
  const index_t groups = layout::groups(k, how.group);
  const tensor& weight = words_of(from, name + (compressed ? ".weight_packed" : ".qweight"), layout.packed(n, k),
                                  sizeof(typename Layout::word) == 2 ? "I16" : "I32");
  const layout::extents scale_extents = layout.scales().packed(n, groups);
  const tensor& scales =
      floating(from.at(name + (compressed ? ".weight_scale" : ".scales"), {scale_extents.rows, scale_extents.cols}));
  const tensor* zeros = nullptr;
  if (!how.symmetric || is_gptq(how.format)) {
    const layout::extents shape = layout.zeros().packed(n, groups);
    const std::string zeros_name = name + (compressed ? ".weight_zero_point" : ".qzeros");
    zeros = how.format == packed_format::awq_gemv_fast ? &floating(from.at(zeros_name, {shape.rows, shape.cols}))
                                                       : &words_of(from, zeros_name, shape);
  }
  if (compressed) check_weight_shape(from, name + ".weight_shape", n, k);
  std::vector<int32_t> group_of;
  const std::string order = name + (compressed ? ".weight_g_idx" : ".g_idx");
  if (!is_autoawq(how.format) && (how.reordered || from.contains(order)))
    group_of = read_group_of(from.at(order, {k}), groups, how.group < 0 ? k : how.group);
  return std::make_unique<packed_weights<Layout>>(from, layout, n, k, how.group, weight, scales, zeros,
                                                  std::move(group_of));
}

}  // namespace

std::unique_ptr<linear_weights> open_linear(const checkpoint& from, const config& model, const std::string& name,
                                            index_t n, index_t k) {
  const auto q = quantization::read(model, (from.directory() / "config.json").string());
  const auto how = q ? q->of(name) : std::nullopt;
  if (from.contains(name + ".bias"))
    throw error(from.directory().string() + ": the linear \"" + name + "\" has a bias, which is not supported");
  if (!how) {
    const tensor& weight = from.at(name + ".weight", {n, k});
    if (weight.paired_heads > 0 || is_block_type(weight.dtype)) return std::make_unique<block_weights>(from, weight);
    return std::make_unique<dense_weights>(from, weight);
  }
  if (is_coded(*how)) return open_coded(from, *how, name, n, k);
  switch (how->format) {
    case packed_format::awq_gemm:
      return open_packed(from, layout::awq_gemm{}, *how, name, n, k);
    case packed_format::awq_gemv:
      return open_packed(from, layout::awq_gemv{how->group}, *how, name, n, k);
    case packed_format::awq_gemv_fast:
      return open_packed(from, layout::awq_gemv_fast{how->group}, *how, name, n, k);
    case packed_format::marlin:
      return open_packed(from, layout::marlin{how->bits}, *how, name, n, k);
    case packed_format::gptq:
      return open_packed(from, layout::gptq{how->bits, layout::gptq_version::v1}, *how, name, n, k);
    case packed_format::gptq_v2:
      return open_packed(from, layout::gptq{how->bits, layout::gptq_version::v2}, *how, name, n, k);
    case packed_format::compressed_tensors:
      break;
  }
  return open_packed(from, layout::compressed_tensors{how->bits}, *how, name, n, k);
}

std::vector<float> read_vector(const checkpoint& from, const std::string& name, index_t size) {
  const tensor& t = from.at(name, {size});
  std::vector<float> values(static_cast<size_t>(size));
  read_floats(t, 0, size, values.data());
  from.release(t);
  return values;
}

}  // namespace nibble::mistral
