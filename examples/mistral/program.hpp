// SPDX-License-Identifier: Apache-2.0
/// @file
/// How the example programs end: 0 when all went well, 1 for bad input, 2 for a wrong option; one sentence on stderr says
/// what was wrong.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "error.hpp"
#include "file.hpp"
#include "help.hpp"
#include "utf8.hpp"

namespace nibble::mistral {

/// `sentence` on one line of a terminal: what a file holds may stand in it, control characters and all.
inline std::string printable(std::string sentence) {
  constexpr std::size_t longest = 2000;
  if (sentence.size() > longest) sentence = utf8_repaired(sentence.substr(0, longest)) + " …";
  for (char& c : sentence)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  return sentence;
}

/// Reads the command line into `app`'s options, then calls run(), whose result is the exit status.
template <class F>
int run_program(CLI::App& app, int argc, char** argv, F&& run) {
  const auto complain = [&](const std::string& what, int status) {
    std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), printable(what).c_str());
    return status;
  };
  fail_writes_past_a_size_limit();
  app.formatter(std::make_shared<help_formatter>());
  try {
    app.parse(argc, argv);
    const int status = run();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      throw error("not all could be written to standard output; is what takes it full?");
    return status;
  } catch (const CLI::CallForHelp&) {
    std::fputs(app.help().c_str(), stdout);
    return 0;
  } catch (const CLI::CallForVersion& version) {
    std::printf("%s\n", version.what());
    return 0;
  } catch (const CLI::ParseError& wrong) {
    return complain(std::string(wrong.what()) + "; see --help", 2);
  } catch (const usage_error& wrong) {
    return complain(std::string(wrong.what()) + "; see --help", 2);
  } catch (const error& bad) {
    return complain(bad.what(), 1);
  } catch (const std::bad_alloc&) {
    return complain("there is not enough memory", 1);
  } catch (const std::exception& unforeseen) {
    return complain(std::string("internal error: ") + unforeseen.what(), 1);
  }
}

}  // namespace nibble::mistral
