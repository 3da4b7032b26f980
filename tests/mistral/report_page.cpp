// SPDX-License-Identifier: Apache-2.0
/// @file
/// The report as a browser and its reader meet it: one page that is whole by itself, says what --json says, and shows names
/// from anywhere as text.
#include "mistral/report_page.hpp"

#include <catch2/catch.hpp>
#include <set>

#include "mistral/svg.hpp"
#include "support/markup.hpp"
#include "support/model.hpp"
#include "support/program.hpp"
#include "support/run_json.hpp"

namespace report_page_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = test::run_json;

namespace {

/// Every <data value> of a page, as it stands.
std::multiset<std::string> data_values(const test::markup& page) {
  std::multiset<std::string> values;
  for (const auto& tag : page.tags())
    if (tag.name == "data")
      for (const auto& [key, value] : tag.attributes) values.insert(value);
  return values;
}

/// Nothing that a browser would fetch or run.
void check_self_contained(const test::markup& page, const std::string& text) {
  static const std::set<std::string> loads = {"script", "link",   "img",   "iframe", "object",
                                              "embed",  "source", "image", "use"};
  for (const auto& tag : page.tags()) {
    CHECK(loads.count(tag.name) == 0);
    for (const auto& [key, value] : tag.attributes) {
      CHECK(key != "src");
      CHECK(key != "href");
      CHECK(key.rfind("on", 0) != 0);
      CHECK(value.find("://") == value.npos);
    }
  }
  CHECK(text.find("@import") == text.npos);
  CHECK(text.find("url(") == text.npos);
}

/// Ids are unique, and every picture is named and described by some.
void check_accessible(const test::markup& page) {
  std::set<std::string> ids;
  std::vector<std::string> asked;
  size_t pictures = 0;
  for (const auto& tag : page.tags())
    for (const auto& [key, value] : tag.attributes) {
      if (key == "id") CHECK(ids.insert(value).second);
      if (key == "role" && value == "img") ++pictures;
      if (key == "aria-labelledby") asked.push_back(value);
    }
  CHECK(asked.size() == pictures);
  for (const std::string& pair : asked) {
    const size_t space = pair.find(' ');
    CHECK(ids.count(pair.substr(0, space)) == 1);
    CHECK(ids.count(pair.substr(space + 1)) == 1);
  }
}

test::markup checked(const json& run) {
  const std::string text = report_html(run);
  test::markup page(text);
  CHECK(page.error() == "");
  check_self_contained(page, text);
  check_accessible(page);
  return page;
}

size_t count(const test::markup& page, const std::string& name) {
  return static_cast<size_t>(
      std::count_if(page.tags().begin(), page.tags().end(), [&](const auto& tag) { return tag.name == name; }));
}

}  // namespace

TEST_CASE("the markup checker refuses what is not well-formed") {
  for (const char* wrong : {"<p>", "<p></b>", "<p><b></p></b>", "<p a=b></p>", "<p>&nbsp;</p>", "<p>a & b</p>",
                            "<p>1 < 2</p>", "<p a=\"1\" a=\"2\"></p>", "<p a=\"<\"></p>", "x<p></p>", "<br>"})
    CHECK(test::markup(wrong).error() != "");
  CHECK(test::markup("<!DOCTYPE html>\n<p a=\"&quot;\">1 &lt; 2<br/></p>\n").error() == "");
}

TEST_CASE(
    "the page is well-formed, needs nothing from elsewhere, and names every picture, for 1, 4, 40 and 80 layers") {
  for (const int layers : {1, 4, 40, 80}) {
    CAPTURE(layers);
    const auto page = checked(test::made_up_run(layers));
    CHECK(count(page, "svg") > 30);
    CHECK(count(page, "section") == 9);
  }
}

TEST_CASE(
    "every figure of the table is on the page as it is in the JSON, to the last digit, and every loss of a layer") {
  const json run = test::made_up_run(3);
  const auto values = data_values(checked(run));
  for (const json& model : run["models"])
    for (const char* key : {"bytes", "bits_per_weight", "perplexity", "increase", "increase_standard_error",
                            "kl_divergence", "kl_divergence_99", "top_token_agreement", "seconds"})
      if (model.contains(key)) CHECK(values.count(model[key].dump()) >= 1);
  for (const json& layer : run["layers"]) {
    for (const json& linear : layer["linears"])
      for (const char* key : {"loss", "round_to_nearest_loss"}) CHECK(values.count(linear[key].dump()) >= 1);
    for (const json& input : layer["activations"]) CHECK(values.count(input["salient"][0]["channel"].dump()) >= 1);
  }
}

