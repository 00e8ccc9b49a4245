# Fails if the object file OBJECT defines a weak symbol. An inline function or a template of a header, compiled here
# with AVX flags, would be one, and the linker may keep that copy for the whole program: an illegal instruction on a
# machine without AVX. Such code belongs into an anonymous namespace, or out of the kernel files.
execute_process(COMMAND "${NM}" -C --defined-only "${OBJECT}" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]* [uVWvw] [^\n]*" shared "${symbols}")
if(shared)
  string(REPLACE ";" "\n  " shared "${shared}")
  message(FATAL_ERROR "${OBJECT} defines code that other files share:\n  ${shared}")
endif()
