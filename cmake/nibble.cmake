# Helpers of this build; a project that adds nibble with add_subdirectory sees none of them but the targets.
include(CMakePackageConfigHelpers)

# Warnings, sanitizers and IEEE arithmetic for the targets that this project compiles. Without -ffp-contract=off a
# compiler may fuse a multiplication and an addition where the machine can, and results would depend on the machine.
function(nibble_compile target)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wconversion -Wno-sign-conversion -ffp-contract=off)
  if(NIBBLE_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(NIBBLE_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${NIBBLE_SANITIZE} -fno-sanitize-recover=all
                                             -fno-omit-frame-pointer -g1)
    target_link_options(${target} PRIVATE -fsanitize=${NIBBLE_SANITIZE})
  endif()
endfunction()

# Where NIBBLE_TOGETHER says so, compiles a target's sources a few at once, in half the time: most of it goes into headers and what they
# instantiate. So no two of them may give one name, in an unnamed namespace either, to different things.
function(nibble_compile_together target at_once)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ${NIBBLE_TOGETHER} UNITY_BUILD_BATCH_SIZE ${at_once})
  if(NIBBLE_TOGETHER AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -Wno-subobject-linkage)  # which is about headers, but sees all that is included
  endif()
endfunction()

# The compiler and the GPUs that NIBBLE_CUDA builds for; before enable_language(CUDA).
macro(nibble_find_cuda)
  find_program(NIBBLE_NVCC nvcc HINTS ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT NIBBLE_NVCC)
    message(FATAL_ERROR "NIBBLE_CUDA needs nvcc, the CUDA toolkit's compiler: none is on the PATH, in CUDA_PATH/bin or in /usr/local/cuda/bin")
  endif()
  set(CMAKE_CUDA_COMPILER ${NIBBLE_NVCC} CACHE FILEPATH "CUDA compiler")
  set(CMAKE_CUDA_ARCHITECTURES 80 90a CACHE STRING "GPUs to compile the kernels' tests and benches for")
endmacro()

function(nibble_install)
  install(TARGETS nibble nibble_host nibble_reference nibble_kernels EXPORT nibble_targets)
  install(DIRECTORY include/nibble reference/nibble kernels/nibble DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(EXPORT nibble_targets NAMESPACE nibble:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nibble)
  configure_package_config_file(cmake/nibbleConfig.cmake.in ${PROJECT_BINARY_DIR}/nibbleConfig.cmake
                                INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nibble)
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/nibbleConfigVersion.cmake COMPATIBILITY SameMinorVersion
                                   ARCH_INDEPENDENT)
  install(FILES ${PROJECT_BINARY_DIR}/nibbleConfig.cmake ${PROJECT_BINARY_DIR}/nibbleConfigVersion.cmake
          DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nibble)
endfunction()
