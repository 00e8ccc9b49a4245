#!/usr/bin/env bash
# Runs a command as on a machine that nothing was ever built on: without compilers, headers, RocksDB's library and those that
# it needs. They are hidden from the command alone, in a mount namespace; where there can be none, that is said, and the command
# runs as it is.
set -euo pipefail

# Python's own modules need libbz2, which stays.
libraries='lib(rocksdb|snappy|lz4|zstd|gflags)\.so'
programs=(c++ g++ cc gcc clang clang++ cpp ld cmake)

if [ "${1:-}" = --hide ]; then  # in the namespace
  shift
  for folder in /usr/include /usr/local/include; do
    [ ! -d "$folder" ] || mount -t tmpfs none "$folder"
  done
  {
    type -ap "${programs[@]}" || true
    PATH=$PATH:/sbin:/usr/sbin ldconfig -p | awk -v wanted="$libraries" '$1 ~ wanted { print $NF }'
  } | while read -r file; do realpath "$file"; done | sort -u | while read -r file; do
    mount --bind /dev/null "$file"
  done
  echo "ok    hidden: compilers, headers, and the system's RocksDB with what it needs" >&2
  exec "$@"
fi

namespace=(unshare --mount)
[ "$(id -u)" -eq 0 ] || namespace=(unshare --map-root-user --mount)
if "${namespace[@]}" mount -t tmpfs none /mnt 2>/dev/null; then
  exec "${namespace[@]}" "$0" --hide "$@"
fi
echo "SKIP  hiding compilers, headers and RocksDB: no mount namespace can be made here" >&2
exec "$@"
