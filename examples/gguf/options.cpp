// SPDX-License-Identifier: Apache-2.0
#include "gguf/options.hpp"

#include <limits>

#include "gguf/carry.hpp"
#include "gguf/mix.hpp"
#include "mistral/error.hpp"
#include "mistral/file.hpp"
#include "mistral/sizes.hpp"
#include "mistral/validators.hpp"
#include "nibble/version.hpp"
#include "pass/options.hpp"

namespace nibble::mistral {

namespace fs = std::filesystem;

namespace {

constexpr const char* calibration_text = "/examples/awq_mistral/text/calibration-state-of-the-union-2000-2012.txt";

void add_calibration(CLI::App& app, gguf_options& o) {
  app.add_option("--calibration", o.calibration,
                 "Text to calibrate on: .txt, or .jsonl with text, messages, or instruction/input; a text that comes "
                 "with the program unless given")
      ->type_name("FILE");
  app.add_option("--num-calibration-samples", o.samples.samples, "Sequences of it to use")
      ->check(whole(1, 1000000))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--max-seq-length", o.samples.max_length, "Tokens of a sequence at most")
      ->check(whole(1, 10000000))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--seed", o.samples.seed, "Chooses which lines of a longer .jsonl are drawn, and in what order")
      ->check(whole(0, std::numeric_limits<std::uint64_t>::max()))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--matmul-precision", o.precision,
                 "What calibration multiplies; sums are float32. auto: bfloat16 where that is faster and the "
                 "checkpoint's own type")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}).description(""))
      ->capture_default_str()
      ->type_name("auto|float32|bfloat16");
}

void check_output_file(const gguf_options& o) {
  std::error_code failed;
  const fs::path output = o.output, parent = fs::absolute(output).parent_path();
  if (output.extension() != ".gguf") throw usage_error("--output must end in .gguf, by which loaders know the format");
  if (!fs::is_directory(o.model, failed)) throw error("there is no model directory " + o.model);
  if (!fs::is_directory(parent, failed))
    throw error("the output " + o.output + " cannot be made: there is no directory " + parent.string());
  for (const fs::path& file : {output, modelfile_of(output)}) {
    if (fs::is_directory(file, failed)) throw error("the output " + file.string() + " is a directory; name a file");
    if (!o.overwrite && fs::exists(fs::symlink_status(file, failed)))
      throw error("the output " + file.string() + " exists already; --overwrite replaces it");
  }
}

void check_importance_output(const gguf_options& o) {
  if (o.importance_output.empty()) return;
  if (!o.own_importance())
    throw usage_error("--imatrix-output is for what --imatrix auto finds; give that too, or leave it out");
  std::error_code failed;
  const fs::path file = o.importance_output, parent = fs::absolute(file).parent_path();
  if (file.extension() != ".gguf")
    throw usage_error("--imatrix-output must end in .gguf, by which llama.cpp knows the form");
  if (same_file(file, o.output))
    throw usage_error("--imatrix-output and --output name the same file; the matrix needs another");
  if (!fs::is_directory(parent, failed))
    throw error("the matrix " + file.string() + " cannot be made: there is no directory " + parent.string());
  if (fs::is_directory(file, failed)) throw error("the matrix " + file.string() + " is a directory; name a file");
  if (!o.overwrite && fs::exists(fs::symlink_status(file, failed)))
    throw error("the matrix " + file.string() + " exists already; --overwrite replaces it");
}

}  // namespace

std::optional<host::matmul_precision> gguf_options::matmul_precision() const {
  return value_of(precision_choices, precision);
}

std::string gguf_type_names() {
  std::string names;
  for (const mix& m : mixes()) names += m.name + std::string("|");
  return names + exact_mix().name;
}

