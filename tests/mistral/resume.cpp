// SPDX-License-Identifier: Apache-2.0
/// @file
/// Runs that end before their time, and the same command given again.
#include "mistral/resume.hpp"

#include <sys/resource.h>
#include <sys/time.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <csignal>
#include <map>
#include <random>
#include <thread>

#include "mistral/file.hpp"
#include "mistral/sha256.hpp"
#include "nibble/host/matmul.hpp"
#include "pass/activations.hpp"
#include "support/limits.hpp"
#include "support/model.hpp"
#include "support/program.hpp"
#include "support/victim.hpp"

namespace resume_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using test::words;
using test::operator+;

namespace {

using contents = std::map<std::string, std::string>;

/// Every file of a directory.
contents files_of(const test::fs::path& directory) {
  contents files;
  for (const auto& entry : test::fs::directory_iterator(directory))
    files[entry.path().filename().string()] = sha256(test::read_bytes(entry.path()));
  return files;
}

void alarm_after(double seconds) {
  struct itimerval at = {};
  at.it_value.tv_sec = static_cast<time_t>(seconds);
  at.it_value.tv_usec = static_cast<suseconds_t>((seconds - static_cast<double>(at.it_value.tv_sec)) * 1e6) + 1;
  ::setitimer(ITIMER_REAL, &at,
              nullptr);  // outlives exec; nobody handles SIGALRM, which ends a program where it stands
}

/// A model that takes awq_mistral some time, and how it is quantized.
struct workplace {
  test::temporary_directory root;
  test::fs::path model = root / "model", out = root / "out", partial = root / "out.partial";
  test::fs::path text = root / "text.txt";
  words usual = {"--model",
                 model.string(),
                 "--num-calibration-samples",
                 "16",
                 "--max-seq-length",
                 "128",
                 "--calibration",
                 text.string(),
                 "--group-size",
                 "32"};

  workplace() {
    test::model_spec spec;
    spec.layers = 6;
    test::write_model(spec, model);
    test::write_bytes(text, test::read_bytes(test::embedded("text/heldout-persuasion.txt")).substr(0, 20000));
  }

  std::string program = "awq_mistral";

  test::outcome run(const words& more = {}, const std::function<void()>& prepare = nullptr) const {
    return test::run_program(program, usual + words{"--output", out.string()} + more, root.path(), prepare);
  }
  test::outcome killed_after(double seconds, const words& more = {}) const {
    return run(more, [seconds] { alarm_after(seconds); });
  }
  /// A run that nobody disturbs: what it wrote, and the seconds it took.
  std::pair<contents, double> undisturbed(const words& more = {}) const {
    const auto elsewhere = root / "whole" / out.filename();  // of the same name, which the model card tells
    test::fs::create_directory(root / "whole");
    const auto start = std::chrono::steady_clock::now();
    const auto result = test::run_program(program, usual + words{"--output", elsewhere.string()} + more);
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    REQUIRE(result.status == 0);
    contents whole = files_of(elsewhere);
    test::fs::remove_all(root / "whole");
    return {whole, spent.count()};
  }
  /// Runs until something is kept to go on from, and is sent `signal` so much later. Again where that was too late.
  test::outcome signalled(int signal, std::chrono::microseconds later = {}) const {
    for (int tries = 0;; ++tries) {
      REQUIRE(tries < 100);
      std::atomic<bool> over{false};
      int ends[2];
      REQUIRE(::pipe(ends) == 0);
      std::thread sender([&] {
        pid_t child = 0;
        if (::read(ends[0], &child, sizeof(child)) != sizeof(child)) return;
        while (!over && !test::fs::exists(partial / resume_file))
          std::this_thread::sleep_for(std::chrono::microseconds(100));
        std::this_thread::sleep_for(later);
        if (!over) ::kill(child, signal);
      });
      const auto result = run({}, [&] {
        ::signal(signal, SIG_DFL);  // nohup leaves SIGHUP ignored
        const pid_t self = ::getpid();
        if (::write(ends[1], &self, sizeof(self)) != sizeof(self)) ::_exit(126);
      });
      over = true;
      sender.join();
      ::close(ends[0]);
      ::close(ends[1]);
      if (!test::fs::exists(out)) return result;
      test::fs::remove_all(out);
    }
  }
  /// Kills runs, each later than the one before, until one leaves something to go on from.
  void leave_unfinished(const words& more = {}) const {
    for (double seconds = 0.02; !test::fs::exists(partial / resume_file); seconds *= 1.2) {
      REQUIRE(killed_after(seconds, more).status == -SIGALRM);
      REQUIRE(seconds < 60);
    }
    REQUIRE(!test::fs::exists(out));
  }
};

/// Adds tensors `from` … `to` − 1, of sizes that fit a shard, fill one, and pass over its end; with odd sizes between.
void add(safetensors_writer& writer, index_t from, index_t to) {
  for (index_t i = from; i < to; ++i) {
    const index_t size = i % 3 == 2 ? 5 + i : 64 * (1 + i % 4);
    const std::string data = [&] {
      std::string bytes;
      for (index_t at = 0; at < size; ++at) bytes += static_cast<char>(31 * i + 7 * at);
      return bytes;
    }();
    writer.add("tensor." + std::to_string(i), "U8", {size}, data.data(), static_cast<std::uint64_t>(size));
  }
}

constexpr index_t tensor_count = 14;

contents written_at_once(const test::fs::path& directory, std::uint64_t shard) {
  test::fs::create_directory(directory);
  safetensors_writer writer(directory, shard);
  add(writer, 0, tensor_count);
  writer.finish();
  return files_of(directory);
}

}  // namespace

