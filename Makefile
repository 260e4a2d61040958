# Every target sets up what it needs in .venv: nothing but python3, pip and a C++ compiler has to be there. What it
# installs has the versions of requirements/*.txt, which `make lock` writes.
PYTHON ?= python3
WERROR ?= OFF
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
NEWEST := .venv-newest
CUDA := .venv-cuda
DOCS := .venv-docs
# pip shows its progress on a terminal and stays out of logs.
QUIET := $(shell [ -t 2 ] || echo --quiet)
PIP := bin/python -m pip --disable-pip-version-check install $(QUIET)

SOURCES := pyproject.toml CMakeLists.txt \
  $(shell find python csrc -name '*.py' -o -name '*.pyi' -o -name '*.h' -o -name '*.inl' -o -name '*.inc' \
    -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
CPP_FILES = $(shell find csrc tests/cpp tests/cuda -name '*.h' -o -name '*.inl' -o -name '*.cpp' \
  -o -name '*.cu' -o -name '*.cuh')
# The build directory is kept: an edit compiles only what it touches. CUDA kernels take minutes: cuda and test-cuda build them.
INSTALL = $(@D)/$(PIP) --no-deps --no-build-isolation \
  --config-settings=build-dir=build/{wheel_tag}$(@D:.venv%=%) --config-settings=cmake.define.OCTAVO_CUDA
OTHER_TORCH := $(CURDIR)/$(OLDEST)/bin/python

# The same file in another clone is compiled once.
ifneq ($(shell command -v ccache),)
export CMAKE_CXX_COMPILER_LAUNCHER ?= ccache
export CCACHE_BASEDIR ?= $(CURDIR)
export CCACHE_NOHASHDIR ?= 1
endif

# Two pips at once in one environment trip over each other.
.NOTPARALLEL:
# A worker for each core, and for its memory no more than eight.
PYTEST := $(BIN)/python -m pytest -n $(shell nproc | awk '{print $$1 < 8 ? $$1 : 8}') --dist worksteal
CPP_TESTS = $(BIN)/cmake -S . -B build/cpp-tests -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
  -DOCTAVO_CPP_TESTS=ON -DOCTAVO_CUDA_EMULATED=ON -DOCTAVO_WERROR=$(WERROR) --log-level=WARNING \
  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)

.DEFAULT_GOAL := help
.PHONY: help build test test-torch test-newest test-deep test-zoo test-cpp test-races test-arm cuda test-cuda gpu lint format bench docs demo lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.locked-demo $(VENV)/.octavo  ## compress a real sentence-embedding model and print what it costs and gains
	@$(BIN)/python examples/demo.py $(DEMO_ARGS)

build: $(VENV)/.locked-dev $(VENV)/.octavo  ## build the package and install it, with the development tools, in .venv

test: build $(OLDEST)/.locked-oldest test-cpp  ## the kernels under sanitizers, then every Python test
	OCTAVO_TEST_TORCH=$(OTHER_TORCH) OCTAVO_TEST_CUDA_EMULATED=$(CURDIR)/build/cpp-tests $(PYTEST) $(TEST_ARGS)
	@echo "make test: passed: the kernels under sanitizers, CUDA's on an emulator; Python, with torch and the oldest torch."
	@echo "Only make test-deep: new random cases, ten times as many; races between CUDA threads; all processors of aarch64;"
	@echo "the registers of the CUDA kernels, where nvcc is."

test-torch: build $(OLDEST)/.locked-oldest  ## only the tests of PyTorch, on the oldest version that octavo takes
	OCTAVO_TEST_TORCH=$(OTHER_TORCH) $(PYTEST) tests/test_torch_versions.py $(TEST_ARGS)

test-deep:  ## test with new cases, ten times as many; test-races; test-arm on every processor; cuda, where nvcc is
	$(MAKE) test test-zoo test-races OCTAVO_TEST_DEEP=1
	$(MAKE) test-arm PROCESSORS="max neoverse-n1 cortex-a72"
	if command -v nvcc >/dev/null; then $(MAKE) cuda; fi

