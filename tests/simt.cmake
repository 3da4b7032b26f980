# Every kernel on the SIMT executor: tests/*.cu, which also run on a GPU, compiled as C++ against the executor's CUDA, and
# tests/simt, which tests the executor itself.
find_package(Boost COMPONENTS context)
if(NOT Boost_CONTEXT_FOUND)
  string(APPEND left_out "left out: kernels on the SIMT executor, for there is no Boost.Context\n")
  return()
endif()

# Sees no sanitizer itself, but tells them about its fibres: they are to watch the kernels.
add_library(simt OBJECT simt/executor.cpp)
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

file(GLOB kernel_tests CONFIGURE_DEPENDS *.cu)
file(GLOB executor_tests CONFIGURE_DEPENDS simt/*.cu)
set_source_files_properties(${kernel_tests} ${executor_tests} PROPERTIES LANGUAGE CXX)
add_executable(simt_tests ${kernel_tests} ${executor_tests})
target_link_libraries(simt_tests PRIVATE simt catch_main test_places nibble_host nibble_reference nibble_kernels
                                         nlohmann_json::nlohmann_json ${BLAS_LIBRARIES})
target_include_directories(simt_tests PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CBLAS_INCLUDE_DIR})
nibble_compile(simt_tests)
target_compile_options(simt_tests PRIVATE -fno-strict-aliasing -Wno-unknown-pragmas)
set_target_properties(simt_tests PROPERTIES ENABLE_EXPORTS ON)  # so that messages can name kernels
catch_discover_tests(simt_tests TEST_PREFIX "on the SIMT executor: " EXTRA_ARGS --warn NoTests PROPERTIES TIMEOUT 900)

# The examples' forward pass on CUDA, and the host's beside it.
if(NIBBLE_EXAMPLES)
  file(GLOB mistral_cuda_tests CONFIGURE_DEPENDS mistral_cuda/*.cu)
  file(GLOB mistral_cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/examples/mistral/cuda/*.cu)
  set_source_files_properties(${mistral_cuda_tests} ${mistral_cuda_sources} PROPERTIES LANGUAGE CXX)
  add_executable(mistral_simt_tests ${mistral_cuda_tests} ${mistral_cuda_sources})
  target_link_libraries(mistral_simt_tests PRIVATE simt catch_main test_places mistral nibble_kernels)
  target_include_directories(mistral_simt_tests PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  nibble_compile(mistral_simt_tests)
  target_compile_options(mistral_simt_tests PRIVATE -fno-strict-aliasing -Wno-unknown-pragmas)
  set_target_properties(mistral_simt_tests PROPERTIES ENABLE_EXPORTS ON)
  catch_discover_tests(mistral_simt_tests TEST_PREFIX "on the SIMT executor: " EXTRA_ARGS --warn NoTests
                       PROPERTIES TIMEOUT 900)
endif()