TEST_CASE("a writer goes on from any state, whatever was done after it, and gives the same files") {
  enum class after { added, saved, finished };
  for (const std::uint64_t shard : {300, 700, 1 << 20}) {
    const test::temporary_directory root;
    const auto whole = written_at_once(root / "whole", shard);
    const auto directory = root / "partial";
    const auto goes_on = [&](index_t first, index_t lost, after end) {
      CAPTURE(shard, first, lost, static_cast<int>(end));
      test::fs::create_directory(directory);
      nlohmann::json state;
      {
        safetensors_writer writer(directory, shard);
        add(writer, 0, first);
        state = nlohmann::json::from_cbor(nlohmann::json::to_cbor(writer.state()));
        add(writer, first, lost);
        if (end == after::saved) writer.state();
        if (end == after::finished) writer.finish();
      }
      safetensors_writer writer(directory, shard, state);
      add(writer, first, tensor_count);
      writer.finish();
      writer.check();
      discard_unfinished(directory);
      CHECK(files_of(directory) == whole);
      test::fs::remove_all(directory);
    };
    for (index_t first = 1; first <= tensor_count; ++first) {
      for (index_t lost = first; lost <= tensor_count; ++lost) goes_on(first, lost, after::added);
      goes_on(first, std::min(first + 1, tensor_count), after::saved);
      goes_on(first, tensor_count, after::finished);
    }
  }
}

TEST_CASE("a writer's check names a tensor that is not what was added") {
  const test::temporary_directory root;
  safetensors_writer writer(root.path(), 1 << 20);
  add(writer, 0, tensor_count);
  writer.finish();
  writer.check();
  auto bytes = test::read_bytes(root / "model.safetensors");
  bytes[bytes.size() - 3] ^= 1;
  test::write_bytes(root / "model.safetensors", bytes);
  CHECK_THAT(test::refusal([&] { writer.check(); }), Contains(root.path().string()) && Contains("tensor."));
}

TEST_CASE("killed at ten random moments and run again, awq_mistral writes the bytes of an unbroken run") {
  const workplace w;
  const auto [whole, seconds] = w.undisturbed();
  std::mt19937 random(20260101);
  std::uniform_real_distribution<double> moment(0, seconds);
  int gone_on = 0;
  for (int i = 0; i < 10; ++i) {
    // Five while something is kept, five whenever: most of these before the first layer is done.
    if (i % 2 == 0)
      w.signalled(SIGKILL, std::chrono::microseconds(static_cast<int>(2e5 * moment(random))));
    else
      while (w.killed_after(moment(random)), test::fs::exists(w.out)) test::fs::remove_all(w.out);  // too late
    gone_on += test::fs::exists(w.partial / resume_file) ? 1 : 0;
    const auto again = w.run();
    CAPTURE(i, again.err);
    REQUIRE(again.status == 0);
    CHECK(files_of(w.out) == whole);
    CHECK(!test::fs::exists(w.partial));
    test::fs::remove_all(w.out);
  }
  CHECK(gone_on >= 5);
}

