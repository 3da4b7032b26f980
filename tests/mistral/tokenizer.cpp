// SPDX-License-Identifier: Apache-2.0
#include "mistral/tokenizer.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <functional>

#include "mistral/regex.hpp"
#include "mistral/utf8.hpp"
#include "support/tokens.hpp"

namespace tokenizer_tests {

using namespace nibble;
using namespace nibble::mistral;
namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using test::json;
using ids_t = std::vector<int32_t>;

namespace {

/// The embedded model's tokenizer.json and the byte-level one beside the golden files.
json base_file(const std::string& name) {
  return read_json<json>(name == "tiny" ? test::embedded_model() / "tokenizer.json"
                                        : test::golden_tokenizer("byte-level.json"));
}

std::unique_ptr<tokenizer> open(const json& file) {
  test::model_files model;
  model.add_json("tokenizer.json", file);
  return open_tokenizer(model.path());
}

/// What open_tokenizer says about a tokenizer.json that `change` damaged.
std::string refusal_of(const std::string& base, const std::function<void(json&)>& change) {
  json file = base_file(base);
  change(file);
  return test::refusal([&] { open(file); });
}

void check_strings(const tokenizer& tok, const json& strings, const json& golden) {
  std::string all;
  for (size_t i = 0; i < strings.size(); ++i) {
    const auto text = strings[i].get<std::string>();
    CAPTURE(i, text);
    const ids_t ids = tok.encode(text);
    CHECK(ids == golden["ids"][i].get<ids_t>());
    CHECK(tok.decode(ids) == (golden["text"][i].is_null() ? text : golden["text"][i].get<std::string>()));
    all += (i == 0 ? "" : "\n") + tok.decode(ids, true);
  }
  CHECK(test::fnv(all) == golden["special"].get<std::string>());
}

}  // namespace

TEST_CASE("each string has the ids, and the ids the text, that the tokenizers package gives") {
  const json golden = test::golden_tokens("strings.json");
  const json& strings = golden["strings"];
  SECTION("byte fallback, tokenizer.json") {
    check_strings(*open_tokenizer(test::embedded_model()), strings, golden["tokenizers"]["tiny"]);
  }
  SECTION("byte fallback, tokenizer.model") {
    test::model_files model;
    model.add("tokenizer.model", test::read_bytes(test::embedded_model() / "tokenizer.model"));
    check_strings(*open_tokenizer(model.path()), strings, golden["tokenizers"]["tiny"]);
  }
  SECTION("byte level") {
    check_strings(*open(base_file("byte-level")), strings, golden["tokenizers"]["byte-level"]);
  }
}

TEST_CASE("every way of writing a tokenizer.json gives the ids that the tokenizers package gives") {
  const json strings = test::golden_tokens("strings.json")["strings"];
  const json golden = test::golden_tokens("variants.json");
  for (const json& variant : golden["variants"]) {
    CAPTURE(variant["name"]);
    json file = base_file(variant["of"]);
    file.merge_patch(variant["patch"]);
    const auto tok = open(file);
    ids_t all;
    std::string text;
    for (const json& string : strings) {
      const ids_t ids = tok->encode(string.get<std::string>());
      text += (text.empty() && all.empty() ? "" : "\n") + tok->decode(ids);
      all.insert(all.end(), ids.begin(), ids.end());
      all.push_back(-1);
    }
    CHECK(all.size() == variant["count"].get<size_t>() + strings.size());
    CHECK(test::fnv_ids(all) == variant["hash"].get<std::string>());
    CHECK(test::fnv(text) == variant["text"].get<std::string>());
  }
}

TEST_CASE("whole books have the ids that the tokenizers package gives") {
  const fs::path data = test::shared_data();
  if (data.empty()) {
    WARN("left out: the texts of ../shared/data are not there");
    return;
  }
  const json golden = test::golden_tokens("texts.json");
  for (const json& row : golden["texts"]) {
    const auto name = row["file"].get<std::string>(), owner = row["model"].get<std::string>();
    if (name == "chat-256.jsonl") continue;
    const std::string text = test::read_bytes(data / "text" / name);
    const fs::path from = owner == "tiny-mistral" ? test::embedded_model() : data / "tokenizers" / owner;
    for (const char* file : {"tokenizer.json", "tokenizer.model"}) {
      CAPTURE(owner, name, file);
      test::model_files model;
      model.add(file, test::read_bytes(from / file));
      const ids_t ids = open_tokenizer(model.path())->encode(text);
      REQUIRE(ids.size() == row["count"].get<size_t>());
      CHECK(ids_t(ids.begin(), ids.begin() + 16) == row["first"].get<ids_t>());
      CHECK(ids_t(ids.end() - 16, ids.end()) == row["last"].get<ids_t>());
      CHECK(test::fnv_ids(ids) == row["hash"].get<std::string>());
    }
  }
}

TEST_CASE("cases that another program wrote have the ids it got", "[.interop]") {
  const char* file = std::getenv("NIBBLE_TOKENIZER_CASES");  // {"model": directory, "strings": […], "ids": [[…], …]}
  REQUIRE(file != nullptr);
  const auto cases = read_json<json>(file, std::uint64_t{1} << 31);
  const auto tok = open_tokenizer(cases["model"].get<std::string>());
  REQUIRE(!cases["strings"].empty());
  for (size_t i = 0; i < cases["strings"].size(); ++i) {
    CAPTURE(i);
    REQUIRE(tok->encode(cases["strings"][i].get<std::string>()) == cases["ids"][i].get<ids_t>());
  }
}

TEST_CASE("Tekken's split pattern stands in where a conversion left another, in a Mistral model only") {
  const json strings = test::golden_tokens("strings.json")["strings"];
  json file = base_file("byte-level");
  file["model"]["vocab"]["12"] = file["model"]["vocab"].size();  // Tekken's pattern lets no two digits meet
  file["model"]["merges"].push_back({"1", "2"});
  const auto tekken = open(file);
  const json golden = test::golden_tokens("variants.json");
  for (const json& variant : golden["variants"])
    if (variant["name"] == "the pattern of conversions") file.merge_patch(variant["patch"]);
  test::model_files mistral_model, llama;
  mistral_model.add_json("tokenizer.json", file).add_json("config.json", json{{"model_type", "mistral"}});
  llama.add_json("tokenizer.json", file).add_json("config.json", json{{"model_type", "llama"}});
  const auto repaired = open_tokenizer(mistral_model.path()), kept = open_tokenizer(llama.path());
  bool differs = false;
  for (const json& string : strings) {
    const ids_t ids = tekken->encode(string.get<std::string>());
    CHECK(repaired->encode(string.get<std::string>()) == ids);
    differs = differs || kept->encode(string.get<std::string>()) != ids;
  }
  CHECK(differs);
}

TEST_CASE("what a tokenizer puts around a text is what its files say") {
  const json file = base_file("tiny");
  const auto framed = [&](const json& config, const char* name = "tokenizer.json") {
    test::model_files model;
    model.add(name, test::read_bytes(test::embedded_model() / name)).add_json("tokenizer_config.json", config);
    const auto tok = open_tokenizer(model.path());
    ids_t ids = tok->encode_framed("Hi"), inner = tok->encode("Hi");
    for (const int32_t id : inner) ids.erase(std::find(ids.begin(), ids.end(), id));
    return ids;  // what is left of the frame
  };
  const json object = {{"content", "<s>"}, {"lstrip", false}};
  CHECK(framed(json::object()) == ids_t{1});  // the template in tokenizer.json
  CHECK(framed({{"add_bos_token", true}, {"add_eos_token", true}, {"bos_token", object}}) == ids_t{1, 2});
  CHECK(framed({{"add_bos_token", false}}) == ids_t{});
  CHECK(framed({{"add_bos_token", true}, {"bos_token", nullptr}}) == ids_t{});
  CHECK(framed(json::object(), "tokenizer.model") == ids_t{1});
  CHECK(framed({{"add_bos_token", false}, {"add_eos_token", true}}, "tokenizer.model") == ids_t{2});
  const auto plain = open(base_file("byte-level"));  // no post_processor
  CHECK(plain->encode_framed("Hi") == plain->encode("Hi"));
}

TEST_CASE("the first and last token are those of tokenizer_config.json, else special_tokens_map.json, else <s>, </s>") {
  const json file = base_file("tiny");
  test::model_files none, map, both;
  none.add_json("tokenizer.json", file);
  map.add_json("tokenizer.json", file).add_json("special_tokens_map.json", json{{"eos_token", "[INST]"}});
  both.add_json("tokenizer.json", file)
      .add_json("special_tokens_map.json", json{{"eos_token", "[INST]"}})
      .add_json("tokenizer_config.json", json{{"eos_token", "[/INST]"}, {"bos_token", nullptr}});
  CHECK(open_tokenizer(none.path())->bos() == 1);
  CHECK(open_tokenizer(none.path())->eos() == 2);
  CHECK(open_tokenizer(map.path())->eos() == 3);
  CHECK(open_tokenizer(both.path())->eos() == 4);
  CHECK(open_tokenizer(both.path())->bos() == -1);
  CHECK(open_tokenizer(none.path())->vocabulary() == 2048);
  both.add_json("tokenizer_config.json", json{{"bos_token", "<begin>"}});
  CHECK_THAT(test::refusal([&] { open_tokenizer(both.path()); }), Contains("tokenizer.json has no token <begin>"));
  both.add_json("tokenizer_config.json", json{{"bos_token", 7}});
  CHECK_THAT(test::refusal([&] { open_tokenizer(both.path()); }), Contains("\"bos_token\" must be a string"));
}

TEST_CASE("bytes that are not UTF-8 count as U+FFFD, one for each maximal subpart") {
  // Unicode 14, table 3-8, and what Python's bytes.decode(errors="replace") makes of them
  const std::string r = "\xef\xbf\xbd";
  CHECK(utf8_repaired("a\xf1\x80\x80\xe1\x80\xc2"
                      "b\x80"
                      "c\x80\xbf"
                      "d") == "a" + r + r + r + "b" + r + "c" + r + r + "d");
  CHECK(utf8_repaired("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41") == r + r + r + r + r + r + r + r + "A");
  CHECK(utf8_repaired("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41") == r + r + r + r + r + r + r + r + "A");
  CHECK(utf8_repaired("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42") == r + r + r + r + r + "A" + r + r + "B");
  CHECK(utf8_repaired("\xe2\x82") == r);
  for (const char* name : {"tiny", "byte-level"}) {
    const auto tok = open(base_file(name));
    CHECK(tok->encode("a\xff[INST]\xe2\x82") == tok->encode("a\xef\xbf\xbd[INST]\xef\xbf\xbd"));
  }
  test::model_files model;
  model.add("tokenizer.model", test::read_bytes(test::embedded_model() / "tokenizer.model"));
  const auto tok = open_tokenizer(model.path());
  CHECK(tok->encode("a\xff[INST]\xe2\x82") == tok->encode("a\xef\xbf\xbd[INST]\xef\xbf\xbd"));
}

TEST_CASE("every character survives UTF-8 there and back, and every shortened one is an error") {
  for (char32_t c = 0; c <= 0x10ffff; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    const std::string text = to_utf8(c);
    if (utf8_length(text, 0) != text.size() || utf8_value(text, 0) != c ||
        (text.size() > 1 && utf8_error(std::string_view(text).substr(0, text.size() - 1)) != 0))
      FAIL("U+" << std::hex << static_cast<uint32_t>(c));
  }
}

TEST_CASE("a text of one piece is encoded in time that its length, not its square, decides") {
  // 300,000 characters: what looks at all pairs for each merge would not come back.
  std::string text;
  while (text.size() < 300'000) text += "the state of the union is strong and it will be stronger ";
  for (const std::string& long_one : {text, std::string(300'000, ' '), std::string(300'000, 'a'),
                                      std::string(300'000, 'A'), std::string(300'000, '\n')})
    for (const char* name : {"tiny", "byte-level"}) {
      const auto tok = open(base_file(name));
      const std::string back = tok->decode(tok->encode(long_one));
      CHECK(back == (long_one[0] == ' ' && std::string_view(name) == "tiny" ? long_one.substr(1) : long_one));
    }
}

TEST_CASE("an id outside the vocabulary is refused by decode") {
  test::model_files sentencepiece;
  sentencepiece.add("tokenizer.model", test::read_bytes(test::embedded_model() / "tokenizer.model"));
  const auto a = open_tokenizer(test::embedded_model()), b = open_tokenizer(sentencepiece.path());
  for (const tokenizer* tok : {a.get(), b.get()}) {
    CHECK(tok->vocabulary() == 2048);
    CHECK_THAT(test::refusal([&] { tok->decode({5, 2048}); }), Contains("no token 2048"));
    CHECK_THAT(test::refusal([&] { tok->decode({-1}); }), Contains("no token -1"));
  }
}

TEST_CASE("a directory without a tokenizer that can be read says what it lacks") {
  const test::temporary_directory empty;
  CHECK_THAT(test::refusal([&] { open_tokenizer(empty / "missing"); }), Contains("no model directory"));
  CHECK_THAT(test::refusal([&] { open_tokenizer(empty.path()); }),
             Contains("neither tokenizer.json nor tokenizer.model"));
  test::write_bytes(empty / "tekken.json", "{}");
  CHECK_THAT(test::refusal([&] { open_tokenizer(empty.path()); }), Contains("only tekken.json"));
}

TEST_CASE("what a tokenizer.json asks for and is not implemented is refused by name") {
  const auto put = [](const char* key, const char* value) {
    return [=](json& file) { file[json::json_pointer(key)] = json::parse(value); };
  };
  CHECK_THAT(refusal_of("tiny", put("/model/type", "\"Unigram\"")), Contains("model type Unigram is not supported"));
  CHECK_THAT(refusal_of("tiny", put("/model/dropout", "0.1")), Contains("\"dropout\""));
  CHECK_THAT(refusal_of("tiny", put("/model/end_of_word_suffix", "\"</w>\"")), Contains("\"end_of_word_suffix\""));
  CHECK_THAT(refusal_of("tiny", put("/normalizer", R"({"type": "NFC"})")), Contains("normalizer NFC is not supported"));
  CHECK_THAT(refusal_of("tiny", put("/normalizer", R"({"type": "Replace", "pattern": {"Regex": "a"}, "content": ""})")),
             Contains("Replace with another pattern"));
  CHECK_THAT(refusal_of("tiny", put("/pre_tokenizer", R"({"type": "Digits"})")), Contains("pre_tokenizer Digits"));
  CHECK_THAT(refusal_of("tiny", put("/pre_tokenizer/prepend_scheme", "\"last\"")), Contains("prepend_scheme last"));
  CHECK_THAT(refusal_of("byte-level", put("/pre_tokenizer/pretokenizers/0/behavior", "\"Removed\"")),
             Contains("behavior Removed"));
  CHECK_THAT(refusal_of("byte-level", put("/pre_tokenizer/pretokenizers/0/pattern", R"({"String": "a"})")),
             Contains("Split by another pattern"));
  CHECK_THAT(refusal_of("tiny", put("/post_processor", R"({"type": "BertProcessing"})")), Contains("BertProcessing"));
  CHECK_THAT(refusal_of("tiny", put("/decoder", R"({"type": "WordPiece"})")), Contains("decoder WordPiece"));
}

TEST_CASE("a damaged tokenizer.json is one sentence that names the file") {
  const auto put = [](const char* key, const char* value) {
    return [=](json& file) { file[json::json_pointer(key)] = json::parse(value); };
  };
  const auto drop = [](const char* key) { return [=](json& file) { file["model"].erase(key); }; };
  const std::string says[] = {refusal_of("tiny", drop("vocab")),
                              refusal_of("tiny", drop("merges")),
                              refusal_of("tiny", put("/model/vocab", "[]")),
                              refusal_of("tiny", put("/model/vocab", "{}")),
                              refusal_of("tiny", put("/model/vocab/x", "-1")),
                              refusal_of("tiny", put("/model/vocab/x", "4294967296")),
                              refusal_of("tiny", put("/model/vocab/x", "16777216")),
                              refusal_of("tiny", put("/model/vocab/x", "\"7\"")),
                              refusal_of("tiny", put("/model/vocab/x", "7")),
                              refusal_of("tiny", put("/model/merges", "{}")),
                              refusal_of("tiny", put("/model/merges/0", R"(["a", "missing one"])")),
                              refusal_of("tiny", put("/model/merges/0", R"("a b c")")),
                              refusal_of("tiny", put("/model/merges/0", "7")),
                              refusal_of("tiny", put("/model/unk_token", "\"<nowhere>\"")),
                              refusal_of("tiny", put("/model/unk_token", "7")),
                              refusal_of("tiny", put("/model/byte_fallback", "\"yes\"")),
                              refusal_of("tiny", put("/model", "null")),
                              refusal_of("tiny", put("/added_tokens", "{}")),
                              refusal_of("tiny", put("/added_tokens/0", "7")),
                              refusal_of("tiny", put("/added_tokens/0/id", "5")),
                              refusal_of("tiny", put("/added_tokens/0/id", "-5")),
                              refusal_of("tiny", put("/added_tokens/0/content", "\"elsewhere\"")),
                              refusal_of("tiny", put("/added_tokens/0/lstrip", "1")),
                              refusal_of("tiny", put("/pre_tokenizer", "[]")),
                              refusal_of("tiny", put("/pre_tokenizer/replacement", "\"ab\"")),
                              refusal_of("tiny", put("/pre_tokenizer/replacement", "\"\"")),
                              refusal_of("tiny", put("/post_processor/single/0/SpecialToken/id", "\"<q>\"")),
                              refusal_of("tiny", put("/post_processor/special_tokens/<s>/ids/0", "99999")),
                              refusal_of("tiny", put("/post_processor/single/0", "[]")),
                              refusal_of("tiny", put("/decoder/decoders/3/start", "-1")),
                              refusal_of("byte-level", put("/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"(\""))};
  for (const std::string& said : says) CHECK_THAT(said, Contains("tokenizer.json"));
  CHECK_THAT(says[8], Contains("belongs to two tokens"));
  CHECK_THAT(says[10], Contains("merge 0") && Contains("missing one"));
}

TEST_CASE("a tokenizer.json cut short anywhere is refused with the byte") {
  const std::string whole = test::read_bytes(test::golden_tokenizer("byte-level.json"));
  test::model_files model;
  for (size_t size = 0; size + 2 < whole.size(); size += 1 + size / 7) {
    model.add("tokenizer.json", std::string_view(whole).substr(0, size));
    CHECK_THAT(test::refusal([&] { open_tokenizer(model.path()); }),
               Contains("tokenizer.json: not valid JSON at byte " + std::to_string(size)));
  }
}

TEST_CASE("a tokenizer.model that is damaged is refused or read, and never worse") {
  const std::string whole = test::read_bytes(test::embedded_model() / "tokenizer.model");
  test::model_files model;
  for (const size_t size : {size_t{0}, size_t{1}, size_t{7}, whole.size() / 2, whole.size() - 1}) {
    model.add("tokenizer.model", std::string_view(whole).substr(0, size));
    CHECK_THAT(test::refusal([&] { open_tokenizer(model.path()); }), Contains("tokenizer.model"));
  }
  model.add("tokenizer.model", std::string(4096, '\xff'));
  CHECK_THAT(test::refusal([&] { open_tokenizer(model.path()); }), Contains("no SentencePiece model"));
  int refused = 0, read = 0;
  for (size_t at = 0; at < whole.size(); at += 211) {
    std::string bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ 0x55);
    model.add("tokenizer.model", bytes);
    try {
      const auto tok = open_tokenizer(model.path());
      for (const int32_t id : tok->encode("The state of the [INST] union, 你好 👍"))
        REQUIRE((id >= 0 && id < tok->vocabulary()));
      ++read;
    } catch (const error& said) {
      CHECK_THAT(said.what(), Contains("tokenizer.model"));
      ++refused;
    }
  }
  CHECK(refused > 0);
  CHECK(read > 0);
}

TEST_CASE("a regular expression's white space is White_Space, and a match that would never end is refused") {
  using matches = std::vector<std::pair<size_t, size_t>>;
  CHECK(regex(R"(\s)", "x").matches("\xe1\xa0\x8e").empty());  // U+180E is none
  CHECK(regex(R"(\S)", "x").matches("\xe1\xa0\x8e") == matches{{0, 3}});
  CHECK(regex(R"([\s]+)", "x").matches("a \xc2\x85\xe3\x80\x80\tb") == matches{{1, 8}});
  CHECK(regex(R"([^\s]+)", "x").matches(" a\\s ") == matches{{1, 4}});
  CHECK(regex(R"(a*)", "x").matches("baab") == matches{{1, 3}});  // empty matches are left out
  CHECK_THAT(test::refusal([] { regex("[", "FILE"); }), Contains("FILE: the regular expression [ is not one"));
  CHECK_THAT(test::refusal([] { regex("(a+)+$", "FILE").matches(std::string(64, 'a') + "b"); }),
             Contains("FILE: matching"));
}

}  // namespace tokenizer_tests
