# Every header compiles alone, without a warning, under every compiler this machine has.
set(header_roots ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/reference ${PROJECT_SOURCE_DIR}/kernels)
list(TRANSFORM header_roots PREPEND -I OUTPUT_VARIABLE header_flags)

foreach(compiler IN ITEMS g++ clang++)
  find_program(NIBBLE_${compiler} ${compiler})
  if(NOT NIBBLE_${compiler})
    string(APPEND left_out "left out: headers under ${compiler}, which is not installed\n")
    continue()
  endif()
  foreach(root IN LISTS header_roots)
    file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE ${root} ${root}/*.hpp)
    foreach(header IN LISTS headers)
      add_test(NAME "${header} compiles alone under ${compiler}"
               COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/compile_alone.sh ${NIBBLE_${compiler}} ${header} ${header_flags}
                       -isystem ${CBLAS_INCLUDE_DIR})
    endforeach()
  endforeach()
endforeach()
