#!/usr/bin/env bash
# Has Clang check that whoever touches what a lock guards holds it (csrc/base/mutex.h). Builds nothing: it takes a compiler and
# RocksDB's headers. Reads the files given, by default all of csrc/ but those that need the headers of Python.
#
# CLANGXX     the compiler; by default clang++
# JOBS        how many files are read at a time; by default all cores
# RocksDB_ROOT is respected.
set -euo pipefail
cd "$(dirname "$0")/.."

CLANGXX=${CLANGXX:-clang++}
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN)}

if ! command -v "$CLANGXX" >/dev/null; then
  printf 'error: locks are checked by Clang; install it, or name it with CLANGXX\n' >&2
  exit 1
fi
if [ $# -eq 0 ]; then
  mapfile -t files < <(find csrc -name '*.cc' ! -path 'csrc/python/*' ! -name 'kernels_avx*')
  set -- "${files[@]}"
fi
flags=(-std=c++20 -fsyntax-only -Wthread-safety -Werror -I csrc)
[ -z "${RocksDB_ROOT:-}" ] || flags+=(-isystem "$RocksDB_ROOT/include")
printf '%s\0' "$@" | xargs -0 -n 1 -P "$JOBS" "$CLANGXX" "${flags[@]}"