TEST_CASE("killed again and again, a pass still writes the bytes of an unbroken run") {
  const std::vector<std::pair<const char*, words>> runs = {{"awq_mistral", {"--max-shard-size", "60kB"}},
                                                           {"awq_mistral", {"--propagate", "quantized"}},
                                                           {"awq_mistral", {"--method", "rtn", "--format", "awq-gemm"}},
                                                           {"gptq_mistral", {}},
                                                           {"gptq_mistral", {"--propagate", "original"}}};
  for (const auto& [program, more] : runs) {
    CAPTURE(program, more);
    workplace w;
    w.program = program;
    const auto [whole, seconds] = w.undisturbed(more);
    std::mt19937 random(7);
    std::uniform_real_distribution<double> moment(0.2 * seconds, 0.7 * seconds);
    int gone_on = 0;
    for (int attempt = 0; attempt < 10 && gone_on == 0; ++attempt) {  // all kills may come before a layer is done
      test::fs::remove_all(w.out);
      int runs = 1;
      for (;; ++runs) {
        const auto result = w.killed_after(moment(random) * (1 + 0.1 * runs), more);
        CAPTURE(attempt, runs, result.err);
        REQUIRE((result.status == 0 || result.status == -SIGALRM));
        REQUIRE(runs < 1000);
        gone_on += result.err.find("going on with what an interrupted run left") != result.err.npos ? 1 : 0;
        if (test::fs::exists(w.out)) break;
      }
      test::fs::remove(w.out / resume_file);  // is there when the last kill came right after the output got its name
      CHECK(runs > 1);
      CHECK(files_of(w.out) == whole);
      CHECK(!test::fs::exists(w.partial));
    }
    CHECK(gone_on > 0);
  }
}

TEST_CASE("a rerun says what it goes on with, and computes no layer again") {
  const workplace w;
  w.leave_unfinished();
  const auto again = w.run();
  REQUIRE(again.status == 0);
  CHECK_THAT(again.err, Contains("going on with what an interrupted run left") && Contains("of 6 layers"));
  CHECK(again.err.find("quantizing: layer 1 of 6") == std::string::npos);
  CHECK_THAT(again.err, Contains("quantizing: layer 6 of 6"));
}

TEST_CASE("a run that went on where calibration multiplies otherwise tells of both") {
  const workplace w;
  w.leave_unfinished();
  auto json = nlohmann::json::from_cbor(test::read_bytes(w.partial / resume_file));
  json["state"]["precisions"] = nlohmann::json::array({"another"});
  const auto bytes = nlohmann::json::to_cbor(json);
  test::write_bytes(w.partial / resume_file, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  const std::string figures = (w.root / "figures.json").string();
  REQUIRE(w.run({"--json", figures}).status == 0);
  const auto told = nlohmann::json::parse(test::read_bytes(figures)).at("options").at("matmul_precision");
  const bool rounds = host::fastest_precision() == host::matmul_precision::bfloat16;
  CHECK(told == std::string("another, ") + (rounds ? "bfloat16" : "float32"));
}

TEST_CASE("a rerun with other options, another text or another model is refused by what differs, and can restart") {
  const workplace w;
  const auto usual_result = w.undisturbed({"--shrinkage", "0.25"}).first;
  w.leave_unfinished();
  const auto left = files_of(w.partial);
  const auto refused = [&](const words& more) {
    const auto result = w.run(more);
    CHECK(result.status == 2);
    CHECK(result.out.empty());
    const std::string sentence = test::sentence_of("awq_mistral", result.err);
    CHECK_THAT(sentence, Contains(w.partial.string()) && Contains("--restart"));
    CHECK(files_of(w.partial) == left);
    return sentence;
  };
  CHECK_THAT(refused({"--seed", "43"}), Contains("seed was 42 and is 43"));
  CHECK_THAT(refused({"--scheme", "W3A16_ASYM"}), Contains("bits was 4 and is 3"));
  CHECK_THAT(refused({"--max-shard-size", "1MB"}), Contains("max_shard_bytes"));
  const auto text = test::read_bytes(w.text);
  test::write_bytes(w.text, text + "a");
  CHECK_THAT(refused({}), Contains("calibration was"));
  test::write_bytes(w.text, text);
  const auto weights = w.model / "model.safetensors";
  const auto bytes = test::read_bytes(weights);
  test::fs::last_write_time(weights, test::fs::last_write_time(weights) + std::chrono::seconds(5));
  CHECK_THAT(refused({}), Contains("model.safetensors/written"));

  const auto anew = w.run({"--shrinkage", "0.25", "--restart"});
  CHECK(anew.status == 0);
  CHECK(files_of(w.out) == usual_result);
}

TEST_CASE("where the weights are to go and what is evaluated may differ in a rerun, and threads") {
  const workplace w;
  auto whole = w.undisturbed().first;
  w.leave_unfinished();
  test::fs::rename(w.model, w.root / "moved");
  test::fs::create_directory_symlink(w.root / "moved", w.model);
  test::write_bytes(w.root / "other.txt", std::string(2000, 'a') + " and so on");
  const auto again = w.run({"--threads", "1", "--evaluate", (w.root / "other.txt").string()});
  CAPTURE(again.err);
  REQUIRE(again.status == 0);
  CHECK_THAT(again.err, Contains("going on with"));
  auto found = files_of(w.out);
  CHECK(found["README.md"] != whole["README.md"]);  // it tells what was measured
  found.erase("README.md"), whole.erase("README.md");
  CHECK(found == whole);
}

TEST_CASE("an interrupted run says what is kept, and ends with 128 and the signal's number") {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const workplace w;
    const auto whole = w.undisturbed().first;
    const auto ended = w.signalled(signal);
    CAPTURE(signal, ended.err);
    CHECK(ended.status == 128 + signal);
    CHECK_THAT(ended.err, Contains("awq_mistral: interrupted; ") && Contains("of 6 layers are kept in") &&
                              Contains("the same command goes on from there"));
    CHECK(!test::fs::exists(w.out));
    CHECK(w.run().status == 0);
    CHECK(files_of(w.out) == whole);
  }
}

