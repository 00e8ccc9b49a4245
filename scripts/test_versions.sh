#!/usr/bin/env bash
# Runs the Python tests with another torch, TorchRec and FBGEMM than the set-up's, or on another Python, in an environment of
# its own: build/versions/. What is there already is used again. Remove that folder afterwards: a CUDA build of torch, the
# only one that PyPI has for x86_64, makes it 5 GB.
#
# TRIO      the versions of torch, TorchRec and FBGEMM: 2.14.1/1.9.2/1.9.0. damo_torchrec/versions.py has those that fit
# PYTHON    an interpreter, or its version: 3.12
# JOBS      how many files are compiled, and tests run, at a time
# PIP_ARGS  more options for pip where it installs torch, as for scripts/setup.sh
#
# The arguments are pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

say() { printf '==> %s\n' "$*"; }

# The interpreter that PYTHON names.
find_python() {
  local candidate
  for candidate in "$1" "python$1" "$HOME"/.pyenv/versions/"$1"{,.*}/bin/python; do
    "$candidate" -c '' 2>/dev/null && printf '%s' "$candidate" && return
  done
  die "there is no Python $1"
}

[[ ${TRIO:-} =~ ^[0-9.]+(/[0-9.]+){2}$ ]] ||
  die "TRIO is three versions, of torch, TorchRec and FBGEMM, as TRIO=2.14.1/1.9.2/1.9.0; got TRIO=${TRIO:-}"
IFS=/ read -r torch torchrec fbgemm <<<"$TRIO"
python=$(find_python "${PYTHON:-python3}")
read -ra pip_args <<<"${PIP_ARGS:-}"
home=build/versions/$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')-torch$torch-torchrec$torchrec-fbgemm$fbgemm
py=$home/bin/python

pip() { "$py" -m pip --disable-pip-version-check install --quiet "$@"; }

# Whether the distribution `$1` is there in version `$2`, of whatever build.
is_there() {
  "$py" -c 'import sys, importlib.metadata as m; sys.exit(m.version(sys.argv[1]).partition("+")[0] != sys.argv[2])' \
    "$1" "$2" 2>/dev/null
}

PYTHON=$python scripts/system_packages.sh
[ -x "$py" ] || "$python" -m venv "$home"
if ! { is_there torch "$torch" && is_there fbgemm-gpu-cpu "$fbgemm" && is_there torchrec "$torchrec"; }; then
  say "Installing torch $torch, TorchRec $torchrec and FBGEMM $fbgemm into $home"
  pip "${pip_args[@]}" "torch==$torch" "fbgemm-gpu-cpu==$fbgemm" tensordict torchmetrics==1.0.3 tqdm pyre-extensions \
    iopath
  pip --no-deps "torchrec==$torchrec"  # which asks for FBGEMM's CUDA build
fi

say "Building damo_torchrec for it and installing what the tests need"
export CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
pip cmake ninja
pip --constraint <(echo "torch==$torch") --config-settings="build-dir=$home/build" --editable ".[bench,examples,test]"

say "Testing"
exec "$py" -m pytest --numprocesses "$CMAKE_BUILD_PARALLEL_LEVEL" --dist loadfile "$@"
