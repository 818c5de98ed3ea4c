# Two commands for a fresh machine: `make demo` and `make test`. Everything they install goes into .venv, from the
# known-good set in constraints.txt; .ci/require-system names what only the system can provide.

PYTHON      ?= python3
VENV        ?= .venv
TORCH_INDEX ?=
PIP_EXTRA   ?=
PYTEST_ARGS ?=

SHELL       := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.NOTPARALLEL:
.DEFAULT_GOAL := help

BIN       := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.installed
CPP_FILES  = $(shell find csrc benchmarks pyconv -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu')
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help:
	@sed -nE 's/^## (.*)/\1/p' $(MAKEFILE_LIST)

## make demo       trains LeNet-5 on the embedded Fashion-MNIST, on pyconv and on torch, and prints both side by side
.PHONY: demo
demo: build
	$(BIN)/python -m pyconv demo

## make test       everything: lint, C++ tests (release, ASan+UBSan, TSan), the ABI audit, the Python tests
.PHONY: test
test: build lint ctest sanitize audit
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

## make env        .venv with torch and the tools (PYTHON=python3.12; TORCH_INDEX=<index of torch wheels>; PIP_EXTRA=<pip options>)
.PHONY: env
env: $(INSTALLED)
$(INSTALLED): constraints.txt
	@sh .ci/require-system "$(PYTHON)"
	@echo "installing torch and the tools of constraints.txt into $(VENV); this may take some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(PIP_EXTRA) -c constraints.txt torch
	@$(BIN)/python -m pip install -q $(PIP_EXTRA) -r constraints.txt
	@touch $@

## make build      pyconv/_C, in place; only what changed is compiled
.PHONY: build
build: env
	@$(BIN)/python setup.py -q build_ext --inplace 2>&1 | sed -uE 's/^(\[[0-9]+\/[0-9]+\]) .* -c (.*\/)?(csrc\/[^ ]+) -o .*/\1 \3/'

## make lint       ruff, mypy, clang-format
.PHONY: lint
lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

## make format     rewrites Python and C++ files to the common style
.PHONY: format
format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# $(call ctest,folder under build/,options of CMake,command before ctest)
define ctest
@$(BIN)/cmake --log-level=WARNING -S . -B build/$(1) -G Ninja $(2) >/dev/null
@$(BIN)/cmake --build build/$(1)
$(3) $(BIN)/ctest --test-dir build/$(1) --no-tests=error --output-on-failure -j $(shell nproc)
endef

## make ctest      the C++ tests of the kernels, once per instruction set
.PHONY: ctest
ctest: env
	$(call ctest,release,-DPYCONV_STATIC=OFF -DCMAKE_CROSSCOMPILING_EMULATOR=)

# TSan of gcc before 14 fails on kernels with much address randomisation.
NO_ASLR := $(shell setarch -R true 2>/dev/null && echo setarch -R)

## make emulator   compiles the emulator of the CUDA kernels, which tests and pyconv.cuda_emulator() do when they first need it
.PHONY: emulator
emulator: build
	@$(BIN)/python -c "from pyconv._emulator import build; print(build.library('emu'))"

## make sanitize   the same under AddressSanitizer with UBSan, and under ThreadSanitizer
.PHONY: sanitize
sanitize: env
	$(call ctest,asan,"-DPYCONV_SANITIZE=address;undefined")
	$(call ctest,tsan,-DPYCONV_SANITIZE=thread,$(NO_ASLR))

## make docs       executes the course and writes its pages and the reference to build/docs/index.html
.PHONY: docs
docs: build
	$(BIN)/python -m pip install -q $(PIP_EXTRA) -r docs/requirements.txt
	cd docs && PYTHONPATH=.. $(BIN)/python -m sphinx -q -d ../build/doctrees . ../build/docs

AARCH64 := -DPYCONV_STATIC=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
           -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++

## make cross      the C++ tests on an x86-64 of 2008 and on aarch64, emulated, where those tools are installed
.PHONY: cross
cross: env
ifneq ($(shell command -v qemu-x86_64),)
	$(call ctest,release,-DPYCONV_STATIC=ON "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-x86_64;-cpu;Nehalem")
else
	@echo "skipped: x86-64 without AVX (needs qemu-x86_64, Debian package qemu-user)"
endif
ifneq ($(shell command -v aarch64-linux-gnu-g++),)
ifneq ($(shell command -v qemu-aarch64),)
	$(call ctest,aarch64,$(AARCH64) -DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64)
else
	@$(BIN)/cmake --log-level=WARNING -S . -B build/aarch64 -G Ninja $(AARCH64) >/dev/null
	@$(BIN)/cmake --build build/aarch64
	@echo "aarch64 compiles; its tests were skipped (they need qemu-aarch64, Debian package qemu-user)"
endif
else
	@echo "skipped: aarch64 (needs aarch64-linux-gnu-g++, Debian package g++-aarch64-linux-gnu)"
endif

## make audit      pyconv/_C uses torch's stable ABI only
.PHONY: audit
audit: build
	@if [ -x $(BIN)/torch-abi-audit ]; then $(BIN)/torch-abi-audit --check torch pyconv/_C*.so; \
	else echo "skipped: the ABI audit (torch-abi-audit needs Python 3.11)"; fi

## make package    sdist, wheel from the sdist, and the wheel imported away from this folder
.PHONY: package
package: env
	rm -rf dist build/installed
	$(BIN)/python -m build --no-isolation --sdist --outdir dist >/dev/null
	$(BIN)/python -m pip wheel -q --no-deps --wheel-dir dist dist/pyconv-*.tar.gz
	$(BIN)/python -m pip install -q --no-deps --target build/installed dist/pyconv-*.whl
	cd build && PYTHONPATH=installed $(BIN)/python -m pyconv info

# What `make bench` needs beyond constraints.txt.
PEERS := $(VENV)/.peers
$(PEERS): benchmarks/requirements.txt $(INSTALLED)
	@$(BIN)/python -m pip install -q $(PIP_EXTRA) -c constraints.txt -r benchmarks/requirements.txt
	@touch $@

BENCH ?= all

## make bench      every measurement, for hours, and the README's tables (BENCH="conv2d --batch 1": one; benchmarks/README.md)
.PHONY: bench
bench: build $(PEERS)
	$(BIN)/python -m benchmarks $(BENCH)

## make gpu        on a machine with a GPU: builds for it, runs the tests on it, times beside cuDNN, and the README's table
.PHONY: gpu
gpu: env
	@$(BIN)/python benchmarks/gpu.py

REGRESSION := -p no:xdist -p no:cacheprovider --benchmark-autosave --benchmark-columns=min,median,iqr,rounds
# After the first run: compare with the last one.
COMPARE = $(if $(wildcard .benchmarks/*/*.json),--benchmark-compare --benchmark-compare-fail=median:25%)

## make regression times of the smoke layers, saved in .benchmarks and compared with the run before (pytest-benchmark)
.PHONY: regression
regression: build $(PEERS)
	$(BIN)/python -m pytest benchmarks/test_regression.py $(REGRESSION) $(COMPARE) $(PYTEST_ARGS)

## make instructions  counts of callgrind beside benchmarks/instructions.txt (RECORD=1 writes that file anew)
.PHONY: instructions
instructions: env
	@$(BIN)/cmake --log-level=WARNING -S . -B build/release -G Ninja >/dev/null
	@$(BIN)/cmake --build build/release --target count_instructions
	$(BIN)/python -m benchmarks instructions build/release/count_instructions $(if $(RECORD),--record)

## make clean      removes what was built; .venv stays
.PHONY: clean
clean:
	rm -rf build dist *.egg-info pyconv/_C*.so pyconv/_cuda.* .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
