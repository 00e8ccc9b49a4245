# Finds RocksDB's shared library and defines the target RocksDB::rocksdb-shared; RocksDB_ROOT says where else to look.
#
# RocksDB's own CMake configuration is not used: its version file takes 8.x for incompatible with a request for 7.8, it
# requires the development packages of every compression library, and it is missing from some distributions. The static
# library is never taken, because distributions build it without position-independent code.

include(CheckCXXSourceCompiles)

find_package(PkgConfig QUIET)
if(PkgConfig_FOUND)
  pkg_check_modules(PC_RocksDB QUIET rocksdb)
endif()

find_path(RocksDB_INCLUDE_DIR NAMES rocksdb/version.h HINTS ${PC_RocksDB_INCLUDE_DIRS})

set(damo_saved_suffixes ${CMAKE_FIND_LIBRARY_SUFFIXES})
set(CMAKE_FIND_LIBRARY_SUFFIXES ${CMAKE_SHARED_LIBRARY_SUFFIX})
find_library(RocksDB_LIBRARY NAMES rocksdb HINTS ${PC_RocksDB_LIBRARY_DIRS})
set(CMAKE_FIND_LIBRARY_SUFFIXES ${damo_saved_suffixes})

if(RocksDB_INCLUDE_DIR)
  file(READ "${RocksDB_INCLUDE_DIR}/rocksdb/version.h" damo_version_header)
  foreach(part MAJOR MINOR PATCH)
    string(REGEX MATCH "ROCKSDB_${part} ([0-9]+)" damo_match "${damo_version_header}")
    set(RocksDB_VERSION_${part} ${CMAKE_MATCH_1})
  endforeach()
  set(RocksDB_VERSION "${RocksDB_VERSION_MAJOR}.${RocksDB_VERSION_MINOR}.${RocksDB_VERSION_PATCH}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  RocksDB
  REQUIRED_VARS RocksDB_LIBRARY RocksDB_INCLUDE_DIR
  VERSION_VAR RocksDB_VERSION)
mark_as_advanced(RocksDB_INCLUDE_DIR RocksDB_LIBRARY)

if(RocksDB_FOUND AND NOT TARGET RocksDB::rocksdb-shared)
  add_library(RocksDB::rocksdb-shared SHARED IMPORTED)
  set_target_properties(
    RocksDB::rocksdb-shared PROPERTIES IMPORTED_LOCATION "${RocksDB_LIBRARY}"
                                       INTERFACE_INCLUDE_DIRECTORIES "${RocksDB_INCLUDE_DIR}")

  # A class derived from one of RocksDB's refers to that one's type information, which a RocksDB that was built without
  # RTTI, as its Release builds are, does not have: then what derives from it is compiled without, too.
  string(MAKE_C_IDENTIFIER "RocksDB_HAS_RTTI_${RocksDB_LIBRARY}" damo_has_rtti)
  set(CMAKE_REQUIRED_LIBRARIES RocksDB::rocksdb-shared)
  check_cxx_source_compiles(
    "#include <rocksdb/env.h>
     class NoLog : public rocksdb::Logger {
      public:
       using rocksdb::Logger::Logv;
       void Logv(const char*, va_list) override {}
     };
     int main() { NoLog log; }"
    ${damo_has_rtti})
  unset(CMAKE_REQUIRED_LIBRARIES)
  if(NOT ${damo_has_rtti})
    set_property(TARGET RocksDB::rocksdb-shared PROPERTY INTERFACE_COMPILE_OPTIONS -fno-rtti)
  endif()
endif()
