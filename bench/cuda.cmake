# bench/NAME.cu becomes build/bin/bench_NAME_cuda, and the target cuda_benches builds them all.
nibble_find_cuda()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

set(commit_source ${CMAKE_CURRENT_BINARY_DIR}/commit.cpp)
add_custom_target(bench_commit_source BYPRODUCTS ${commit_source}
                  COMMAND ${CMAKE_COMMAND} -DSOURCE=${PROJECT_SOURCE_DIR} -DOUTPUT=${commit_source}
                          -DHEADER=support/commit.hpp -DNAMESPACE=bench -P ${PROJECT_SOURCE_DIR}/cmake/commit.cmake)
set_source_files_properties(${commit_source} PROPERTIES GENERATED ON)
add_library(bench_commit STATIC ${commit_source})
target_include_directories(bench_commit PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
add_dependencies(bench_commit bench_commit_source)

add_custom_target(cuda_benches)
file(GLOB cuda_benches CONFIGURE_DEPENDS *.cu)
foreach(source IN LISTS cuda_benches)
  get_filename_component(name ${source} NAME_WE)
  add_executable(bench_${name}_cuda ${source})
  target_link_libraries(bench_${name}_cuda PRIVATE bench_commit nibble_kernels benchmark::benchmark CUDA::cudart
                                                   CUDA::cublas)
  set_target_properties(bench_${name}_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON)
  target_compile_options(bench_${name}_cuda PRIVATE -Werror=all-warnings -Xcompiler=-Wall,-Wextra)
  add_dependencies(cuda_benches bench_${name}_cuda)
endforeach()
