# Every target works as the first command on a machine with Python >= 3.10, g++, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
SOURCES := setup.py build_support.py pyproject.toml $(shell find csrc -type f 2>/dev/null)

CUDA_LIBRARY := udml_kernels/_C_cuda.so
# UDML_KERNELS_CPU=1: here a build without kernels is an error, not a fallback. setup.py first, as pip hides what it prints.
INSTALL = export UDML_KERNELS_CPU=$${UDML_KERNELS_CPU:-1}; $(BIN)/python setup.py --quiet build_ext --inplace && \
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .

.PHONY: help fuzz sanitize tidy wheel check-wheel sdist test-versions
.PHONY: setup setup-cuda demo reproduce test test-ptx test-gpu sanitize-gpu lint aot counts clean
.PHONY: bench bench-gpu bench-smoke bench-compare gpu
# A library that a failed build left behind is not up to date.
.DELETE_ON_ERROR:

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(VENV)/.built  ## .venv with pinned versions, and the CPU kernels

$(VENV)/.requirements: requirements.txt requirements-data.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-data.txt
	touch $@

# CUDA kernels of older sources go: `make setup-cuda` builds them again, of what it built before only what has changed.
$(VENV)/.built: $(VENV)/.requirements $(SOURCES)
	export UDML_KERNELS_CUDA=$${UDML_KERNELS_CUDA:-0}; $(INSTALL)
	touch $@

# With the CUDA kernels or not at all; nvcc comes from pip where there is none. Needs no GPU.
setup-cuda: $(CUDA_LIBRARY)  ## the same, with the CUDA kernels or not at all

$(CUDA_LIBRARY): $(VENV)/.requirements requirements-cuda.txt $(SOURCES)
	$(BIN)/python build_support.py || $(BIN)/python -m pip install --quiet --no-deps -r requirements-cuda.txt
	@echo "Building the CPU and the CUDA kernels: on two cores about two minutes, and two more for each GPU architecture"
	export UDML_KERNELS_CUDA=1; $(INSTALL)
	touch $(VENV)/.built $@

demo: setup  ## train on two real sensors, on the fused ops and on the reference
	$(BIN)/python -m udml demo

# The tables and plots of experiments/results, about an hour for each data set on two cores.
reproduce: setup  ## the tables and plots of experiments/results, an hour a data set
	OMP_NUM_THREADS=1 $(BIN)/python -m udml reproduce --data hog
	OMP_NUM_THREADS=1 $(BIN)/python -m udml reproduce --data watch
	OMP_NUM_THREADS=1 $(BIN)/python -m udml reproduce --data digits

test: setup-cuda  ## build and run the whole suite
	$(BIN)/python -m pytest -n $(JOBS)

# Generated cases, N of each op, against the reference; BACKEND=cuda-ptx or triton-ptx for another backend.
N ?= 2000
BACKEND ?= cpu
fuzz: setup  ## N generated cases of each op; BACKEND=cpu, cuda-ptx or triton-ptx
	$(BIN)/python -m tests.fuzz --cases $(N) --jobs $(JOBS) --backend $(BACKEND)

# The CPU kernels with AddressSanitizer, UBSan and the assertions of libstdc++, on generated cases.
sanitize: setup  ## the CPU kernels under sanitizers
	$(BIN)/python -m tests.sanitize --jobs $(JOBS)

# On a machine with a GPU. GPU_PYTHON=python3 takes that one's packages as they are, in the place of .venv.
GPU_PYTHON ?=
ON_GPU = $(or $(GPU_PYTHON),$(BIN)/python)
ON_DEVICE := $(addprefix tests/test_,conformance.py gradients.py transforms.py compile.py compile_forms.py faults.py random.py distribution.py invariants.py lists.py pooled_sampling.py)
SANITIZER ?= $(or $(shell command -v compute-sanitizer),$(wildcard $(CUDA_HOME)/bin/compute-sanitizer),$(wildcard /usr/local/cuda/bin/compute-sanitizer))

