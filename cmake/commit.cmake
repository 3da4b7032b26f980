# cmake -DSOURCE=DIR -DOUTPUT=FILE.cpp -DHEADER=FILE.hpp -DNAMESPACE=NAME -P commit.cmake
# Writes which commit the sources in DIR are at, for programs to tell: build_commit and build_changed, which FILE.hpp declares in
# NAME. Where DIR is not the top of a repository, the environment's NIBBLE_COMMIT, else nothing.
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
if(NOT commit AND "$ENV{NIBBLE_COMMIT}" MATCHES "^[0-9a-zA-Z._-]+$")
  set(commit "$ENV{NIBBLE_COMMIT}")
endif()
set(text "// Made by cmake/commit.cmake.
#include \"${HEADER}\"

namespace ${NAMESPACE} {

const char* const build_commit = \"${commit}\";
const bool build_changed = ${changed};

}  // namespace ${NAMESPACE}
")
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "${text}" @ONLY)
