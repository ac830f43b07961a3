# SPDX-License-Identifier: Apache-2.0
# Two commands do all the set-up on a machine that has python3 (with venv and pip), g++ and make:
#
#   make demo     set up, then run unmodified scripts plain and under ipexrun, and print the comparison
#   make test     set up, then lint, types and every test, with the native kernels and without
#
# Also: make bench | lint | build | sanitize | clean | distclean.  PYTHON=python3.12 chooses the interpreter of a new .venv,
# NATIVE=0 leaves the C++ extension unbuilt, PIP_FLAGS and PYTEST_FLAGS go to those programs.

PYTHON ?= python3
NATIVE ?= 1
PIP_FLAGS ?=
PYTEST_FLAGS ?=

VENV := .venv
RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS)
STAMPS := .stamps
NATIVE_SOURCES := $(shell find csrc -type f 2>/dev/null)
TWINS_SERVE := the plain-PyTorch twins of the native kernels serve instead (correct, but slower).

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test bench lint build sanitize setup clean distclean

help:
	@sed -n 's/^#   //p;s/^# Also: /also /p' Makefile

demo: setup
	@$(RUN)/python -m benchmarks demo

# The last line of the output is the closing line of the last pytest run: nothing may be printed after it.
test: setup lint
	@echo "== tests, with the native kernels"
	@$(RUN)/python -m pytest $(PYTEST_FLAGS)
	@echo "== kernel and engine tests again, without the native kernels (their plain-PyTorch twins)"
	@SLIPSTREAM_NATIVE=0 $(RUN)/python -m pytest $(PYTEST_FLAGS) tests/kernels tests/optimize tests/autopatch

bench: setup
	@$(RUN)/python -m benchmarks zoo

# A copy of the sources is built with AddressSanitizer and UndefinedBehaviorSanitizer, and runs the kernel tests at every level.
# Python itself is not instrumented and keeps what it has at exit: no leak check. UBSan's complaints end the process too.
SANITIZED := build/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g1
sanitize: setup
	@rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)/tests
	@cp -r csrc slipstream setup.py pyproject.toml README.md $(SANITIZED) && cp -r tests/conftest.py tests/kernels $(SANITIZED)/tests
	@rm -f $(SANITIZED)/slipstream/_native.so
	@echo "== native extension with sanitizers"
	@cd $(SANITIZED) && CXXFLAGS="$(SANITIZERS)" SLIPSTREAM_REQUIRE_NATIVE=1 $(abspath $(RUN))/python setup.py -q build_ext --inplace
	@echo "== kernel tests under them"
	@cd $(SANITIZED) && LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(abspath $(RUN))/python -m pytest $(PYTEST_FLAGS) -p no:cacheprovider tests/kernels

lint: setup
	@echo "== ruff" && $(RUN)/ruff check .
	@echo "== mypy" && $(RUN)/mypy

setup: $(STAMPS)/package build

build: $(STAMPS)/package
	@if [ "$(NATIVE)" = 0 ]; then \
	  echo "NATIVE=0: the extension is not built; $(TWINS_SERVE)"; \
	elif ! command -v $${CXX:-g++} >/dev/null 2>&1; then \
	  echo "no C++ compiler ($${CXX:-g++} is not there): $(TWINS_SERVE)"; \
	else \
	  $(MAKE) --no-print-directory $(STAMPS)/native; \
	fi

# pyvenv.cfg and not the interpreter is the target: .venv/bin/python is a link, whose time is that of the system's python3.
$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "$(PYTHON) is not there: install Python 3.10 or newer, or make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is too old: Python 3.10 or newer is needed; make PYTHON=…" >&2; exit 1; }
	@echo "== virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: install its venv and ensurepip modules (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }

# torch comes first and pinned: left to the resolver, "torch" could bring another build (with gigabytes of CUDA) than the
# one which pip is configured to find for this version.
$(STAMPS)/torch: $(VENV)/pyvenv.cfg
	@mkdir -p $(STAMPS)
	@echo "== torch 2.13.0"
	@$(PIP) torch==2.13.0 || { echo "pip could not install torch 2.13.0: see its message above (network, or pip's own settings)" >&2; exit 1; }
	@touch $@

# pip compiles the extension as well, and hides what the compiler says; the `native` stamp does it in the open.
$(STAMPS)/package: $(STAMPS)/torch pyproject.toml $(wildcard setup.py)
	@echo "== slipstream with its development and benchmark packages"
	@$(PIP) 'setuptools>=77' wheel
	@$(PIP) --no-build-isolation -e '.[dev,bench]' || \
	  { echo "pip could not install slipstream's packages: see its message above" >&2; exit 1; }
	@touch $@

$(STAMPS)/native: $(STAMPS)/package $(NATIVE_SOURCES) $(wildcard setup.py)
	@echo "== native extension"
	@SLIPSTREAM_REQUIRE_NATIVE=1 $(RUN)/python setup.py build_ext --inplace || \
	  { echo "the native extension did not compile (messages above); make NATIVE=0 … goes on without it" >&2; exit 1; }
	@touch $@

clean:
	rm -rf build dist *.egg-info $(STAMPS)/native .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find slipstream -name '_native*.so' -delete

distclean: clean
	rm -rf $(STAMPS) $(VENV)