TEST_CASE("a disk that fills up keeps the layers that are done, and the rerun goes on with them") {
  const workplace w;
  const auto whole = w.undisturbed().first;
  const auto size = test::fs::file_size(w.model / "model.safetensors");
  // Files may grow to a size that holds some layers of one shard, but not all.
  const auto failed = w.run({}, [&] {
    const struct rlimit limit = {size / 3, size / 3};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  });
  CAPTURE(failed.err);
  CHECK(failed.status == 1);
  CHECK_THAT(failed.err, Contains("out.partial") && Contains("layers are kept in") && Contains("goes on from there"));
  CHECK(!test::fs::exists(w.out));
  REQUIRE(test::fs::exists(w.partial / resume_file));
  CHECK(w.run().status == 0);
  CHECK(files_of(w.out) == whole);
}

TEST_CASE("what an interrupted run left is refused by name where it is damaged or gone") {
  const workplace w;
  const auto whole = w.undisturbed().first;
  w.leave_unfinished();
  const auto state = test::read_bytes(w.partial / resume_file);
  const auto refused = [&] {
    const auto result = w.run();
    CAPTURE(result.err);
    CHECK(result.status == 1);
    CHECK_THAT(result.err, Contains(w.partial.string()) && Contains("--restart"));
    CHECK(!test::fs::exists(w.out));
  };
  for (const size_t bytes : {size_t(0), size_t(5), state.size() / 2, state.size() - 1}) {
    CAPTURE(bytes);
    test::write_bytes(w.partial / resume_file, state.substr(0, bytes));
    refused();
  }
  auto json = nlohmann::json::from_cbor(state);
  for (const char* member : {"phase", "layers", "seconds", "writer", "activations", "output_bytes", "precisions"}) {
    CAPTURE(member);
    auto less = json;
    less["state"].erase(member);
    const auto bytes = nlohmann::json::to_cbor(less);
    test::write_bytes(w.partial / resume_file, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    refused();
  }
  test::write_bytes(w.partial / resume_file, state);
  for (const auto& entry : test::fs::directory_iterator(w.partial))
    if (entry.path().filename().string().rfind("shard-", 0) == 0) test::fs::remove(entry.path());
  refused();
  CHECK(w.run({"--restart"}).status == 0);
  CHECK(files_of(w.out) == whole);
}

TEST_CASE("bytes of weights that change while a run lies unfinished are found before the output takes its name") {
  const workplace w;
  w.leave_unfinished();
  for (const auto& entry : test::fs::directory_iterator(w.partial)) {
    if (entry.path().filename().string().rfind("shard-", 0) != 0) continue;
    auto bytes = test::read_bytes(entry.path());
    REQUIRE(bytes.size() > 270'000);
    bytes[265'000] ^= 1;  // behind the room for the header: the first layer's
    test::write_bytes(entry.path(), bytes);
  }
  const auto result = w.run();
  CAPTURE(result.err);
  CHECK(result.status == 1);
  CHECK_THAT(result.err, Contains("out.partial") && Contains("--restart"));
  CHECK(!test::fs::exists(w.out));
}

TEST_CASE("activations that a run saved are computed again when they are damaged, and refused when they cannot be") {
  const workplace w;
  const words more = {"--propagate", "quantized"};
  w.leave_unfinished(more);
  bool found = false;
  for (const auto& entry : test::fs::directory_iterator(w.partial)) {
    if (entry.path().filename().string().rfind("activations", 0) != 0) continue;
    auto bytes = test::read_bytes(entry.path());
    bytes[bytes.size() / 2] ^= 1;
    test::write_bytes(entry.path(), bytes);
    found = true;
  }
  REQUIRE(found);
  const auto result = w.run(more);
  CAPTURE(result.err);
  CHECK(result.status == 1);
  CHECK_THAT(result.err, Contains("activations") && Contains("damaged") && Contains("--restart"));
}

TEST_CASE("activations are saved at once where they are few, and else when that takes a hundredth of the time") {
  const auto seconds = [](double bytes) { return mistral::worth_saving_after(bytes).count(); };
  CHECK(seconds(0) == 0);
  CHECK(seconds(4e6) == 0);
  CHECK(seconds(98e6) == Approx(9.4));  // of a run of some seconds, none
  CHECK(seconds(1e12) == 30);
}

TEST_CASE("a dry run tells shapes, treatment, time, memory and disk, and writes nothing") {
  const workplace w;
  const auto before = test::listing(w.root.path());
  const auto dry = w.run({"--dry-run", "--ignore", "lm_head,re:.*layers.2.mlp.down_proj"});
  CAPTURE(dry.out, dry.err);
  CHECK(dry.status == 0);
  CHECK(test::listing(w.root.path()) == before);
  CHECK_THAT(dry.out,
             Contains("self_attn.q_proj") && Contains("64 x 64") && Contains("4 bits, asymmetric, groups of 32"));
  CHECK_THAT(dry.out, Contains("2") && Contains("stays BF16") && Contains("0-1, 3-5"));
  CHECK_THAT(dry.out, Contains("calibration  2048 tokens in 16 sequences"));
  CHECK_THAT(dry.out,
             Contains("time         about") && Contains("memory ") && Contains("disk ") && Contains("lm_head"));
}

TEST_CASE("a dry run refuses what the run would refuse before its first layer") {
  const workplace w;
  const auto status = [&](const words& more) { return w.run(words{"--dry-run"} + more).status; };
  CHECK(status({"--evaluate", (w.root / "no.txt").string()}) == 1);
  CHECK(status({"--scheme", "W5A16"}) == 2);
  test::fs::create_directory(w.out);
  CHECK(status({}) == 1);
  CHECK(status({"--overwrite"}) == 0);
  test::write_bytes(w.text, "caf\xe9");
  CHECK(status({"--overwrite"}) == 1);
}

TEST_CASE("the size that a dry run tells is that of the weights written") {
  for (const words& more : {words{}, words{"--scheme", "W3A16"}, words{"--format", "awq-gemm"},
                            words{"--format", "awq-gemv"}, words{"--ignore", "lm_head,re:.*mlp.*"}}) {
    CAPTURE(more);
    const workplace w;
    const words rtn = {"--method", "rtn"};
    const auto dry = w.run(rtn + more + words{"--dry-run"});
    CAPTURE(dry.out, dry.err);
    REQUIRE(dry.status == 0);
    double told = 0;
    char unit = 0;
    const auto at = dry.out.find(" now, ");
    REQUIRE(at != std::string::npos);
    REQUIRE(std::sscanf(dry.out.c_str() + at, " now, %lf %c", &told, &unit) == 2);
    REQUIRE(w.run(rtn + more).status == 0);
    const auto bytes = static_cast<double>(test::fs::file_size(w.out / "model.safetensors"));
    const double scale = unit == 'k' ? 1e3 : 1e6;
    // The header comes on top, of about 120 bytes a tensor.
    CHECK(told * scale <= bytes + 0.05 * scale);
    CHECK(told * scale >= bytes - 25e3);
  }
}

}  // namespace resume_tests
