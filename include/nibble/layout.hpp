// SPDX-License-Identifier: Apache-2.0
/// @file
/// Vocabulary of packed codes: a layout is a small type that names a published way to store codes in words, says which
/// shapes it takes and what shape the stored tensor has. Where each code lies is pack.hpp's business.
///
/// A layout of weights takes codes (n, k); what its `zeros()` returns takes the zero points (n, groups); what its
/// `scales()` returns takes the scales (n, groups). Words are unsigned here; loaders read the same bytes as signed.
/// Sources: compressed-tensors 0.19 pack_quantized; AutoAWQ 0.2.9 WQLinear_GEMM, _GEMV, _GEMVFast; GPTQModel 7.7;
/// Frantar et al., Marlin (arXiv:2408.11743), and vLLM 0.32's tables for it; bitsandbytes quantize_4bit.
#pragma once

#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace layout {

/// Extents of a stored tensor.
struct extents {
  index_t rows;
  index_t cols;
};

/// Whether a layout takes what it was asked about, and if not, why: one sentence.
struct verdict {
  const char* reason = nullptr;
  NIBBLE_HOST_DEVICE constexpr explicit operator bool() const noexcept { return reason == nullptr; }
};

/// What every layout asks for: a matrix, and a group that is −1 (all of k) or positive.
NIBBLE_HOST_DEVICE constexpr verdict can_group(index_t n, index_t k, index_t group) noexcept {
  if (n < 1 || k < 1) return {"the weight matrix is empty"};
  if (group < 1 && group != -1) return {"the group size must be positive, or -1 for one group per output"};
  return {};
}

/// Groups along k; the last may be short.
NIBBLE_HOST_DEVICE constexpr index_t groups(index_t k, index_t group) noexcept {
  return group < 0 ? 1 : ceil_div(k, group);
}

/// Scales stored as they are: (n, groups).
struct plain_scales {
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t groups_) const noexcept { return {n, groups_}; }
};

/// Scales stored (groups, n): AWQ GEMM, GPTQ.
struct transposed_scales {
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t groups_) const noexcept { return {groups_, n}; }
};

/// Zero points of compressed-tensors: one string of bits down each column, low bits first, int32 [⌈n·b/32⌉, groups].
struct compressed_tensors_zeros {
  using word = uint32_t;
  static constexpr bool continues_below = true;
  int bits = 4;
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t groups_) const noexcept {
    return {ceil_div(n * bits, 32), groups_};
  }
};

/// Weights of compressed-tensors `pack-quantized`: one string of bits along each row, low bits first, codes crossing
/// word ends where 32 % b != 0, int32 [n, ⌈k·b/32⌉]; the last word is filled up with zero bits.
struct compressed_tensors {
  using word = uint32_t;
  static constexpr bool continues_below = false;
  int bits = 4;

  NIBBLE_HOST_DEVICE static constexpr verdict can_pack(index_t n, index_t k, int bits_, index_t group) noexcept {
    if (bits_ < 1 || bits_ > 8) return {"compressed-tensors packs 1 to 8 bits"};
    if (const verdict v = can_group(n, k, group); !v) return v;
    if (group > 0 && k > group && k % group != 0)
      return {"compressed-tensors needs a group size that divides the inputs, or exceeds them"};
    return {};
  }
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t k) const noexcept {
    return {n, ceil_div(k * bits, 32)};
  }
  NIBBLE_HOST_DEVICE constexpr compressed_tensors_zeros zeros() const noexcept { return {bits}; }
  NIBBLE_HOST_DEVICE constexpr plain_scales scales() const noexcept { return {}; }
};

/// AutoAWQ GEMM: int32 [k, n/8]; nibble i of a word is output 8c + (0,2,4,6,1,3,5,7)[i]. Zero points [groups, n/8]
/// lie the same way.
struct awq_gemm {
  using word = uint32_t;
  static constexpr bool continues_below = false;
  static constexpr int bits = 4;

  NIBBLE_HOST_DEVICE static constexpr verdict can_pack(index_t n, index_t k, int bits_, index_t group) noexcept {
    if (bits_ != 4) return {"AWQ GEMM packs 4 bits"};
    if (const verdict v = can_group(n, k, group); !v) return v;
    if (n % 8 != 0) return {"AWQ GEMM packs 8 outputs into a word: the outputs must be a multiple of 8"};
    if (group > 0 && k % group != 0) return {"AWQ GEMM needs a group size that divides the inputs"};
    return {};
  }
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t k) const noexcept { return {k, n / 8}; }
  NIBBLE_HOST_DEVICE constexpr awq_gemm zeros() const noexcept { return {}; }
  NIBBLE_HOST_DEVICE constexpr transposed_scales scales() const noexcept { return {}; }
};

/// Z, the words of zero points a row has under AWQ's GEMV kernels: 8 groups a word, rounded up to 2 words where a group
/// is 64 inputs and to 4 where it is 32.
NIBBLE_HOST_DEVICE constexpr index_t awq_gemv_zero_words(index_t groups_, index_t group) noexcept {
  return round_up(ceil_div(groups_, 8), group == 32 ? 4 : group == 64 ? 2 : 1);
}

