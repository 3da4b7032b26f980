// SPDX-License-Identifier: Apache-2.0
#include "gguf/carry.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "gguf/convert.hpp"
#include "mistral/gguf_blocks.hpp"
#include "nibble/block.hpp"
#include "nibble/half.hpp"

namespace nibble::mistral {
namespace {

constexpr index_t block_width = 32;  // of every block that codes are carried into
constexpr gguf_type by_size[] = {gguf_type::q4_0, gguf_type::q4_1, gguf_type::q5_0, gguf_type::q5_1,
                                 gguf_type::q8_0, gguf_type::bf16, gguf_type::f16};

bool fp16_holds(float x) {
  return std::isfinite(x) && fp16_value(fp16_bits(x)) == x;
}

/// What every type asks for.
layout::verdict can_share_blocks(const integer_codes& codes, index_t k) {
  if (codes.bits == 0) return {"its codes are no integers"};
  if (k % block_width != 0) return {"its rows are no whole blocks of 32"};
  for (index_t first = 0; first < k; first += block_width)
    for (index_t j = first + 1; j < first + block_width; ++j)
      if (codes.group(j) != codes.group(first))
        return {codes.group_of ? "its groups are of inputs in another order" : "its groups end inside blocks of 32"};
  const matrix<const params> p = codes.parameters;
  if (!std::all_of(p.data, p.data + p.size(), [](const params& one) { return fp16_holds(one.scale); }))
    return {"it has scales that fp16 does not hold"};
  return {};
}

template <class Block>
layout::verdict can_hold(const integer_codes& codes, Block) {
  const int32_t last = (1 << codes.bits) - 1;
  for (index_t i = 0; i < codes.parameters.size(); ++i) {
    const params p = codes.parameters.data[i];
    if constexpr (has_offset<Block>) {
      if (codes.bits > Block::bits) return {"its codes have more bits than the block's"};
      // A scale of 0, or below, would change the signs of zeros.
      if (!(p.scale > 0.0f) || !fp16_holds(static_cast<float>(p.zero) * p.scale))
        return {"fp16 does not hold all of its zero points times scales"};
    } else {
      constexpr int32_t half = 1 << (Block::bits - 1);
      if (-p.zero < -half || last - p.zero > half - 1) return {"its codes less their zero points have more bits"};
    }
  }
  return {};
}

/// Whether every weight that codes can make is one of T's.
template <class T>
layout::verdict floats_hold(const integer_codes& codes) {
  if (codes.bits == 0) return {"its codes are no integers"};
  for (index_t i = 0; i < codes.parameters.size(); ++i) {
    const params p = codes.parameters.data[i];
    for (int32_t code = 0; code < 1 << codes.bits; ++code) {
      const float weight = static_cast<float>(code - p.zero) * p.scale;
      if (!(static_cast<float>(T(weight)) == weight)) return {"its codes times scales have more digits"};
    }
  }
  return {};
}

/// f(tag) for the five types that codes are carried into; `otherwise` for others.
template <class F, class R>
R with_simple_block(gguf_type type, F&& f, R otherwise) {
  switch (type) {
    case gguf_type::q4_0:
      return f(q4_0{});
    case gguf_type::q4_1:
      return f(q4_1{});
    case gguf_type::q5_0:
      return f(q5_0{});
    case gguf_type::q5_1:
      return f(q5_1{});
    case gguf_type::q8_0:
      return f(q8_0{});
    default:
      return otherwise;
  }
}

/// A block of 32 codes.
template <class Block>
void put(const uint8_t* codes, params p, Block& b) {
  b.d = fp16(p.scale);
  int32_t up = 0;
  if constexpr (has_offset<Block>)
    b.m = fp16(-static_cast<float>(p.zero) * p.scale);
  else
    up = (Block::bits == 8 ? 0 : 1 << (Block::bits - 1)) - p.zero;
  if constexpr (Block::bits == 8) {
    for (index_t i = 0; i < block_width; ++i) b.qs[i] = static_cast<int8_t>(codes[i] + up);
  } else {
    uint32_t fifth = 0;
    uint8_t nibbles[block_width];
    for (index_t i = 0; i < block_width; ++i) {
      const auto code = static_cast<uint32_t>(codes[i] + up);
      nibbles[i] = static_cast<uint8_t>(code & 15u);
      fifth |= (code >> 4) << i;
    }
    for (index_t i = 0; i < block_width / 2; ++i)
      b.qs[i] = static_cast<uint8_t>(nibbles[i] | nibbles[i + block_width / 2] << 4);
    if constexpr (Block::bits == 5) std::memcpy(b.qh, &fifth, sizeof(fifth));
  }
}

}  // namespace

const mix& exact_mix() {
  static const mix exact = {"EXACT", 0, gguf_type::f32, gguf_type::f32, {}};
  return exact;
}

layout::verdict can_carry(const integer_codes& codes, index_t k, gguf_type type) {
  const auto simple = with_simple_block(
      type, [](auto) { return true; }, false);
  if (!simple) return {"its blocks are made of other numbers"};
  if (const auto shared = can_share_blocks(codes, k); !shared) return shared;
  return with_simple_block(
      type, [&](auto block) { return can_hold(codes, block); }, layout::verdict{});
}

layout::verdict can_keep(const integer_codes& codes, index_t k, gguf_type type) {
  if (type == gguf_type::f32) return {};
  if (type == gguf_type::f16) return floats_hold<fp16>(codes);
  if (type == gguf_type::bf16) return floats_hold<bf16>(codes);
  return can_carry(codes, k, type);
}

gguf_type smallest_exact(const integer_codes& codes, index_t k) {
  for (const gguf_type type : by_size)
    if (can_keep(codes, k, type)) return type;
  return gguf_type::f32;
}

void carry_rows(const linear_weights& from, gguf_type type, index_t first, index_t count, std::byte* out) {
  const index_t k = from.inputs();
  const integer_codes how = from.codes();
  std::vector<uint8_t> codes(static_cast<size_t>(count * k));
  from.read_codes(first, count, codes.data());
  with_simple_block(
      type,
      [&](auto block) {
        for (index_t row = 0; row < count; ++row)
          for (index_t j = 0; j < k; j += block_width) {
            put(codes.data() + row * k + j, how.parameters((first + row) / how.rows, how.group(j)), block);
            std::memcpy(out, &block, sizeof(block));
            out += sizeof(block);
          }
        return true;
      },
      false);
}

void carrier::count::add(const planned_tensor& t, std::string reason) {
  if (tensors++ > 0) return;
  first = t.info.name, type = t.info.type, why = std::move(reason);
}

void carrier::settle(planned_tensor& t, const linear_weights& linear) {
  if (!linear.packed()) return;
  const integer_codes codes = linear.codes();
  if (exact_) t.info.type = t.wanted = smallest_exact(codes, t.columns);
  t.carried = bool(can_carry(codes, t.columns, t.info.type));
  if (t.carried) return;
  if (exact_) return unheld_.add(t, can_carry(codes, t.columns, gguf_type::q8_0).reason);
  if (const auto kept = can_keep(codes, t.columns, t.info.type); !kept) {
    again_.add(t, kept.reason);
    if (is_block_type(info_of(smallest_exact(codes, t.columns)).name)) ++kept_by_exact_;
  }
}

void carrier::settle(planned_tensor& t, const tensor& stored) const {
  const gguf_type_info* const type = find_gguf_type(stored.dtype);
  if (exact_ && type) t.info.type = t.wanted = type->type;  // others are refused when they are read
}

void carrier::finish(gguf_plan& plan) const {
  const auto example = [](const count& of) {
    return std::string(of.tensors > 1 ? ", such as \"" : ", \"") + of.first + "\" to " + info_of(of.type).name + ": " +
           of.why;
  };
  const auto linears = [](size_t n) { return std::to_string(n) + (n == 1 ? " packed linear" : " packed linears"); };
  if (unheld_.tensors > 0)
    plan.notes.push_back("no block holds the codes of " + linears(unheld_.tensors) +
                         ", whose weights become floats, unrounded" + example(unheld_));
  if (again_.tensors > 0)
    plan.notes.push_back(
        linears(again_.tensors) + (again_.tensors == 1 ? " is" : " are") + " rounded a second time" + example(again_) +
        (kept_by_exact_ > 0 ? "; --type EXACT would carry the codes of " + std::to_string(kept_by_exact_) + " over"
                            : ""));
  if (!exact_) return;
  std::map<gguf_type, index_t> weights;
  for (const planned_tensor& t : plan.tensors)
    if (t.info.name.rfind("blk.", 0) == 0) weights[t.info.type] += t.rows * t.columns;
  const gguf_type most = std::max_element(weights.begin(), weights.end(), [](const auto& a, const auto& b) {
                           return a.second < b.second;
                         })->first;
  for (const mix& m : mixes())
    for (auto& [key, value] : plan.metadata)
      if (m.base == most && key == "general.file_type") value = m.number;
}

}  // namespace nibble::mistral