void add_options(CLI::App& app, gguf_options& o) {
  app.set_help_flag("--help", "Print this and exit");
  app.set_version_flag("--version", "nibble " NIBBLE_VERSION, "Print the version and exit");
  app.add_option("--model", o.model,
                 "Directory of the model: config.json, safetensors, tokenizer; dense, or packed by this project's "
                 "programs; the small model that comes with the program unless given")
      ->type_name("DIR");
  app.add_option("--output", o.output, "The file to write, NAME.gguf; it appears only when whole; required")
      ->type_name("FILE");
  app.add_option(
         "--type", o.type,
         "File type of llama.cpp: " + gguf_type_names() +
             "; those with S, M or L give some tensors more bits; EXACT rounds nothing: codes of packed linears "
             "stay what they are, floats as they are stored")
      ->capture_default_str()
      ->type_name("TYPE");
  app.add_option("--target-bpw", o.target.bits_per_weight,
                 "In the place of --type: a type for each tensor, such that the model is as good as it can be with at "
                 "most so many bits per weight of all tensors together, by errors measured on this model")
      ->check(between(1, 32).description(""))
      ->type_name("BITS");
  app.add_option("--target-size", o.target_size, "The same by the size of the file at most, such as 4GB or 3800MiB")
      ->type_name("SIZE");
  app.add_option("--search", o.search,
                 "How blocks are found: ggml, in the bytes of llama.cpp's own encoders; or exhaustive, with less error "
                 "in as many bits, which takes 6 to 50 times as long")
      ->check(CLI::IsMember({"ggml", "exhaustive"}).description(""))
      ->capture_default_str()
      ->type_name("ggml|exhaustive");
  app.add_option("--imatrix", o.importance,
                 "Columns that activations are large in count more: auto, by a calibration of the model itself; or an "
                 "importance matrix in GGUF, as llama.cpp's llama-imatrix or --imatrix-output wrote it")
      ->type_name("auto|FILE");
  app.add_option("--imatrix-output", o.importance_output,
                 "Write what --imatrix auto found to FILE.gguf too, for later runs with --imatrix FILE.gguf and for "
                 "llama-quantize; it is there as soon as calibration is done, and not after a dry run")
      ->type_name("FILE");
  app.add_flag("--awq", o.awq,
               "Scale the columns of linears before they are rounded, by what calibration finds to lose least of their "
               "outputs in the types they get, and what comes before by the inverse: the model computes the same, in "
               "as many bits. Of dense models only");
  add_calibration(app, o);
  app.add_option("--name", o.name, "What the file calls the model; the directory's name unless given")
      ->type_name("TEXT");
  app.add_flag("--overwrite", o.overwrite, "Replace an output that exists");
  app.add_flag("--dry-run", o.dry_run, "Check everything and tell what each tensor would become; write nothing");
  app.add_option("--threads", o.threads, "Threads to use; as many as the machine has unless given")
      ->check(whole(1, 4096))
      ->type_name("N");
  app.add_option("--json", o.json, "Print tensors and figures as JSON, or write them to FILE")
      ->expected(0, 1)
      ->type_name("[FILE]");
}

void settle(const CLI::App& app, gguf_options& o) {
  o.print_json = app.count("--json") > 0;
  const size_t targets = app.count("--target-bpw") + app.count("--target-size");
  if (targets + app.count("--type") > 1)
    throw usage_error("--type, --target-bpw and --target-size exclude each other; give one");
  if (app.count("--target-size") > 0) o.target.bytes = parse_size(o.target_size, "--target-size");
  if (app.count("--calibration") > 0 && !o.calibrated() && !o.targeted())
    throw usage_error("--calibration is for --imatrix auto, --awq and targets; give one of them too, or leave it out");
  for (const char* option : {"--num-calibration-samples", "--max-seq-length", "--seed", "--matmul-precision"})
    if (app.count(option) > 0 && !o.calibrated())
      throw usage_error(std::string(option) +
                        " is for --imatrix auto and --awq; give one of them too, or leave it out");
  if (o.calibration.empty()) o.calibration = source_directory + std::string(calibration_text);
}

fs::path modelfile_of(const fs::path& output) {
  return fs::path(output).replace_extension(".Modelfile");
}

void check_outputs(const gguf_options& o) {
  if (o.output.empty()) throw usage_error("--output is required");
  check_output_file(o);
  check_importance_output(o);
  if (o.json.empty()) return;
  check_not_read("--json", o.json, {o.calibration, o.own_importance() ? "" : o.importance});
  for (const fs::path& file : {fs::path(o.output), modelfile_of(o.output), fs::path(o.importance_output)})
    if (!file.empty() && same_file(o.json, file))
      throw usage_error("--json would be written over " + file.string() + "; the figures need a file of their own");
}

}  // namespace nibble::mistral
