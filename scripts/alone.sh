#!/usr/bin/env bash
# Installs packages into the environment of the Python `$1`, each without its requirements, in the versions and with the
# hashes of requirements_alone.txt. After their names come options for pip, if there are any: scripts/alone.sh .venv/bin/python uv
set -euo pipefail

python=$1
shift
names=" "
while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
  names+="$1 "
  shift
done
"$python" -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes "$@" --requirement <(
  awk -v names="$names" '/^[a-z]/ { split($1, pin, "=="); keep = index(names, " " pin[1] " ") } keep' \
    "$(dirname "$0")/requirements_alone.txt"
)
