# Compiles a file once that several builds of this tree have with the same options, where ccache is there and nobody has
# chosen another launcher. Paths within the tree do not count, nor do build folders.
find_program(DAMO_CCACHE ccache DOC "Compiles what was compiled before")
mark_as_advanced(DAMO_CCACHE)
if(DAMO_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_CURRENT_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${DAMO_CCACHE})
endif()