test-gpu: $(if $(GPU_PYTHON),,setup-cuda) sanitize-gpu  ## the suite on a GPU
	UDML_TEST_DEVICE=cuda $(ON_GPU) -m pytest tests/test_gpu.py
	UDML_TEST_DEVICE=cuda $(ON_GPU) -m pytest $(ON_DEVICE)

# Every thirtieth case, with allocations that are not pooled: an access past one is then seen.
sanitize-gpu: $(if $(GPU_PYTHON),,setup-cuda)  ## a part of it under compute-sanitizer
ifeq ($(SANITIZER),)
	@echo "compute-sanitizer was not found, so it is left out: it comes with the CUDA toolkit; SANITIZER=path names it"
else
	for tool in memcheck racecheck synccheck; do \
	  UDML_TEST_DEVICE=cuda UDML_TEST_BACKENDS=cuda UDML_TEST_PART=0/30 PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	    $(SANITIZER) --tool $$tool --target-processes all --error-exitcode 9 \
	    $(ON_GPU) -m pytest -q tests/test_conformance.py || exit 1; \
	done
endif

# The compiled GPU kernels, executed on the CPU by tests/ptx: all conformance cases for both targets. `make test` has one
# target, and of Triton another twelfth of the cases each day.
TARGETS ?= 80 90
test-ptx: setup-cuda  ## the compiled GPU kernels on the CPU, all cases, sm_80 and sm_90
	for target in $(TARGETS); do \
	  UDML_TEST_TARGET=$$target UDML_TEST_QUARTER=all UDML_TEST_TWELFTH=all UDML_TEST_BACKENDS=cuda-ptx,triton-ptx \
	    $(BIN)/python -m pytest -n $(JOBS) $(ON_DEVICE) tests/test_ptx_*.py tests/test_cuda_kernels.py tests/test_triton*.py || exit 1; \
	done
	UDML_TEST_TRITON=portable UDML_TEST_TWELFTH=all UDML_TEST_BACKENDS=triton-ptx $(BIN)/python -m pytest -n $(JOBS) tests/test_conformance.py

counts: setup-cuda  ## what the compiled GPU kernels execute; writes udml_kernels/tools/counts.csv
	$(BIN)/python -m tests.ptx.counts --write

aot: setup-cuda  ## what the compiled GPU kernels cost
	$(BIN)/python -m udml_kernels aot
	$(BIN)/python -m udml_kernels aot --backend cuda

lint: setup  ## ruff, mypy and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests/ptx benchmarks -name "*.cpp" -o -name "*.h" -o -name "*.cu")

