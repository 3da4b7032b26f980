# Every kernel on the SIMT executor: tests/*.cu, which also run on a GPU, compiled as C++ against the executor's CUDA, and
# tests/simt, which tests the executor itself.
find_package(Boost COMPONENTS context)
if(NOT Boost_CONTEXT_FOUND)
  string(APPEND left_out "left out: kernels on the SIMT executor, for there is no Boost.Context\n")
  return()
endif()

file(GLOB kernel_tests CONFIGURE_DEPENDS *.cu simt/*.cu)
file(GLOB mistral_cuda_tests CONFIGURE_DEPENDS mistral_cuda/*.cu)
file(GLOB mistral_program_tests CONFIGURE_DEPENDS mistral_cuda/*programs.cu)
list(REMOVE_ITEM mistral_cuda_tests ${mistral_program_tests})
file(GLOB mistral_cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/examples/mistral/cuda/*.cu)

# A switch of fibres takes g++'s ThreadSanitizer ten times as long as clang++'s, so that one builds these tests in a tree of
# its own.
if(NIBBLE_SANITIZE MATCHES thread AND NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  find_program(NIBBLE_clang++ clang++)
  if(NOT NIBBLE_clang++)
    string(APPEND left_out "left out: kernels under ThreadSanitizer, for there is no clang++\n")
    return()
  endif()
  include(ExternalProject)
  ExternalProject_Add(
    simt_tests
    SOURCE_DIR ${PROJECT_SOURCE_DIR}
    BINARY_DIR ${PROJECT_BINARY_DIR}/clang
    CMAKE_ARGS -DCMAKE_CXX_COMPILER=${NIBBLE_clang++} -DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}
               -DCMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER} -DNIBBLE_SANITIZE=${NIBBLE_SANITIZE}
               -DNIBBLE_EXAMPLES=${NIBBLE_EXAMPLES} -DCMAKE_CXX_FLAGS_RELWITHDEBINFO=${CMAKE_CXX_FLAGS_RELWITHDEBINFO}
    BUILD_COMMAND ${CMAKE_COMMAND} --build . --target simt_suite
    BUILD_ALWAYS ON
    INSTALL_COMMAND "")
  add_custom_target(simt_suite DEPENDS simt_tests)
  function(watched_tests program)
    foreach(source IN LISTS ARGN)
      get_filename_component(name ${source} NAME_WE)
      add_test(NAME "simt/${name}.cu of ${program} under ThreadSanitizer"
               COMMAND ${PROJECT_BINARY_DIR}/clang/bin/${program} --filenames-as-tags "[#${name}]" --warn NoTests)
      set_tests_properties("simt/${name}.cu of ${program} under ThreadSanitizer" PROPERTIES LABELS simt)
    endforeach()
  endfunction()
  watched_tests(simt_tests ${kernel_tests})
  if(NIBBLE_EXAMPLES)
    watched_tests(mistral_simt_tests ${mistral_cuda_tests})
  endif()
  return()
endif()

# Sees no sanitizer itself, but tells them about its fibres: they are to watch the kernels.
add_library(simt OBJECT simt/executor.cpp simt/memory.cpp simt/report.cpp)
target_include_directories(simt PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/simt/include)
target_link_libraries(simt PUBLIC Boost::context ${CMAKE_DL_LIBS})
target_compile_definitions(simt PUBLIC NIBBLE_SIMT)
if(NIBBLE_SANITIZE MATCHES address)
  target_compile_definitions(simt PUBLIC NIBBLE_SIMT_ASAN)
endif()
if(NIBBLE_SANITIZE MATCHES thread)
  target_compile_definitions(simt PUBLIC NIBBLE_SIMT_TSAN)
endif()
target_compile_features(simt PUBLIC cxx_std_17)
target_compile_options(simt PRIVATE -Wall -Wextra -Wconversion -Wno-sign-conversion -O2)

# A target whose .cu files, those named, are C++ here.
function(simt_part name)
  if(ARGN)
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
  endif()
  nibble_compile(${name})
  nibble_compile_together(${name} 4)
  # At -O1 gcc 12 takes empty objects, passed by reference, for uninitialised ones; clang tells of each `#pragma unroll`, which is
  # for nvcc, that it does not follow.
  target_compile_options(${name} PRIVATE -fno-strict-aliasing -Wno-unknown-pragmas ${lightly}
                         $<IF:$<CXX_COMPILER_ID:Clang>,-Wno-pass-failed,-Wno-maybe-uninitialized>)
  set_target_properties(${name} PROPERTIES ENABLE_EXPORTS ON)  # so that messages can name kernels
endfunction()
# A program of tests, each of that label.
function(simt_program name label)
  add_executable(${name} ${ARGN})
  simt_part(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE simt catch_main test_places nibble_kernels)
  target_include_directories(${name} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  catch_discover_tests(${name} TEST_PREFIX "simt/" EXTRA_ARGS --warn NoTests PROPERTIES TIMEOUT 900 LABELS ${label})
endfunction()

simt_program(simt_tests simt ${kernel_tests} ${every_launcher})
target_link_libraries(simt_tests PRIVATE nibble_host nibble_reference nlohmann_json::nlohmann_json ${BLAS_LIBRARIES})
target_include_directories(simt_tests PRIVATE ${CBLAS_INCLUDE_DIR})

add_custom_target(simt_suite DEPENDS simt_tests)  # what `./test.sh --simt` builds

# What the examples do on a GPU, and their programs with the executor for one: awq_mistral_simt and others, which the tests run.
if(NIBBLE_EXAMPLES)
  add_library(mistral_gpu_simt STATIC ${mistral_cuda_sources})
  target_link_libraries(mistral_gpu_simt PUBLIC simt mistral nibble_kernels)
  simt_part(mistral_gpu_simt ${mistral_cuda_sources})
  file(GLOB pass_cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/examples/pass/cuda/*.cu)
  add_library(mistral_pass_gpu_simt OBJECT ${pass_cuda_sources})
  target_link_libraries(mistral_pass_gpu_simt PUBLIC mistral_pass mistral_gpu_simt)
  simt_part(mistral_pass_gpu_simt ${pass_cuda_sources})

  simt_program(mistral_simt_tests simt ${mistral_cuda_tests} ${every_mistral_launcher})
  add_dependencies(simt_suite mistral_simt_tests)
  simt_program(mistral_simt_programs programs ${mistral_program_tests})  # whole runs, which no `--simt` has
  foreach(tests IN ITEMS mistral_simt_tests mistral_simt_programs)
    target_link_libraries(${tests} PRIVATE mistral_pass_gpu_simt mistral_pass mistral_gpu_simt nibble_reference)
  endforeach()
  foreach(program IN ITEMS awq_mistral gptq_mistral smoothquant_mistral perplexity)
    add_executable(${program}_simt ${PROJECT_SOURCE_DIR}/examples/${program}/main.cpp)
    if(program MATCHES "_mistral$")
      target_link_libraries(${program}_simt PRIVATE mistral_pass_gpu_simt mistral_pass)
    endif()
    target_link_libraries(${program}_simt PRIVATE simt mistral_gpu_simt)
    target_include_directories(${program}_simt PRIVATE ${CLI11_INCLUDE_DIR})
    simt_part(${program}_simt)
    add_dependencies(mistral_simt_programs ${program}_simt)
  endforeach()
endif()
