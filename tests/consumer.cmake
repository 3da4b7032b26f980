# A project of somebody else's uses the installed package, the source tree, and a plain copied include/, as README shows.
foreach(kind IN ITEMS installed targets subdirectory copied)
  add_test(NAME "a consumer builds and runs: ${kind}"
           COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/consumer/consume.sh ${kind} ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}
                   ${CMAKE_CXX_COMPILER})
endforeach()
add_test(NAME "README shows the code that the consumer tests build"
         COMMAND ${CMAKE_COMMAND} -DREADME=${PROJECT_SOURCE_DIR}/README.md
                 "-DSNIPPETS=${CMAKE_CURRENT_SOURCE_DIR}/consumer/installed/CMakeLists.txt|${CMAKE_CURRENT_SOURCE_DIR}/consumer/subdirectory/CMakeLists.txt|${CMAKE_CURRENT_SOURCE_DIR}/consumer/main.cpp"
                 -P ${CMAKE_CURRENT_SOURCE_DIR}/readme_snippets.cmake)