/// What both GEMV layouts ask of a group: `group` as in can_pack.
NIBBLE_HOST_DEVICE constexpr bool awq_gemv_group(index_t k, index_t group) noexcept {
  const index_t size = group == -1 ? k : group;
  return (size >= 128 || size == 64 || size == 32) && k % size == 0;
}

/// Zero points of AWQ GEMV: int32 [n, Z], group j in nibble j % 8 of word j / 8, zeros after the last group.
struct awq_gemv_zeros {
  using word = uint32_t;
  static constexpr bool continues_below = false;
  static constexpr int bits = 4;
  index_t group = 128;
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t groups_) const noexcept {
    return {n, awq_gemv_zero_words(groups_, group)};
  }
};

/// Scales of AWQ GEMV: [n, 8Z], zeros after the last group.
struct awq_gemv_scales {
  index_t group = 128;
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t groups_) const noexcept {
    return {n, 8 * awq_gemv_zero_words(groups_, group)};
  }
};

/// AutoAWQ GEMV: int32 [n, k/8], nibble i of a word is input 8c + i.
struct awq_gemv {
  using word = uint32_t;
  static constexpr bool continues_below = false;
  static constexpr int bits = 4;
  index_t group = 128;  ///< −1 is all of k

  NIBBLE_HOST_DEVICE static constexpr verdict can_pack(index_t n, index_t k, int bits_, index_t group) noexcept {
    if (bits_ != 4) return {"AWQ GEMV packs 4 bits"};
    if (const verdict v = can_group(n, k, group); !v) return v;
    if (n % 8 != 0) return {"AWQ GEMV needs outputs that are a multiple of 8"};
    if (k % 8 != 0) return {"AWQ GEMV packs 8 inputs into a word: the inputs must be a multiple of 8"};
    if (!awq_gemv_group(k, group))
      return {"AWQ GEMV needs a group size of 32, 64, or at least 128, dividing the inputs"};
    return {};
  }
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t k) const noexcept { return {n, k / 8}; }
  NIBBLE_HOST_DEVICE constexpr awq_gemv_zeros zeros() const noexcept { return {group}; }
  NIBBLE_HOST_DEVICE constexpr awq_gemv_scales scales() const noexcept { return {group}; }
};

/// Scales of AWQ GEMV-fast, and its zero points, which are values −scale·zero: [8Z, n], zeros after the last group.
struct awq_gemv_fast_scales {
  index_t group = 128;
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t groups_) const noexcept {
    return {8 * awq_gemv_zero_words(groups_, group), n};
  }
};

/// AutoAWQ GEMV-fast: int16 [n/4, k]. Along k each run of 32 is reordered 0,1,8,9,16,17,24,25,2,3,…, then each 8 of
/// those 0,2,4,6,1,3,5,7; 4 rows take turns every 64 of k. Zero points are stored as fp16 values −scale·zero, like scales.
struct awq_gemv_fast {
  using word = uint16_t;
  static constexpr bool continues_below = false;
  static constexpr int bits = 4;
  index_t group = 128;  ///< −1 is all of k

  NIBBLE_HOST_DEVICE static constexpr verdict can_pack(index_t n, index_t k, int bits_, index_t group) noexcept {
    if (bits_ != 4) return {"AWQ GEMV-fast packs 4 bits"};
    if (const verdict v = can_group(n, k, group); !v) return v;
    if (n % 8 != 0) return {"AWQ GEMV-fast needs outputs that are a multiple of 8"};
    if (k % 64 != 0) return {"AWQ GEMV-fast interleaves every 64 inputs: the inputs must be a multiple of 64"};
    if (!awq_gemv_group(k, group))
      return {"AWQ GEMV-fast needs a group size of 32, 64, or at least 128, dividing the inputs"};
    return {};
  }
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t k) const noexcept { return {n / 4, k}; }
  NIBBLE_HOST_DEVICE constexpr awq_gemv_fast_scales zeros() const noexcept { return {group}; }
  NIBBLE_HOST_DEVICE constexpr awq_gemv_fast_scales scales() const noexcept { return {group}; }
};

/// The two GPTQ checkpoint formats: `gptq` stores a zero point less one, `gptq_v2` stores it as it is.
enum class gptq_version : uint8_t { v1 = 1, v2 = 2 };

/// Zero points of GPTQ: one string of bits along n, int32 [groups, n·b/32]. v1 stores (zero − 1) mod 2^b.
struct gptq_zeros {
  using word = uint32_t;
  static constexpr bool continues_below = false;
  int bits = 4;
  gptq_version version = gptq_version::v2;
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t groups_) const noexcept {
    return {groups_, ceil_div(n * bits, 32)};
  }
};

/// GPTQ: one string of bits along k for each output, int32 [k·b/32, n].
struct gptq {
  using word = uint32_t;
  static constexpr bool continues_below = true;
  int bits = 4;
  gptq_version version = gptq_version::v2;

