# What the tests, examples and benches are built with; the headers themselves need none of it.
# tools/install_dependencies.sh installs all of it on Debian.
find_package(PkgConfig REQUIRED)
find_package(nlohmann_json REQUIRED)
if(NOT BLA_VENDOR)
  set(BLA_VENDOR OpenBLAS)
endif()
find_package(BLAS REQUIRED)
pkg_check_modules(openblas QUIET openblas)
find_path(CBLAS_INCLUDE_DIR cblas.h HINTS ${openblas_INCLUDE_DIRS} REQUIRED)
