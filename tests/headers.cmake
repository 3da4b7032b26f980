# Every header compiles alone, without a warning, under every compiler this machine has: as the oldest standard by one, as a newer one by
# another. All of them together compile as both by each.
set(header_roots ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/reference ${PROJECT_SOURCE_DIR}/kernels)
list(TRANSFORM header_roots PREPEND -I OUTPUT_VARIABLE header_flags)

# Programs that include many headers at once, in which no two names clash.
function(include_together file)
  list(TRANSFORM ARGN REPLACE "(.+)" "#include \"\\1\"\n" OUTPUT_VARIABLE includes)
  string(CONCAT text ${includes})
  file(CONFIGURE OUTPUT ${file} CONTENT "${text}")
endfunction()

set(headers)
foreach(root IN LISTS header_roots)
  file(GLOB_RECURSE found CONFIGURE_DEPENDS RELATIVE ${root} ${root}/*.hpp)
  list(APPEND headers ${found})
endforeach()
include_together(${CMAKE_CURRENT_BINARY_DIR}/every_header_as_c++17.hpp ${headers})
list(REVERSE headers)  # a name that hides another may do so in one order only
include_together(${CMAKE_CURRENT_BINARY_DIR}/every_header_as_c++20.hpp ${headers})

set(standard c++17)
foreach(compiler IN ITEMS g++ clang++)
  find_program(NIBBLE_${compiler} ${compiler})
  if(NOT NIBBLE_${compiler})
    string(APPEND left_out "left out: headers under ${compiler}, which is not installed\n")
    continue()
  endif()
  set(alone ${CMAKE_CURRENT_SOURCE_DIR}/compile_alone.sh ${NIBBLE_${compiler}})
  set(flags ${header_flags} -isystem ${CBLAS_INCLUDE_DIR})
  foreach(header IN LISTS headers)
    add_test(NAME "${header} compiles alone under ${compiler} as ${standard}" COMMAND ${alone} ${standard} ${header} ${flags})
  endforeach()
  foreach(each IN ITEMS c++17 c++20)
    add_test(NAME "all headers compile in one program under ${compiler} as ${each}" COMMAND ${alone} ${each} ${CMAKE_CURRENT_BINARY_DIR}/every_header_as_${each}.hpp ${flags})
  endforeach()
  set(standard c++20)
endforeach()

# What has kernels, together: simt.cmake and cuda.cmake compile it.
file(GLOB launchers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/kernels
     ${PROJECT_SOURCE_DIR}/kernels/nibble/kernels/*.cuh)
file(GLOB mistral_launchers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/examples
     ${PROJECT_SOURCE_DIR}/examples/mistral/cuda/*.cuh)
file(GLOB device_code CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/kernels
     ${PROJECT_SOURCE_DIR}/kernels/nibble/kernels/detail/*.cuh ${PROJECT_SOURCE_DIR}/kernels/nibble/kernels/tuning/*.cuh)
file(GLOB mistral_device_code CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/examples
     ${PROJECT_SOURCE_DIR}/examples/mistral/cuda/detail/*.cuh ${PROJECT_SOURCE_DIR}/examples/pass/cuda/detail/*.cuh)
set(every_launcher ${CMAKE_CURRENT_BINARY_DIR}/every_launcher.cu)
set(every_mistral_launcher ${CMAKE_CURRENT_BINARY_DIR}/every_mistral_launcher.cu)
set(every_kernel ${CMAKE_CURRENT_BINARY_DIR}/every_kernel.cu)
include_together(${every_launcher} ${launchers})
include_together(${every_mistral_launcher} ${launchers} ${mistral_launchers})
include_together(${every_kernel} ${device_code} ${mistral_device_code})
