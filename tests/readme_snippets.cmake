# cmake -DREADME=FILE -DSNIPPETS=FILE|FILE... -P readme_snippets.cmake
# Fails unless README shows every snippet word for word, its licence line left out.
file(READ ${README} readme)
string(REPLACE "|" ";" SNIPPETS "${SNIPPETS}")
foreach(snippet IN LISTS SNIPPETS)
  file(READ ${snippet} code)
  string(REGEX REPLACE "^// SPDX[^\n]*\n" "" code "${code}")
  string(FIND "${readme}" "${code}" position)
  if(position EQUAL -1)
    message(SEND_ERROR "README.md does not show ${snippet} as it stands")
  endif()
endforeach()
