#!/usr/bin/env bash
# Tests the modules on a GPU and measures beside it, within a quarter of an hour: for a machine that is lent for so long.
#
#   benchmarks/device.sh [RESULTS]   # default: build/benchmarks/device
#
# PYTHON   an interpreter whose torch, FBGEMM and TorchRec are CUDA builds that fit together, with the package installed
#          (docs/versions.md). Default: .venv/bin/python
# DEVICE   cuda, or cpu for a dry run at small sizes where there is no GPU. Default: cuda
# THREADS  of the steps that are timed alone. Default: 1 2 4 8 16, as far as there are cores
#
# A part that fails does not keep the others from running; the script fails then, too.
set -uo pipefail
cd "$(dirname "$0")/.."

results=${1:-build/benchmarks/device}
python=${PYTHON:-.venv/bin/python}
device=${DEVICE:-cuda}
cores=$(getconf _NPROCESSORS_ONLN)
mkdir -p "$results"

case $device in
  cuda) rows=1000000 steps=100 sizes=(--history 2000 --warm-up 500 --latency-steps 0) step=(--steps 100) ;;
  cpu) rows=2000 steps=5 sizes=(--history 20 --warm-up 25 --latency-steps 0) step=(--quick) ;;
  *)
    printf 'error: DEVICE is cuda or cpu, got %s\n' "$device" >&2
    exit 2
    ;;
esac
threads=()
for n in ${THREADS:-1 2 4 8 16}; do ((n <= cores)) && threads+=("$n"); done

failed=()
part() {
  local name=$1
  shift
  printf '\n==> %s: %s\n' "$name" "$*"
  "$@" 2>&1 | tee "$results/$name.txt" || failed+=("$name")
}

{ nvidia-smi -L || printf 'no GPU\n'; } 2>/dev/null | tee "$results/machine.txt"
part tests "$python" -m pytest -q -p no:cacheprovider tests/modules/test_cuda.py
part dlrm "$python" benchmarks/dlrm.py --device "$device" --rows "$rows" --steps "$steps" "${sizes[@]}" \
  --threads "$((cores < 8 ? cores : 8))" --budgets 100 10 1 --io buffered --json "$results/dlrm.json"
part threads "$python" benchmarks/embedding_step.py "${step[@]}" --optimizer rowwise_adagrad --threads "${threads[@]}" \
  --peers --json "$results/threads.json"

printf '\n==> %s in %s\n' "Figures are" "$results"
((${#failed[@]} == 0)) || { printf 'failed: %s\n' "${failed[*]}" >&2 && exit 1; }