test-newest: $(NEWEST)/.octavo  ## the tests on the newest of everything, held.txt or not
	@echo "newer than in requirements/dev.txt:"
	@grep -vxFf requirements/dev.txt build/newest.txt || echo nothing
	$(NEWEST)/bin/python -m pytest --ignore=tests/test_torch_versions.py $(TEST_ARGS)

test-zoo: build build/zoo/.locked  ## models of timm and diffusers, int8, copied and fused: the gate has those of transformers
	PYTHONPATH=build/zoo $(PYTEST) tests/test_zoo_others.py $(TEST_ARGS)

test-cpp: $(VENV)/.locked-dev  ## only the kernels under sanitizers, those for CUDA on an emulator
	@$(CPP_TESTS)
	@$(BIN)/cmake --build build/cpp-tests
	@printf '%s\n' test_kernels test_cuda_address | xargs -P 2 -I {} sh -c 'build/cpp-tests/{} >build/cpp-tests/{}.log 2>&1 || \
	  { cat build/cpp-tests/{}.log; exit 1; }'
	@tail -n 1 build/cpp-tests/test_kernels.log build/cpp-tests/test_cuda_address.log
	sh tests/cuda/test_emulator.sh build/cpp-tests

test-races: $(VENV)/.locked-dev  ## races between CUDA threads, by the thread sanitizer on the emulator: takes several minutes
	@$(CPP_TESTS)
	@$(BIN)/cmake --build build/cpp-tests --target test_cuda_thread
	build/cpp-tests/test_cuda_thread

test-arm: $(VENV)/.locked-build  ## the kernels for aarch64, cross-compiled and run on an emulated processor that has them all
	@PATH="$(CURDIR)/$(BIN):$$PATH" WERROR=$(WERROR) sh tests/cpp/test_arm.sh $(PROCESSORS)

