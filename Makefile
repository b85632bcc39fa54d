# Every target sets itself up: a fresh clone needs Python >= 3.10 and nothing else.
# (The compiled backend also needs a C++ compiler on CPU; set-up says so if there is none.)

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GPU_READY := $(VENV)/.gpu-ready
SOURCES := benchmarks codegen examples passes sparsify tests
NETWORKS ?=
BENCH ?=
COPY := build/installed

# Without CUDA this release comes as a CPU build; an unpinned torch would bring gigabytes of
# CUDA packages along.
CPU_TORCH := torch==2.13.0

HAS_TORCH := import sys, torch; \
	sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))

# glibc hands every large tensor back to the kernel when it is freed and faults its pages in
# again for the next one. Dense runs, with their large maps, pay most for that, so timings would
# compare allocators. Memory that stays with the process takes this out, for dense and sparse
# runs alike.
TIMED := MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=4294967296 \
	MALLOC_TOP_PAD_=268435456

# An environment that sees what $(PYTHON) sees, also if that is an environment itself.
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
INHERIT = $(PYTHON) -m venv --system-site-packages $(VENV) && \
	$(PYTHON) $(PURELIB) > "$$($(BIN)/python $(PURELIB))/inherited.pth"

# A GPU machine without a network: wheels of what is missing there, in a folder.
OFFLINE := $(if $(WHEELS),--no-index --find-links $(WHEELS))

.PHONY: help demo test lint types bench bench-quick bench-onnx bench-reuse bench-edits bench-store bench-weights bench-sparse bench-fidelity coverage test-deep gpu clean

help:
	@echo "make demo       edit an emoji, a terrain and a photograph, dense against update -> demo_out/"
	@echo "make test       lint, types and tests; HYPOTHESIS_SEED=n draws the examples of a run anew"
	@echo "make bench      dense against update on the CPU, six networks -> docs/benchmarks (hours;"
	@echo "                goes on where it stopped); NETWORKS=\"NAME ...\" chooses, BENCH=\"--nodes"
	@echo "                --again --rounds 9\" are its options"
	@echo "make bench-quick  the same, narrow and uncompiled, in minutes -> build/benchmarks"
	@echo "make bench-onnx the exported update against the exported dense model, in onnxruntime"
	@echo "make bench-reuse  what steps take over from others, in four parts -> docs/benchmarks"
	@echo "make bench-edits  edits of prompts on a trained pipeline, against dense -> docs/benchmarks"
	@echo "make bench-store  edits of a run whose values lie on disk, against memory -> docs/benchmarks"
	@echo "make bench-weights  products with weights that keep N of M inputs -> docs/benchmarks"
	@echo "make bench-sparse  whole networks with such weights -> docs/benchmarks (half an hour)"
	@echo "make bench-fidelity  what such weights cost two trained networks, once fine-tuned (an hour;"
	@echo "                goes on where it stopped) -> docs/benchmarks"
	@echo "make coverage   every model class of diffusers -> docs/coverage.md (about an hour)"
	@echo "make test-deep  the laws of updates on many more examples, exported ones too;"
	@echo "                whole networks in every format"
	@echo "make gpu        on a GPU: kernels, models, memory checks, benchmarks; with the torch"
	@echo "                that is there; WHEELS=folder if there is no network"
	@echo "make clean      remove what was built (the environment $(VENV) stays)"

demo: $(READY)
	@echo "==> demo"
	@$(TIMED) $(BIN)/python -m examples.demo --out demo_out

test: lint types
	@echo "==> tests"
	@$(BIN)/python -m pytest --numprocesses 2

lint: $(READY)
	@echo "==> lint"
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)

# passes/ and codegen/ become part of the package on installation, and mypy cannot follow an
# editable one: it reads a plain copy.
types: $(READY)
	@echo "==> types"
	@rm -rf $(COPY) build/lib build/bdist.*
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(COPY) .
	@cd $(COPY) && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache --strict -p sparsify

bench: $(READY)
	@echo "==> benchmark"
	@$(TIMED) $(BIN)/python -m benchmarks.speed $(NETWORKS) $(BENCH)

