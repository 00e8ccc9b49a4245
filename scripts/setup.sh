#!/usr/bin/env bash
# Sets up everything that the Makefile's targets run on: system packages, the virtual environment $VENV with torch, FBGEMM,
# TorchRec and the tools, and this package, installed in place. A step whose inputs are unchanged is skipped.
#
# What it makes by itself has the versions of requirements.txt, and pip checks their SHA-256; `make lock` renews them. Torch has
# no hash there, and with PIP_ARGS nor have FBGEMM and TorchRec: another index has other builds of the same version.
#
# VENV        the virtual environment; made if it is not there. One that you made keeps the torch and TorchRec in it, and
#             versions that pyproject.toml admits
# PYTHON      the interpreter to make it with; by default the first of python3, python3.14 ... python3.10 that will do
# TORCH_SPEC  what pip installs as torch: a requirement, or the path of a wheel
# PIP_ARGS    more options for pip where it installs torch and TorchRec
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
# The version that fits the TorchRec in requirements_alone.in; pyproject.toml's extra `cuda` names the same.
TORCH_SPEC=${TORCH_SPEC:-torch==2.13.0}
read -ra pip_args <<<"${PIP_ARGS:-}"

stamps=$VENV/.damo
py=$VENV/bin/python

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

say() { printf '==> %s\n' "$*"; }

# Python compiles what it imports, a small part of torch, when it does.
pip() { "$py" -m pip --disable-pip-version-check install --quiet --no-compile "$@"; }

# The version of an installed distribution; nothing, and failure, where it is not installed.
version_of() { "$py" -c 'import sys, importlib.metadata as m; print(m.version(sys.argv[1]))' "$1" 2>/dev/null; }

# Whether the step `$1` was completed with the inputs `$2`.
done_with() { [ "$(cat "$stamps/$1" 2>/dev/null)" = "$2" ]; }

mark_done() { mkdir -p "$stamps" && printf '%s' "$2" >"$stamps/$1"; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

make_venv() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    new_enough "$PYTHON" || die "PYTHON=$PYTHON is not Python 3.10 or later"
  else
    for candidate in python3 python3.{14,13,12,11,10}; do
      new_enough "$candidate" && PYTHON=$candidate && break
    done
    [ -n "${PYTHON:-}" ] || die "Python 3.10 or later is needed; found $(python3 --version 2>&1 || true)"
  fi
  PYTHON=$PYTHON scripts/system_packages.sh
  say "Making $VENV with $("$PYTHON" --version)"
  mkdir -p "$stamps" && touch "$stamps/ours"
  "$PYTHON" -m venv "$VENV"
}

# Whether the distribution `$1` is for us to install: always in our own environment, else where it is missing.
ours() { [ -e "$stamps/ours" ] || ! version_of "$1" >/dev/null; }

# FBGEMM's CUDA build needs a CUDA build of torch and a driver; everything else runs on its CPU build.
has_cuda() { nvidia-smi -L >/dev/null 2>&1 && "$py" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; }

# All but torch, FBGEMM, TorchRec and this package.
install_requirements() {
  local inputs
  inputs=$(cksum <scripts/requirements.txt)
  done_with requirements "$inputs" && return
  if [ -e "$stamps/ours" ]; then
    say "Installing what requirements.txt names"
    pip --no-deps --require-hashes --requirement scripts/requirements.txt
  fi
  mark_done requirements "$inputs"
}

install_torchrec() {
  local inputs torch trio fbgemm=fbgemm-gpu-cpu
  inputs="$TORCH_SPEC $(cksum <scripts/requirements_alone.txt) ${pip_args[*]}"
  done_with torchrec "$inputs" && return
  if ours torch; then
    say "Installing $TORCH_SPEC, which takes minutes (CONTRIBUTING.md says how to choose a smaller CPU build)"
    pip "${pip_args[@]}" "$TORCH_SPEC"
  fi
  torch="torch==$(version_of torch)"
  if ours torchrec; then
    if has_cuda; then
      fbgemm=fbgemm-gpu
    fi
    say "Installing TorchRec and $fbgemm"
    pip "${pip_args[@]}" "$torch" numpy tensordict torchmetrics==1.0.3 tqdm pyre-extensions  # what both need
    if [ ${#pip_args[@]} -gt 0 ]; then
      # An index of the user's choice has builds, and so hashes, of its own.
      read -ra trio < <(grep -E "^($fbgemm|torchrec)==" scripts/requirements_alone.in | tr '\n' ' ')
      pip "${pip_args[@]}" --no-deps "${trio[@]}"
    else
      scripts/alone.sh "$py" "$fbgemm" torchrec
    fi
  fi
  mark_done torchrec "$inputs"
}

# In place: Python files are used from the working tree, where they were at installing; the compiled module is built again
# when its sources change.
install_package() {
  local inputs
  inputs=$({
    find pyproject.toml CMakeLists.txt cmake csrc -type f | LC_ALL=C sort | xargs cksum
    find damo_torchrec -name '*.py' | LC_ALL=C sort
  } | cksum)
  done_with package "$inputs" && return
  say "Building damo_torchrec and installing its tools, which takes minutes the first time"
  if [ -e "$stamps/ours" ]; then
    pip --no-deps --no-build-isolation --editable .
  else
    pip cmake hatch-fancy-pypi-readme ninja pybind11 scikit-build-core
    pip --no-build-isolation --editable ".[dev]"
  fi
  mark_done package "$inputs"
}

# The oldest ONNX Runtime that pyproject.toml admits, aside, for a test; not every Python has it.
install_oldest_onnxruntime() {
  local inputs
  inputs=$(cksum <scripts/requirements_alone.txt)
  done_with onnxruntime "$inputs" && return
  scripts/alone.sh "$py" onnxruntime --upgrade --target "$VENV/onnxruntime-oldest" 2>/dev/null ||
    say "This Python has no ONNX Runtime of the version in requirements_alone.in"
  mark_done onnxruntime "$inputs"
}

[ "$(uname -s)" = Linux ] || die "FBGEMM, which TorchRec needs, is published for Linux alone"
if [ -x "$VENV/bin/pip" ]; then
  PYTHON=$py scripts/system_packages.sh
else
  make_venv
fi
new_enough "$py" || die "$VENV holds a Python older than 3.10; remove it, or name another one with VENV"
install_requirements
install_torchrec
install_package
install_oldest_onnxruntime