  NIBBLE_HOST_DEVICE static constexpr verdict can_pack(index_t n, index_t k, int bits_, index_t group) noexcept {
    if (bits_ != 2 && bits_ != 3 && bits_ != 4 && bits_ != 8) return {"GPTQ packs 2, 3, 4 or 8 bits"};
    if (const verdict v = can_group(n, k, group); !v) return v;
    if (n * bits_ % 32 != 0)
      return {
          "GPTQ packs zero points along the outputs: they must fill whole words (multiples of 32/bits, 32 for 3 bits)"};
    if (k * bits_ % 32 != 0)
      return {"GPTQ packs weights along the inputs: they must fill whole words (multiples of 32/bits, 32 for 3 bits)"};
    return {};
  }
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t k) const noexcept {
    return {ceil_div(k * bits, 32), n};
  }
  NIBBLE_HOST_DEVICE constexpr gptq_zeros zeros() const noexcept { return {bits, version}; }
  NIBBLE_HOST_DEVICE constexpr transposed_scales scales() const noexcept { return {}; }
};

/// Scales of Marlin: [groups, n], permuted within every 64 outputs where k has several groups, within every 32 where it
/// has one.
struct marlin_scales {
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t groups_) const noexcept { return {groups_, n}; }
};

/// Zero points of Marlin: int32 [groups, n·b/32], permuted within every 64 outputs as the scales of several groups are,
/// also where there is one, then even before odd within each word. vLLM multiplies by 4 bits with them, not by 8.
struct marlin_zeros {
  using word = uint32_t;
  static constexpr bool continues_below = false;
  int bits = 4;
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t groups_) const noexcept {
    return {groups_, n * bits / 32};
  }
};

/// Marlin: 4 or 8 bits, int32 [k/16, n·b/2]. A row is 16 inputs by all outputs, cut into 16 × 64 tiles of 32·b words;
/// b words are what one thread feeds to four 16 × 16 of mma.m16n8k16. Engines make it from other formats as they load.
struct marlin {
  using word = uint32_t;
  static constexpr bool continues_below = false;
  int bits = 4;

  NIBBLE_HOST_DEVICE static constexpr verdict can_pack(index_t n, index_t k, int bits_, index_t group) noexcept {
    if (bits_ != 4 && bits_ != 8) return {"Marlin packs 4 or 8 bits"};
    if (const verdict v = can_group(n, k, group); !v) return v;
    if (n % 64 != 0) return {"Marlin needs outputs that are a multiple of 64"};
    if (k % 16 != 0) return {"Marlin needs inputs that are a multiple of 16"};
    if (group != 32 && group != 64 && group != 128 && group != -1)
      return {"Marlin needs a group size of 32, 64, 128 or -1"};
    if (group > 0 && k % group != 0) return {"Marlin needs a group size that divides the inputs"};
    return {};
  }
  /// What vLLM multiplies by as it is; it fills other shapes up with zeros first.
  NIBBLE_HOST_DEVICE static constexpr verdict can_multiply(index_t n, index_t k) noexcept {
    if ((n % 64 == 0 && k % 128 == 0) || (n % 128 == 0 && k % 64 == 0)) return {};
    return {"Marlin multiplies by outputs and inputs that are multiples of 64, one of them of 128"};
  }
  /// What the first Marlin kernel takes, whose words are the same.
  NIBBLE_HOST_DEVICE static constexpr verdict original_can_pack(index_t n, index_t k, int bits_,
                                                                index_t group) noexcept {
    if (bits_ != 4) return {"the original Marlin packs 4 bits"};
    if (const verdict v = can_group(n, k, group); !v) return v;
    if (n % 256 != 0) return {"the original Marlin needs outputs that are a multiple of 256"};
    if (k % 128 != 0) return {"the original Marlin needs inputs that are a multiple of 128"};
    if (group != 128 && group != -1) return {"the original Marlin needs a group size of 128 or -1"};
    return {};
  }
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t k) const noexcept { return {k / 16, n * bits / 2}; }
  NIBBLE_HOST_DEVICE constexpr marlin_zeros zeros() const noexcept { return {bits}; }
  NIBBLE_HOST_DEVICE constexpr marlin_scales scales() const noexcept { return {}; }
};

/// bitsandbytes 4-bit: the matrix flattened row by row, two codes a byte, the first in the high nibble,
/// uint8 [⌈n·k/2⌉, 1].
struct bitsandbytes {
  using word = uint8_t;
  static constexpr bool continues_below = false;
  static constexpr int bits = 4;
  uint8_t filler = 7;  ///< the nibble beside a last lone code: the code of the value 0, which is 7 in NF4 and 0 in FP4

  NIBBLE_HOST_DEVICE static constexpr verdict can_pack(index_t n, index_t k, int bits_, index_t group) noexcept {
    if (bits_ != 4) return {"bitsandbytes packs 4 bits"};
    return can_group(n, k, group);
  }
  NIBBLE_HOST_DEVICE constexpr extents packed(index_t n, index_t k) const noexcept { return {ceil_div(n * k, 2), 1}; }
};

}  // namespace layout
NIBBLE_NAMESPACE_END
