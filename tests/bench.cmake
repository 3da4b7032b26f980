# Every bench compiles without a warning; the preset `bench` builds them, which takes as long as the tests of a row.
find_package(benchmark QUIET)
if(NOT benchmark_FOUND)
  string(APPEND left_out "left out: benches, for there is no Google Benchmark\n")
  return()
endif()
get_target_property(benchmark_flags benchmark::benchmark INTERFACE_INCLUDE_DIRECTORIES)
list(REMOVE_ITEM benchmark_flags ${CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES})  # /usr/include, which hides the compiler's own when it is named
list(TRANSFORM benchmark_flags PREPEND -I)
file(GLOB benches CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/bench ${PROJECT_SOURCE_DIR}/bench/*.cpp)
foreach(source IN LISTS benches)
  add_test(NAME "bench/${source} compiles"
           COMMAND ${CMAKE_CXX_COMPILER} -std=c++17 -fsyntax-only -Wall -Wextra -Wconversion -Wno-sign-conversion -Werror ${header_flags}
                   -I${PROJECT_SOURCE_DIR}/examples -isystem ${CBLAS_INCLUDE_DIR} ${benchmark_flags}
                   ${PROJECT_SOURCE_DIR}/bench/${source})
endforeach()
