# cmake -DSOURCE=DIR -DOUTPUT=FILE.cpp -P commit.cmake
# Writes which commit the sources in DIR are at, for programs to tell; nothing where DIR is not the top of a repository.
# The file changes only when its content does, so that a build with nothing to do does nothing.
find_program(GIT git)
set(commit "")
set(changed false)
if(GIT)
  execute_process(COMMAND ${GIT} -C ${SOURCE} rev-parse --show-prefix HEAD OUTPUT_VARIABLE told RESULT_VARIABLE failed
                  ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  # The first line is DIR's place in its repository, empty at the top.
  if(failed EQUAL 0 AND told MATCHES "^\n([0-9a-f]+)$")
    set(commit ${CMAKE_MATCH_1})
    execute_process(COMMAND ${GIT} -C ${SOURCE} diff --quiet HEAD RESULT_VARIABLE differs ERROR_QUIET OUTPUT_QUIET)
    if(NOT differs EQUAL 0)
      set(changed true)
    endif()
  endif()
endif()
set(text "// Made by cmake/commit.cmake.
#include \"mistral/provenance.hpp\"

namespace nibble::mistral {

const char* const build_commit = \"${commit}\";
const bool build_changed = ${changed};

}  // namespace nibble::mistral
")
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "${text}" @ONLY)
