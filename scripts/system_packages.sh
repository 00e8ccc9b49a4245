#!/usr/bin/env bash
# Installs what pip cannot bring, after saying so; through sudo, where there is a terminal, after asking: a C++ compiler,
# RocksDB's development package, Python's venv module and headers; with the arguments `gtest` and `clang`, GoogleTest and
# Clang too. Does nothing where all of it is there.
# PYTHON, CXX, RocksDB_ROOT and CMAKE_PREFIX_PATH are respected.
set -euo pipefail

python=${PYTHON:-python3}
cxx=${CXX:-c++}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

has_header() {
  # CMake looks in these places, and reports by itself what it lacks there.
  [ -n "${CMAKE_PREFIX_PATH:-}${RocksDB_ROOT:-}" ] && return
  "$cxx" -E -x c++ -include "$1" /dev/null >/dev/null 2>&1
}

has() {
  case $1 in
    compiler) command -v "$cxx" >/dev/null ;;
    rocksdb) has_header rocksdb/version.h ;;
    gtest) has_header gtest/gtest.h ;;
    clang) command -v clang++ >/dev/null ;;
    python) "$python" -c 'import ensurepip, venv' 2>/dev/null && [ -e "$("$python" -c \
      'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ;;
  esac
}

# The packages that hold one of the needs, by the name of the package manager.
packages() {
  case $1-$2 in
    apt-get-compiler) echo g++ ;;
    apt-get-rocksdb) echo librocksdb-dev ;;
    apt-get-gtest) echo libgtest-dev ;;
    apt-get-clang) echo clang ;;
    apt-get-python) echo python3-dev python3-venv ;;
    dnf-compiler) echo gcc-c++ libasan libtsan libubsan ;;
    dnf-rocksdb) echo rocksdb-devel ;;
    dnf-gtest) echo gtest-devel ;;
    dnf-clang) echo clang ;;
    dnf-python) echo python3-devel ;;
  esac
}

missing=()
for need in compiler python rocksdb "$@"; do
  has "$need" || missing+=("$need")
done
[ ${#missing[@]} -gt 0 ] || exit 0

for manager in apt-get dnf none; do
  command -v "$manager" >/dev/null && break
done
[ "$manager" != none ] || die "missing: ${missing[*]}, and neither apt-get nor dnf to install them with"

wanted=()
for need in "${missing[@]}"; do
  read -ra names <<<"$(packages "$manager" "$need")"
  wanted+=("${names[@]}")
done

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || die "run as root: $manager install ${wanted[*]}"
  as_root=(sudo)
fi

echo "==> Installing system packages: ${wanted[*]}"
if [ ${#as_root[@]} -gt 0 ] && [ -t 0 ]; then
  read -r -p "    by sudo $manager; go on? [y/N] " answer
  [[ $answer == [yY]* ]] || die "not installed: ${wanted[*]}"
fi
case $manager in
  apt-get)
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
      --no-install-recommends "${wanted[@]}" >/dev/null
    ;;
  dnf) "${as_root[@]}" dnf install -y "${wanted[@]}" ;;
esac

for need in "${missing[@]}"; do
  has "$need" || die "still missing after installing ${wanted[*]}: $need. For a Python that $manager does not provide," \
    "install its own venv module and headers, or set PYTHON to another one."
done
