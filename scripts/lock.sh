#!/usr/bin/env bash
# Renews requirements.txt, requirements_wheel.txt and requirements_alone.txt, here beside it: the newest versions that fit
# together on every Python that pyproject.toml admits, and on every machine, with the SHA-256 of each of their files. With the
# arguments of `uv pip compile`, fewer are renewed: `--upgrade-package numpy` instead of all.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=build/lock/bin/uv
[ -x build/lock/bin/python ] || "${PYTHON:-python3}" -m venv build/lock
scripts/alone.sh build/lock/bin/python uv

compile() {
  "$uv" pip compile --quiet --no-config --no-python-downloads --universal --python-version 3.10 \
    --generate-hashes --no-header --no-annotate "$@"
}

# What is not kept: torch, of which there are several builds with the same version, from indexes of the user's choice
# (TORCH_SPEC, PIP_ARGS), and the CUDA libraries that some of them bring.
without_torch() {
  awk '/^[a-z]/ { keep = !/^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/ } keep'
}

# Writes what it is given into the file `$1`, after what the file `$2` says of it.
write() {
  { printf '%s\n' "$2" && cat; } >"build/lock/new" && mv build/lock/new "$1"
}

[ $# -gt 0 ] || set -- --upgrade
cp scripts/requirements.txt build/lock/all.txt  # where uv finds what is not to be renewed
cp scripts/requirements_wheel.txt build/lock/wheel.txt
cp scripts/requirements_alone.txt build/lock/alone.txt
compile "$@" pyproject.toml --extra dev scripts/requirements.in --output-file build/lock/all.txt >/dev/null
without_torch <build/lock/all.txt | write scripts/requirements.txt \
  "# Made by \`make lock\` of pyproject.toml and requirements.in. Not in it, and so not checked by a hash: torch, which has
# several builds of one version, from indexes of the user's choice, and the CUDA libraries that it brings with it."
compile "$@" scripts/requirements_wheel.in --output-file build/lock/wheel.txt >/dev/null
write scripts/requirements_wheel.txt "# Made by \`make lock\` of requirements_wheel.in." <build/lock/wheel.txt
compile "$@" --no-deps scripts/requirements_alone.in --output-file build/lock/alone.txt >/dev/null
write scripts/requirements_alone.txt "# Made by \`make lock\` of requirements_alone.in. Each of them is installed on its own." \
  <build/lock/alone.txt
