# DAMO_SANITIZE: sanitizers for the whole build, for example "address,undefined" or "thread".
set(DAMO_SANITIZE "" CACHE STRING "Sanitizers, separated by commas or semicolons: address, undefined, thread")

if(DAMO_SANITIZE)
  string(REPLACE ";" "," damo_sanitizers "${DAMO_SANITIZE}")
  if(NOT damo_sanitizers MATCHES "^(address|undefined|thread)(,(address|undefined|thread))*$")
    message(FATAL_ERROR "DAMO_SANITIZE is a list of address, undefined and thread, not \"${DAMO_SANITIZE}\"")
  endif()
  # Half the time to compile of -O2 -g, and reports have files and lines all the same.
  add_compile_options(-O1 -g1)
  add_compile_options(-fsanitize=${damo_sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${damo_sanitizers})
endif()