bench-quick: $(READY)
	@echo "==> benchmark, quick"
	@$(TIMED) $(BIN)/python -m benchmarks.speed --quick $(NETWORKS) $(BENCH)

bench-onnx: $(READY)
	@echo "==> benchmark in onnxruntime"
	@$(TIMED) $(BIN)/python -m benchmarks.onnx $(or $(NETWORKS),ddpm-church-256)

bench-reuse: $(READY)
	@echo "==> benchmark of reuse"
	@$(TIMED) $(BIN)/python -m benchmarks.reuse $(BENCH)

bench-edits: $(READY)
	@echo "==> benchmark of edits of prompts"
	@$(TIMED) $(BIN)/python -m benchmarks.edits $(BENCH)

bench-store: $(READY)
	@echo "==> benchmark of the store"
	@$(BIN)/python -m benchmarks.store $(BENCH)

bench-weights: $(READY)
	@echo "==> benchmark of sparse weights"
	@$(TIMED) $(BIN)/python -m benchmarks.weights $(BENCH)

bench-sparse: $(READY)
	@echo "==> benchmark of networks with sparse weights"
	@$(TIMED) $(BIN)/python -m benchmarks.sparse_networks $(NETWORKS) $(BENCH)

bench-fidelity: $(READY)
	@echo "==> benchmark of fidelity with sparse weights"
	@$(TIMED) $(BIN)/python -m benchmarks.fidelity $(NETWORKS) $(BENCH)

coverage: $(READY)
	@echo "==> coverage"
	@$(BIN)/python -m benchmarks.coverage

test-deep: $(READY)
	@echo "==> laws, in depth"
	@$(BIN)/python -m pytest tests/test_laws.py tests/test_export.py tests/test_reuse.py \
		tests/test_peers.py tests/test_benchmarks.py tests/test_fidelity.py tests/test_emission.py \
		tests/test_switched_folders.py tests/test_networks.py \
		--hypothesis-profile=deep
	@echo "==> exported networks"
	@$(BIN)/python -m pytest tests/deep_export.py

gpu: $(GPU_READY)
	@echo "==> kernels and models against the CPU"
	@$(BIN)/python -m pytest tests/gpu
	@echo "==> small kernels under compute-sanitizer"
	@PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 \
		$(BIN)/python -m pytest tests/gpu -k small
	@echo "==> benchmarks"
	@$(BIN)/python -m benchmarks.gpu_kernels
	@$(BIN)/python -m benchmarks.gpu

clean:
	@echo "==> clean"
	@rm -rf build dist demo_out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python"; exit 1; }
	@command -v c++ g++ clang++ > /dev/null \
		|| echo "note: no C++ compiler found; the compiled backend needs one on CPU"
	@if [ -x $(BIN)/python ]; then \
		echo "==> set-up: $(VENV) is there"; \
	elif command -v nvidia-smi > /dev/null && $(PYTHON) -c '$(HAS_TORCH)' 2> /dev/null; then \
		echo "==> set-up: $(VENV), with the system's torch"; \
		$(INHERIT); \
	else \
		echo "==> set-up: $(VENV)"; \
		$(PYTHON) -m venv $(VENV); \
	fi
	@$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77"
	@if ! command -v nvidia-smi > /dev/null; then \
		echo "==> set-up: $(CPU_TORCH)"; \
		$(BIN)/python -m pip install --quiet $(CPU_TORCH); \
	fi
	@echo "==> set-up: sparsify and its development tools (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(GPU_READY): pyproject.toml
	@$(PYTHON) -c '$(HAS_TORCH)' || { echo "torch 2.11 or newer is needed first"; exit 1; }
	@echo "==> set-up: $(VENV), with the system's torch"
	@$(INHERIT)
	@$(BIN)/python -m pip install --quiet $(OFFLINE) "setuptools>=77"
	@$(BIN)/python -m pip install --quiet $(OFFLINE) --no-build-isolation --editable '.[gpu]'
	@touch $@
