# Where there is a CUDA toolkit: every header, the rows inside a kernel and the kernels under nvcc, what runs on a device
# under NVRTC too. Only NIBBLE_CUDA needs a GPU, to run what it builds.
find_program(NIBBLE_NVCC nvcc HINTS ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(NOT NIBBLE_NVCC)
  string(APPEND left_out "left out: headers under nvcc and NVRTC, for there is no CUDA toolkit\n")
  return()
endif()

file(GLOB device_headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/include/nibble/*.hpp)
file(GLOB kernel_headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/kernels
     ${PROJECT_SOURCE_DIR}/kernels/nibble/kernels/*.hpp)
set(cuda_flags -std=c++17 -I${PROJECT_SOURCE_DIR}/include -I${PROJECT_SOURCE_DIR}/kernels -I${PROJECT_SOURCE_DIR}/examples
               -Werror all-warnings -Xcompiler -Wall,-Wextra,-fsyntax-only -c -o /dev/null)
set(one_architecture -gencode arch=compute_80,code=compute_80)
set(oldest_and_newest -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a)
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/empty.cu "")
# What runs on a device as well is compiled alone by NVRTC, below, and by the host's compilers.
foreach(header IN LISTS kernel_headers launchers)
  add_test(NAME "${header} compiles alone under nvcc"
           COMMAND ${NIBBLE_NVCC} ${cuda_flags} ${one_architecture} -include ${header} ${CMAKE_CURRENT_BINARY_DIR}/empty.cu)
endforeach()
add_test(NAME "all launchers compile in one program under nvcc" COMMAND ${NIBBLE_NVCC} ${cuda_flags} ${oldest_and_newest} ${every_launcher})
file(GLOB sources CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} cuda/*.cu)
foreach(source IN LISTS sources)
  set(architectures ${oldest_and_newest})
  if(source STREQUAL "cuda/main.cu")  # which has no kernel
    set(architectures ${one_architecture})
  endif()
  add_test(NAME "${source} compiles under nvcc" COMMAND ${NIBBLE_NVCC} ${cuda_flags} ${architectures} ${CMAKE_CURRENT_SOURCE_DIR}/${source})
endforeach()

file(GLOB kernels CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} cuda/kernels/*.cu)
foreach(source IN LISTS kernels)
  get_filename_component(name ${source} NAME_WE)
  add_test(NAME "${source} compiles under nvcc without spilling registers"
           COMMAND ${PROJECT_SOURCE_DIR}/tools/build_architectures.sh --nvcc ${NIBBLE_NVCC} --arch sm_90a
                   --work ${CMAKE_CURRENT_BINARY_DIR}/architectures/${name} ${CMAKE_CURRENT_SOURCE_DIR}/${source})
endforeach()

if(NIBBLE_CUDA)
  nibble_find_cuda()
  add_subdirectory(cuda)
endif()

get_filename_component(cuda_root ${NIBBLE_NVCC} DIRECTORY)
get_filename_component(cuda_root ${cuda_root} DIRECTORY)
find_path(NIBBLE_CUDA_FLOAT_INCLUDE_DIR cuda_fp4.h HINTS ${cuda_root} PATH_SUFFIXES include NO_CACHE)
if(NIBBLE_CUDA_FLOAT_INCLUDE_DIR)
  add_executable(float_formats cuda/float_formats.cpp)
  target_include_directories(float_formats SYSTEM PRIVATE ${NIBBLE_CUDA_FLOAT_INCLUDE_DIR})
  target_link_libraries(float_formats PRIVATE nibble_host)
  nibble_compile(float_formats)
  add_test(NAME "fp8 and fp4 codes are those of CUDA's own types" COMMAND float_formats)
else()
  string(APPEND left_out "left out: fp8 and fp4 beside CUDA's own types, which this CUDA toolkit lacks\n")
endif()
find_path(NIBBLE_NVRTC_INCLUDE_DIR nvrtc.h HINTS ${cuda_root} PATH_SUFFIXES include NO_CACHE)
find_library(NIBBLE_NVRTC nvrtc HINTS ${cuda_root} PATH_SUFFIXES lib64 lib)
if(NOT NIBBLE_NVRTC OR NOT NIBBLE_NVRTC_INCLUDE_DIR)
  string(APPEND left_out "left out: headers under NVRTC, which this CUDA toolkit lacks\n")
  return()
endif()
add_executable(nvrtc cuda/nvrtc.cpp)
target_include_directories(nvrtc SYSTEM PRIVATE ${NIBBLE_NVRTC_INCLUDE_DIR})
target_link_libraries(nvrtc PRIVATE ${NIBBLE_NVRTC})
nibble_compile(nvrtc)
list(TRANSFORM kernels PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
foreach(source IN LISTS device_headers device_code kernels ITEMS nibble/kernels/status.hpp nibble/kernels/tuning.hpp
        ${CMAKE_CURRENT_SOURCE_DIR}/cuda/rows.cu)
  string(REPLACE "${CMAKE_CURRENT_SOURCE_DIR}/" "" name ${source})
  set(how "compiles under NVRTC")
  set(unfused)
  if(name STREQUAL "cuda/kernels/block.cu")  # whose bytes are ggml's, which fuses nothing
    set(how "compiles under NVRTC and fuses no product with a sum")
    set(unfused --unfused)
  endif()
  add_test(NAME "${name} ${how}"
           COMMAND nvrtc ${unfused} compute_90 ${source} ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/kernels ${PROJECT_SOURCE_DIR}/examples
                   ${NIBBLE_NVRTC_INCLUDE_DIR} ${NIBBLE_NVRTC_INCLUDE_DIR}/cccl)
endforeach()
add_test(NAME "all kernels compile in one program under NVRTC"
         COMMAND nvrtc compute_90 ${every_kernel} ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/kernels ${PROJECT_SOURCE_DIR}/examples
                 ${NIBBLE_NVRTC_INCLUDE_DIR} ${NIBBLE_NVRTC_INCLUDE_DIR}/cccl)
