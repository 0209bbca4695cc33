# `make help` tells what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := $(shell find impasto models export optimize runtime -name '*.py')

.DEFAULT_GOAL := help
.PHONY: help demo test lint engines bench gpu-check clean

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime  ## Paint a picture with what the package ships (no torch, no download)
	$(BIN)/impasto demo -o out/demo

test: $(VENV)/.dev  ## Run the tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev $(VENV)/.typed  ## Check style (ruff) and types (mypy --strict, on the package as installed)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(VENV)/typed $(BIN)/mypy -p impasto

engines: $(VENV)/.runtime  ## Compile engines for this host into the cache (ARGS="--size 512x384 --weights …")
	$(BIN)/impasto engines build $(ARGS)

bench: $(VENV)/.dev  ## Measure against PyTorch, and print the tables of docs/benchmarks.md
	$(BIN)/python -m benchmarks $(ARGS)

gpu-check:  ## Prove kernels and engines on a GPU host (this version has no GPU backend yet)
	@echo "gpu-check: this version runs on CPUs only; there is no kernel or GPU engine to check yet"

clean:  ## Remove the virtual environment and everything that was built or painted here
	rm -rf $(VENV) build out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) install -c constraints.txt -e '.[dev,reference,scipy,keras,openvino]'
	@touch $@

$(VENV)/.typed: $(SOURCES) pyproject.toml | $(VENV)/.dev
	rm -rf $(VENV)/typed
	$(PIP) install --no-deps --target $(VENV)/typed .
	@touch $@