cuda: $(VENV)/.locked-build  ## the CUDA module, compiled and held to its table of registers: needs nvcc, no GPU
	@$(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DOCTAVO_CUDA=ON -DCMAKE_BUILD_TYPE=Release --log-level=WARNING \
	  -DCMAKE_CUDA_COMPILER_LAUNCHER=$(CURDIR)/tests/cuda/keep_report.sh \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	@$(BIN)/cmake --build build/cuda --target _cuda
	$(BIN)/python tests/cuda/check_resources.py build/cuda

test-cuda: $(CUDA)/.octavo  ## the tests on a GPU: without one they fail
	OCTAVO_TEST_CUDA=1 OCTAVO_CUDA_UNPROVEN=1 $(CUDA)/bin/python -m pytest tests/test_cuda.py $(TEST_ARGS)

gpu:  ## build, tests, sanitizers and benchmark on a machine with a GPU, without a network, into build/gpu
	sh tests/cuda/run_gpu.sh build/gpu

lint: $(VENV)/.locked-dev  ## ruff, mypy --strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

format: $(VENV)/.locked-dev  ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

bench: $(VENV)/.locked-bench $(VENV)/.octavo  ## octavo against its peers, in a short form
	$(BIN)/python bench/bench_gemm.py --quick
	$(BIN)/python bench/bench_quantize.py --quick
	$(BIN)/python bench/bench_prune.py --quick
	$(BIN)/python bench/bench_sparse.py --quick
	$(BIN)/python bench/models.py --quick

# --strict: a broken link or a name that the reference does not find is an error.
docs: $(DOCS)/.locked  ## the guides and the API reference as web pages, in build/docs
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet
	@echo "$(CURDIR)/build/docs/index.html"

clean:  ## remove every .venv, build and every cache
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(CUDA) $(DOCS) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# ---- environments ----

# Without torch's dependencies on CUDA, which are 3 GB: torch_without_cuda.py stands in for them where torch wants them.
define ENVIRONMENT
@echo "setting up $(@D): $<"
@$(PYTHON) -m venv $(@D)
@$(@D)/$(PIP) --no-deps -r $<
@$(@D)/bin/python tests/torch_without_cuda.py
@touch $@
endef

$(VENV)/.locked-% $(OLDEST)/.locked-%: requirements/%.txt tests/torch_without_cuda.py
	$(ENVIRONMENT)

$(NEWEST)/.locked: build/newest.txt tests/torch_without_cuda.py
	$(ENVIRONMENT)

$(CUDA)/.locked: requirements/cuda.txt
	@echo "setting up $(@D): $<, a download of 4 GB"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/$(PIP) --no-deps -r $<
	@touch $@

build/zoo/.locked: requirements/zoo.txt
	@echo "setting up $(@D): $<"
	@$(PYTHON) -m pip --disable-pip-version-check install $(QUIET) --no-deps --target $(@D) --upgrade -r $<
	@touch $@

$(DOCS)/.locked: requirements/docs.txt
	@echo "setting up $(@D): $<"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/$(PIP) --no-deps -r $<
	@touch $@

$(VENV)/.octavo: $(VENV)/.locked-build $(SOURCES)
	@echo "building octavo"
	@$(INSTALL)=OFF .
	@touch $@

$(NEWEST)/.octavo: $(NEWEST)/.locked $(SOURCES)
	@echo "building octavo with the newest of everything"
	@$(INSTALL)=OFF .
	@touch $@

$(CUDA)/.octavo: $(CUDA)/.locked $(SOURCES)
	@echo "building octavo with its CUDA kernels"
	@$(INSTALL)=ON .
	@touch $@

# ---- the versions of everything ----

# For every Python that octavo takes. Of one line per package, so that a change of a version is a change of a line.
LOCK = build/uv/bin/uv pip compile --quiet --system-certs --universal --python-version 3.10 --upgrade --no-annotate \
  --custom-compile-command 'make lock'
WITHOUT_CUDA := --excludes requirements/left_out.txt

lock: build/uv/bin/uv  ## the newest versions, but for those of requirements/held.txt, into requirements/*.txt
	$(LOCK) $(WITHOUT_CUDA) requirements/dev.in --extra dev --extra files pyproject.toml -c requirements/held.txt \
	  -o requirements/dev.txt
	$(LOCK) $(WITHOUT_CUDA) requirements/build.in -c requirements/dev.txt -o requirements/build.txt
	$(LOCK) $(WITHOUT_CUDA) requirements/demo.in --extra demo pyproject.toml -c requirements/dev.txt -o requirements/demo.txt
	$(LOCK) $(WITHOUT_CUDA) requirements/bench.in --extra bench pyproject.toml -c requirements/dev.txt -o requirements/bench.txt
	$(LOCK) $(WITHOUT_CUDA) requirements/zoo.in -c requirements/dev.txt -o build/zoo.txt
	grep -vxFf requirements/dev.txt build/zoo.txt >requirements/zoo.txt
	$(LOCK) $(WITHOUT_CUDA) requirements/oldest.in -o requirements/oldest.txt
	$(LOCK) requirements/docs.in -o requirements/docs.txt
	$(LOCK) requirements/cuda.in -c requirements/dev.txt -o requirements/cuda.txt

# What pip here is told not to go beyond holds for uv too.
.PHONY: build/newest.txt
build/newest.txt: build/uv/bin/uv
	@$(LOCK) $(WITHOUT_CUDA) requirements/dev.in --extra dev --extra files pyproject.toml -o $@ \
	  $(addprefix -c ,$(shell $(PYTHON) -m pip config list | sed -n "s/^global.constraint='\(.*\)'/\1/p"))

build/uv/bin/uv:
	@$(PYTHON) -m venv build/uv
	@build/uv/$(PIP) uv