# The C++ of the CPU kernels at each level, five minutes.
tidy: setup  ## clang-tidy over csrc/cpu
	$(BIN)/python -m pip install --quiet clang-tidy==18.1.8
	ninja=$$(ls -t build/kernels-torch-*/build.ninja | head -1) && $(BIN)/ninja -f $$ninja -t compdb > build/compile_commands.json
	$(BIN)/clang-tidy --quiet -p build csrc/cpu/*.cpp

$(VENV)/.docs: requirements-docs.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	touch $@

# docs is a folder too.
.PHONY: docs
# Warnings are errors: a link or an anchor that leads nowhere, a docstring that is gone. docs/site.py checks what was built.
docs: $(VENV)/.docs  ## the documentation's site, build/site; open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The suite, under 15 minutes on two cores; results and report go to benchmarks/results/<machine>.
bench: $(VENV)/.bench  ## the benchmark suite, ten minutes
	$(BIN)/python -m benchmarks run

bench-gpu: $(if $(GPU_PYTHON),,setup-cuda)  ## the same on a GPU
	$(ON_GPU) -m benchmarks run --device cuda

# Tests, times and profilers, half an hour in four parts of less than nine minutes: PARTS="1 3" runs some. Results go to
# OUT as they come; `python -m benchmarks gpu --keep $(OUT)` copies them to benchmarks/results/<card>/gpu.
OUT ?= runs/gpu
PARTS ?= 1 2 3 4
gpu: $(if $(GPU_PYTHON),,setup-cuda)  ## a GPU's first half hour: tests, times, profilers; PARTS="1 2", OUT=folder
	$(ON_GPU) -m benchmarks gpu --out $(OUT) --part $(PARTS) $(FLAGS)

# A minute: ratios to plain PyTorch must stay above their floors.
bench-smoke: setup  ## a minute: do the ratios stay above their floors?
	$(BIN)/python -m benchmarks smoke

# A git revision against the working tree, or against HEAD=another: both built, tested, timed in turn. More flags in FLAGS:
# FLAGS="--op reparameterize --works '*/cremad/*'". Checkouts stay in build/compare.
BASE ?= HEAD
bench-compare: setup  ## BASE=revision against the working tree
	$(BIN)/python -m benchmarks revisions $(BASE) $(HEAD) $(FLAGS)

# Baselines of other libraries; what cannot be installed is not measured.
$(VENV)/.bench: $(VENV)/.built requirements-bench.txt
	$(BIN)/python -m pip install --quiet -r requirements-bench.txt || echo "oneMKL was not installed: not measured"
	touch $@

# In dist: for every Python from 3.10 and torch from 2.10 on, with _C_cuda.so where there is an nvcc. The tag names the
# oldest glibc that it runs on. libtorch_cpu.so is not packed: it is the one that the user's torch has loaded.
wheel: $(VENV)/.wheel  ## one wheel for every Python and torch, in dist; with the CUDA kernels where there is an nvcc
	rm -rf build/lib build/lib.* build/bdist.* build/wheel dist/*.whl
	$(BIN)/python -m build --no-isolation --wheel -C--global-option=--quiet --outdir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude libtorch_cpu.so --wheel-dir dist build/wheel/*.whl
	$(BIN)/twine check --strict dist/*.whl
	$(BIN)/python -m zipfile --list dist/*.whl | grep -E "^File Name|\.so |METADATA"
	ls -l dist/*.whl

# In a new environment and a folder of its own, so that nothing of the checkout is imported; torch is that of .venv.
check-wheel: wheel  ## install that wheel elsewhere, check every op, train
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; wheel=$$(ls $(CURDIR)/dist/*.whl); \
	$(BIN)/python -m venv "$$folder/venv"; \
	$(BIN)/python -c "import torch; print(*torch.__path__)" | xargs dirname > $$(echo "$$folder"/venv/lib/python*/site-packages)/torch.pth; \
	cd "$$folder"; unset PYTHONPATH; PATH="$$folder/venv/bin:$$PATH"; \
	python -m pip install --quiet --no-deps "$$wheel"; \
	python -c "import udml, udml_kernels as uk; print(uk.__file__, udml.__file__); assert all(m.__file__.startswith('$$folder') for m in (uk, udml))"; \
	udml-kernels info; udml-kernels check; udml train --data digits --epochs 1

sdist: $(VENV)/.wheel  ## the source distribution, in dist
	rm -f dist/*.tar.gz
	$(BIN)/python -m build --no-isolation --sdist -C--global-option=--quiet
	$(BIN)/twine check --strict dist/*.tar.gz
	ls -l dist/*.tar.gz

# An hour on two cores, and 20 GB of downloads in uv's cache: each version of torch with what it needs.
test-versions: wheel  ## that wheel under other versions of Python and torch; writes the table of docs/install.md
	$(BIN)/python -m tests.versions dist/*.whl

$(VENV)/.wheel: $(VENV)/.requirements requirements-wheel.txt
	$(BIN)/python -m pip install --quiet -r requirements-wheel.txt
	touch $@

clean:  ## remove what was built
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks
	rm -f udml_kernels/*.so udml_kernels/_not_built_*.txt $(VENV)/.built
