// SPDX-License-Identifier: Apache-2.0
/// @file
/// What libsentencepiece takes on trust in a model: it ends the program at a piece without text, and reads outside a
/// damaged precompiled_charsmap. Fields are those of its ModelProto; the wire format is that of protocol buffers: a key
/// (field << 3 | type), then a varint (type 0), 8 bytes (1), a length and as many bytes (2), or 4 bytes (5).
/// Source: google/sentencepiece, sentencepiece_model.proto; protobuf.dev, "Encoding".
#include <cmath>
#include <cstdint>
#include <cstring>

#include "error.hpp"
#include "tokenizer_files.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

class protobuf_message {
 public:
  protobuf_message(std::string_view bytes, const std::string& where) : left_(bytes), where_(where) {}

  /// Calls field(number, number or 0, bytes or nothing) for each.
  template <class F>
  void each(F&& field) {
    while (!left_.empty()) {
      const std::uint64_t key = varint();
      switch (key & 7) {
        case 0:
          field(key >> 3, varint(), std::string_view());
          break;
        case 1:
          field(key >> 3, 0, taken(8));
          break;
        case 2:
          field(key >> 3, 0, taken(varint()));
          break;
        case 5:
          field(key >> 3, 0, taken(4));
          break;
        default:
          damaged();
      }
    }
  }

 private:
  [[noreturn]] void damaged() const { throw error(where_ + " is no SentencePiece model, or a damaged one"); }

  std::string_view taken(std::uint64_t count) {
    if (count > left_.size()) damaged();
    const std::string_view part = left_.substr(0, count);
    left_.remove_prefix(count);
    return part;
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(taken(1)[0]);
      value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    damaged();
  }

  std::string_view left_;
  const std::string& where_;
};

void check_piece(std::string_view bytes, std::int64_t id, const std::string& where) {
  std::string_view text;
  float score = 0;
  protobuf_message(bytes, where).each([&](std::uint64_t number, std::uint64_t, std::string_view value) {
    if (number == 1) text = value;
    if (number == 2 && value.size() == sizeof(score)) std::memcpy(&score, value.data(), sizeof(score));
  });
  const std::string here = where + ": the piece " + std::to_string(id);
  if (text.empty()) throw error(here + " has no text");
  if (utf8_error(text) != std::string_view::npos || text.find('\0') != std::string_view::npos)
    throw error(here + " is not UTF-8, or holds a zero byte");
  if (!std::isfinite(score)) throw error(here + " has a score that is NaN or infinite");
}

void append_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void append_number(std::string& out, std::uint64_t field, std::uint64_t value) {
  append_varint(out, field << 3);
  append_varint(out, value);
}

void append_bytes(std::string& out, std::uint64_t field, std::string_view bytes) {
  append_varint(out, field << 3 | 2);
  append_varint(out, bytes.size());
  out += bytes;
}

}  // namespace

sentencepiece_model read_sentencepiece_model(std::string_view bytes, const std::string& where) {
  sentencepiece_model model;
  protobuf_message(bytes, where).each([&](std::uint64_t number, std::uint64_t, std::string_view value) {
    if (number == 1) {
      sentencepiece_piece& piece = model.pieces.emplace_back();
      protobuf_message(value, where).each([&](std::uint64_t field, std::uint64_t type, std::string_view text) {
        if (field == 1) piece.text = text;
        if (field == 2 && text.size() == sizeof(float)) std::memcpy(&piece.score, text.data(), sizeof(float));
        if (field == 3) piece.type = static_cast<int>(type & 0xff);
      });
    }
    if (number == 2)
      protobuf_message(value, where).each([&](std::uint64_t field, std::uint64_t type, std::string_view) {
        if (field == 3) model.merges = type == 2;
      });
    if (number == 3)
      protobuf_message(value, where).each([&](std::uint64_t field, std::uint64_t flag, std::string_view) {
        if (field == 3) model.prefixed = flag != 0;
      });
  });
  return model;
}

std::string sentencepiece_model_bytes(const sentencepiece_model& model) {
  std::string out;
  bool bytes = false;
  for (const sentencepiece_piece& p : model.pieces) {
    std::string piece;
    append_bytes(piece, 1, p.text);
    append_varint(piece, 2 << 3 | 5);
    piece.append(reinterpret_cast<const char*>(&p.score), sizeof(p.score));
    append_number(piece, 3, static_cast<std::uint64_t>(p.type));
    append_bytes(out, 1, piece);
    bytes = bytes || p.type == 6;
  }
  std::string trainer, normalizer;
  append_number(trainer, 3, 2);               // model_type: BPE
  append_number(trainer, 35, bytes ? 1 : 0);  // byte_fallback
  append_bytes(normalizer, 1, "identity");    // name
  append_number(normalizer, 3, model.prefixed ? 1 : 0);
  append_number(normalizer, 4, 0);  // remove_extra_whitespaces
  append_bytes(out, 2, trainer);
  append_bytes(out, 3, normalizer);
  return out;
}

void check_sentencepiece_model(std::string_view bytes, const std::string& where) {
  constexpr std::uint64_t pieces = 1, trainer = 2, normalizer = 3, denormalizer = 5;
  std::int64_t count = 0;
  protobuf_message(bytes, where).each([&](std::uint64_t number, std::uint64_t, std::string_view value) {
    if (number == pieces) check_piece(value, count++, where);
    if (number == trainer)
      protobuf_message(value, where).each([&](std::uint64_t field, std::uint64_t type, std::string_view) {
        if (field == 3 && type != 1 && type != 2)
          throw error(where + ": the model type " + std::to_string(type) + " is not supported; unigram and BPE are");
      });
    if (number == normalizer || number == denormalizer)
      protobuf_message(value, where).each([&](std::uint64_t field, std::uint64_t, std::string_view map) {
        if (field == 2 && !map.empty())
          throw error(where + ": a table of normalization (precompiled_charsmap) is not supported; Mistral has none");
      });
  });
  if (count == 0) throw error(where + " is no SentencePiece model, or a damaged one: it has no pieces");
}

}  // namespace nibble::mistral
