# Every target sets up what it needs, so that each can be run on its own. CONTRIBUTING.md describes the variables.
export VENV ?= .venv
BIN := $(VENV)/bin
# CMake looks for Ninja there.
export PATH := $(abspath $(BIN)):$(PATH)
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
# How long `chaos`, `soak` and `fuzz` run.
MINUTES ?= 60

CONFIGURE := $(BIN)/cmake --log-level=NOTICE -S . -G Ninja -DDAMO_BUILD_TESTS=ON -DDAMO_WARNINGS_AS_ERRORS=ON
BUILD := $(BIN)/cmake --build
BENCHMARKS := embedding_step dlrm cold scale cache_policy checkpoint serving serving_load memory_limit
# Programs of tests that start threads, or whose code does.
WITH_THREADS := $(addprefix damo_test_,base life storage storage_rocksdb engine serving)
CPP_FILES = $(shell find csrc tests/csrc tests/fuzz benchmarks/csrc -name '*.h' -o -name '*.cc')
# Thread sanitizers of GCC before 14 cannot run where the kernel randomises addresses widely.
FIXED_ADDRESSES = $(shell setarch $$(uname -m) -R true 2>/dev/null && echo setarch $$(uname -m) -R)

# Runs the test program $$tests in as many processes as there are cores, each with a share of the tests.
IN_SHARES = seq 0 $$(($(JOBS) - 1)) | GTEST_TOTAL_SHARDS=$(JOBS) xargs -P $(JOBS) -I{} env GTEST_SHARD_INDEX={}

.PHONY: help venv gtest clang lock example example-distributed test test-cpp test-python test-versions sanitize fuzz lint format docs linkcheck bench \
  bench-quick chaos soak wheel clean
.DEFAULT_GOAL := help

help:  ## print this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p' Makefile | expand -t 20

venv:  ## set up only: system packages, virtual environment, the package itself
	@scripts/setup.sh

gtest clang:
	@scripts/system_packages.sh $@

lock:  ## renew scripts/requirements.txt, the versions and hashes of what the set-up installs; uv's options in ARGS="..."
	@scripts/lock.sh $(ARGS)

example: venv  ## train a DLRM; options in ARGS="..."
	@$(BIN)/python examples/dlrm.py $(ARGS)

example-distributed: venv  ## train it on two processes; options in ARGS="..."
	@$(BIN)/torchrun --standalone --nproc-per-node 2 examples/dlrm_distributed.py $(ARGS)

test: test-cpp test-python  ## run all tests; pytest's options in ARGS="..."

test-cpp: venv gtest  ## run the C++ tests
	@$(CONFIGURE) -B build/cpp
	@$(BUILD) build/cpp --parallel $(JOBS)
	@$(BIN)/ctest --test-dir build/cpp --output-on-failure --parallel $(JOBS)

test-python: venv  ## run the Python tests; pytest's options in ARGS="..."
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

test-versions:  ## run the Python tests with TRIO=torch/torchrec/fbgemm on PYTHON; pytest's options in ARGS="..."
	@TRIO="$(TRIO)" PYTHON="$(PYTHON)" JOBS=$(JOBS) scripts/test_versions.sh $(ARGS)

sanitize: venv gtest  ## run the C++ tests under the address, undefined-behaviour and thread sanitizers
	@$(CONFIGURE) -B build/asan -DDAMO_SANITIZE=address,undefined -DDAMO_BUILD_FUZZERS=ON
	@$(BUILD) build/asan --parallel $(JOBS)
	@for tests in build/asan/damo_test_*; do $(IN_SHARES) $$tests --gtest_brief=1 || exit; done
	@$(BIN)/ctest --test-dir build/asan --quiet --output-on-failure --tests-regex Fuzzer
	@$(CONFIGURE) -B build/tsan -DDAMO_SANITIZE=thread
	@$(BUILD) build/tsan --parallel $(JOBS) --target $(WITH_THREADS)
# Without the tests of RocksDB: the system's library is not instrumented, so its locks would go unseen. Without those
# that open hundreds of stores to have each allocation fail: they take minutes here, and one thread.
	@for tests in $(addprefix build/tsan/,$(WITH_THREADS)); do \
	  $(IN_SHARES) $(FIXED_ADDRESSES) $$tests --gtest_brief=1 --gtest_filter='-*RocksDb*:StoreMemoryTest*:UpdateWithoutMemoryTest*' || exit; \
	done

# One decoder after the other, each for its share of the time. What is found lies in build/fuzz, as crash-*; so does the corpus.
fuzz: venv clang  ## feed every decoder random bytes, by libFuzzer, for MINUTES
	@$(CONFIGURE) -B build/fuzz -DCMAKE_CXX_COMPILER=$${CLANGXX:-clang++} \
	  -DDAMO_BUILD_TESTS=OFF -DDAMO_BUILD_FUZZERS=ON -DDAMO_SANITIZE=address,undefined
	@$(BUILD) build/fuzz --parallel $(JOBS)
	@cd build/fuzz && for fuzzer in fuzzers/*_fuzzer; do \
	  name=$$(basename $$fuzzer _fuzzer); \
	  $$fuzzer -max_total_time=$$(($(MINUTES) * 60 / $$(ls fuzzers/*_fuzzer | wc -l))) -timeout=60 -print_final_stats=1 \
	    tests/fuzz/corpus/$$name ../../tests/fuzz/corpus/$$name || exit; \
	done

lint: venv clang  ## check style, types, imports and locks
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python -m mypy.stubtest damo_torchrec._core --concise \
	  --allowlist scripts/stubtest_allowlist.txt --ignore-unused-allowlist
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/python scripts/check_walls.py
	@$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	@scripts/check_locks.sh

format: venv  ## put every file into the style that lint checks
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format
	@$(BIN)/clang-format -i $(CPP_FILES)

# One after the other; a program that fails stops them, a target that is missed does not.
bench bench-quick: venv
	@mkdir -p $(RESULTS)
	@for name in $(BENCHMARKS); do \
	  printf '\n==> benchmarks/%s.py %s\n' $$name $(QUICK); \
	  $(BIN)/python benchmarks/$$name.py $(QUICK) --json $(RESULTS)/$$name.json || exit; \
	done
	@$(BIN)/python benchmarks/plots.py $(RESULTS)

docs: venv  ## build the documentation's site: build/docs/index.html
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs
	@echo 'The site is build/docs/index.html'

# Links inside of the site are checked by `docs`. These need the network, and change without our doing.
linkcheck: venv  ## look whether the pages' links to elsewhere lead anywhere
	@$(BIN)/python -m sphinx --quiet --builder linkcheck docs build/linkcheck

bench: RESULTS := build/benchmarks
bench:  ## measure speed and memory; one alone: .venv/bin/python benchmarks/NAME.py --help

bench-quick: RESULTS := build/benchmarks/quick
bench-quick: QUICK := --quick
bench-quick:  ## the same at small sizes, within some minutes

chaos: venv  ## kill training at random instants for MINUTES=60; options in ARGS="..."
	@PYTHONPATH=tests $(BIN)/python -m chaos.program --minutes $(MINUTES) $(ARGS)

soak: venv  ## train for MINUTES=60 and watch memory, descriptors and disk; options in ARGS="..."
	@$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) $(ARGS)

# For this Python and systems no older than this one; .github/workflows/wheels.yml makes those that are published.
wheel: venv  ## make a wheel that needs nothing of the system's, in dist/, and try it
	@JOBS=$(JOBS) scripts/wheel.sh

clean:  ## remove what was built, but not the virtual environment
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache $(VENV)/.damo/package