TEST_CASE("answers, and an earlier run's figures, are on the page as they are in the JSON") {
  json run = test::made_up_run(2);
  CHECK(report_html(run).find("Beside an earlier run") == std::string::npos);
  run["evaluation"]["questions"] = 17;
  for (const size_t model : {0, 2})
    run["models"][model].update({{"accuracy", 0.7123456}, {"exact_match", 0.4123456}, {"abstained", 0.0123456}});
  run["baseline"] = {{"file", "/runs/<b>.json"},
                     {"name", "AWQ"},
                     {"perplexity", {{"then", 35.4123456}, {"now", 35.2953574}, {"difference", -0.1169882}}}};
  const auto page = checked(run);
  const auto values = data_values(page);
  for (const char* figure : {"0.7123456", "0.4123456", "0.0123456"}) CHECK(values.count(figure) == 2);
  for (const char* figure : {"35.4123456", "35.2953574", "-0.1169882"}) CHECK(values.count(figure) == 1);
  CHECK_THAT(page.words(), Contains("17 prompts were asked") && Contains("as &lt;b&gt;.json has it (AWQ)"));
}

TEST_CASE("names from a file system are shown as text, whatever they hold") {
  json run = test::made_up_run(2);
  const std::string hostile = "<script>alert(1)</script>\"'&\x01\xFF\n--><!--";
  run["source"]["name"] = hostile;
  run["options"]["calibration"] = "/texts/" + hostile;
  run["evaluation"]["text"] = hostile;
  run["packing"] = hostile;
  run["models"][2]["name"] = hostile;
  run["made"]["machine"]["processor"] = hostile;
  run["layers"][0]["linears"]["\"><script>"] = run["layers"][0]["linears"]["mlp.up_proj"];
  run["layers"][0]["activations"]["\"><script>"] = run["layers"][0]["activations"]["mlp"];
  run["layers"][0]["scales"]["\"><script>"] = run["layers"][0]["scales"]["mlp"];
  const auto page = checked(run);
  CHECK_THAT(page.words(), Contains("&lt;script&gt;alert(1)"));
}

TEST_CASE("a part without data is left out, and a line says why") {
  json run = test::made_up_run(2);
  run.erase("evaluation");
  for (json& model : run["models"])
    for (const char* key : {"perplexity", "increase", "kl_by_position"}) model.erase(key);
  CHECK_THAT(checked(run).words(), Contains("Left out: nothing was evaluated"));
  run["options"]["method"] = "rtn";
  for (json& layer : run["layers"]) {
    layer.erase("scales"), layer.erase("activations");
    for (json& linear : layer["linears"])
      for (const char* key : {"loss", "round_to_nearest_loss", "range_kept"}) linear.erase(key);
  }
  const auto rounded = checked(run);
  CHECK_THAT(rounded.words(), Contains("rounding to nearest looks at no activations") && Contains("whole range"));
  CHECK(count(rounded, "svg") == 9);  // seven histograms and two keys
  run["layers"] = json::array();
  CHECK_THAT(checked(run).words(), Contains("no linear was quantized"));
}

TEST_CASE("figures that are no numbers are a dash, and draw nothing that is none") {
  json run = test::made_up_run(2);
  run["models"][1]["increase_standard_error"] = std::numeric_limits<double>::quiet_NaN();
  run["models"][2]["increase_standard_error"] = nullptr;
  run["layers"][0]["linears"]["mlp.up_proj"]["loss"] = 0.0;
  run["layers"][1]["linears"]["mlp.up_proj"]["loss"] = nullptr;
  run["layers"][0]["activations"]["mlp"]["median_magnitude"] = 0.0;
  run["layers"][0]["activations"]["mlp"]["salient"][0]["times_median"] = nullptr;
  const std::string text = report_html(run);
  checked(run);
  CHECK(text.find("nan") == text.npos);
  CHECK(text.find("inf\"") == text.npos);
}

TEST_CASE("ticks are even numbers within the axis, of either kind") {
  const svg::axis even = svg::linear_axis(0.013, 0.97, "");
  CHECK(even.low == 0.0);
  CHECK(even.high == 1.0);
  for (const double tick : even.ticks) CHECK(std::fabs(tick * 4 - std::round(tick * 4)) < 1e-12);
  for (const auto& [low, high] :
       {std::pair(1e-7, 3e4), std::pair(0.11, 0.9), std::pair(5.0, 5.0), std::pair(0.0, 0.0)}) {
    const svg::axis a = svg::log_axis(low, high, "");
    CHECK(a.low > 0);
    CHECK(a.high > a.low);
    CHECK(a.ticks.size() >= 2);
    CHECK(a.ticks.size() <= 8);
    for (const double tick : a.ticks) CHECK((tick >= a.low * 0.999 && tick <= a.high * 1.001));
  }
  for (const int layers : {1, 4, 32, 80, 200}) CHECK(svg::layer_axis(layers).ticks.size() <= 8);
}

TEST_CASE("numbers are written for people: few digits, a true minus, powers of ten at the ends") {
  CHECK(svg::number(0) == "0");
  CHECK(svg::number(-1.5) == "−1.5");
  CHECK(svg::number(0.000123456) == "1.23·10⁻⁴");
  CHECK(svg::number(12345) == "12300");
  CHECK(svg::number(2.5e9) == "2.5·10⁹");
  CHECK(svg::number(std::numeric_limits<double>::quiet_NaN()) == "–");
}

