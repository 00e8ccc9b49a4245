#!/usr/bin/env bash
# Builds RocksDB's shared library, alone: without compression libraries, tools or any other library of the system's.
#
#   scripts/build_rocksdb.sh PREFIX REPOSITORY REF [CMAKE OPTION...]
#
#   PREFIX      where include/ and lib/ go: what RocksDB_ROOT is set to then
#   REPOSITORY  RocksDB's source: a folder or an address that git can fetch from
#   REF         a tag or branch of it, for example v9.10.0, or the whole id of a commit, by which git checks what it gets
#
# JOBS says how many compilers run at a time; by default as many as there are cores.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
prefix=$1 repository=$2 ref=$3
shift 3
[ ! -d "$repository" ] || repository=$(realpath "$repository")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git init --quiet "$work/source"
git -C "$work/source" fetch --quiet --depth 1 "$repository" "$ref"
git -C "$work/source" -c advice.detachedHead=false checkout --quiet FETCH_HEAD
cmake -S "$work/source" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$prefix" \
  -DCMAKE_INSTALL_LIBDIR=lib -DPORTABLE=1 -DFAIL_ON_WARNINGS=OFF -DROCKSDB_BUILD_SHARED=ON -DWITH_TESTS=OFF \
  -DWITH_TOOLS=OFF -DWITH_CORE_TOOLS=OFF -DWITH_BENCHMARK_TOOLS=OFF -DWITH_GFLAGS=OFF -DWITH_JEMALLOC=OFF \
  -DWITH_LIBURING=OFF -DWITH_SNAPPY=OFF -DWITH_LZ4=OFF -DWITH_ZLIB=OFF -DWITH_ZSTD=OFF -DWITH_BZ2=OFF "$@"
cmake --build "$work/build" --target rocksdb-shared --parallel "${JOBS:-$(getconf _NPROCESSORS_ONLN)}"
cmake --install "$work/build" --component runtime
# The component that has the headers has the static library, too.
mkdir -p "$prefix/include"
cp -R "$work/source/include/rocksdb" "$prefix/include/"