TEST_CASE("awq_mistral --report writes the page of what --json says, of either method, whatever the model is called") {
  const test::temporary_directory root;
  const test::fs::path model = root / "<script>alert('&')<";
  test::write_model({}, model);
  test::write_bytes(root / "text.txt", "The state of the union is strong. " + std::string(3000, 'a'));
  for (const char* method : {"awq", "rtn"}) {
    CAPTURE(method);
    const auto result = test::run_program("awq_mistral", {"--model",
                                                          model.string(),
                                                          "--output",
                                                          root.path() / "out",
                                                          "--overwrite",
                                                          "--group-size",
                                                          "32",
                                                          "--num-calibration-samples",
                                                          "2",
                                                          "--n-grid",
                                                          "4",
                                                          "--max-seq-length",
                                                          "64",
                                                          "--method",
                                                          method,
                                                          "--evaluate",
                                                          root.path() / "text.txt",
                                                          "--json",
                                                          root.path() / "run.json",
                                                          "--report",
                                                          root.path() / "run.html"});
    CHECK(result.status == 0);
    CHECK(test::listing(root.path()) == "<script>alert('&')< out run.html run.json text.txt");
    const std::string text = test::read_bytes(root / "run.html");
    const json run = json::parse(test::read_bytes(root / "run.json"));
    const test::markup page(text);
    CHECK(page.error() == "");
    check_self_contained(page, text);
    const auto values = data_values(page);
    for (const json& each : run["models"])
      for (const char* key : {"bytes", "perplexity", "increase", "kl_divergence"})
        if (each.contains(key)) CHECK(values.count(each[key].dump()) >= 1);
    CHECK_THAT(page.words(), Contains("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;, W4A16_ASYM"));
  }
}

TEST_CASE("a report that cannot be written is refused before the work, by name, and leaves nothing") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  test::fs::create_directory(root / "directory");
  const std::string before = test::listing(root.path());
  const auto refused = [&](const std::string& report, int status) {
    const auto result = test::run_program(
        "awq_mistral", {"--model", root.path() / "model", "--output", root.path() / "out", "--group-size", "32",
                        "--json", root.path() / "run.json", "--report", report});
    CHECK(result.status == status);
    CHECK(result.out.empty());
    CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
    CHECK(test::listing(root.path()) == before);
    return result.err;
  };
  CHECK_THAT(refused(root.path() / "no/report.html", 1), Contains("no/report.html"));
  CHECK_THAT(refused(root.path() / "directory", 1), Contains("directory"));
  CHECK_THAT(refused(root.path() / "run.json", 2), Contains("--report") && Contains("--json"));
  CHECK_THAT(refused(root.path() / "." / "run.json", 2), Contains("--report") && Contains("--json"));
  CHECK_THAT(refused(root.path() / "out", 2), Contains("which is replaced as a whole"));
  CHECK_THAT(refused(root.path() / "out/./report.html", 2), Contains("which is replaced as a whole"));
}

TEST_CASE("a recipe of several groups, with layers left as they were, has its page and its card") {
  const test::temporary_directory root;
  test::write_model({}, root / "model");
  test::write_bytes(
      root / "recipe.yaml",
      "default_stage:\n  default_modifiers:\n    AWQModifier:\n      ignore: [lm_head, 're:.*layers.1.mlp.*']\n"
      "      config_groups:\n"
      "        wide: {targets: ['re:.*down_proj$'], weights: {num_bits: 8, group_size: 32, strategy: group}}\n"
      "        rest: {targets: [Linear], weights: {num_bits: 4, symmetric: false, group_size: 16, strategy: group}}\n");
  const auto result =
      test::run_program("awq_mistral", {"--model", root / "model", "--output", root / "out", "--recipe",
                                        root / "recipe.yaml", "--num-calibration-samples", "2", "--max-seq-length",
                                        "64", "--json", root / "run.json", "--report", root / "run.html"});
  CAPTURE(result.err);
  REQUIRE(result.status == 0);
  const std::string text = test::read_bytes(root / "run.html");
  const json run = json::parse(test::read_bytes(root / "run.json"));
  const test::markup page(text);
  CHECK(page.error() == "");
  CHECK_THAT(page.words(), Contains(run["packing"].get<std::string>()) && Contains("nothing was evaluated"));
  CHECK_THAT(run["packing"].get<std::string>(), Contains("8 bits") && Contains("4 bits, asymmetric, groups of 16"));
  const auto values = data_values(page);
  size_t linears = 0;
  for (const json& layer : run["layers"])
    for (const json& linear : layer["linears"]) {
      ++linears;
      for (const char* key : {"loss", "round_to_nearest_loss"}) CHECK(values.count(linear[key].dump()) >= 1);
    }
  CHECK(linears == 11);
  CHECK_THAT(test::read_bytes(root / "out/README.md"), Contains(run["packing"].get<std::string>()));
}

}  // namespace report_page_tests
