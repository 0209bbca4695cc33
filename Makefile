# `make help` tells what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# A host with an NVIDIA driver gets the packages for its GPU; `make engines GPU=` builds for the CPU all the same.
GPU := $(shell command -v nvidia-smi 2>/dev/null)
GPU_EXTRA := gpu
# The pins are CUDA 13's; for CUDA 12 the extra's ranges choose.
GPU_PINS = $(if $(filter gpu,$(GPU_EXTRA)),-c deploy/constraints-gpu.txt)
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

engines: $(VENV)/.runtime $(if $(GPU),$(VENV)/.gpu)  ## Compile engines for this host into the cache (ARGS="--size 512x384 --weights …")
	$(BIN)/impasto engines build $(ARGS)

bench: $(VENV)/.peers  ## Measure against PyTorch, and print the tables of docs/benchmarks.md
	$(BIN)/python -m benchmarks $(ARGS)

gpu-check: $(VENV)/.runtime $(if $(GPU),$(VENV)/.torch)  ## Prove kernels, engines and plans on a GPU host (ARGS="kernels --quick")
	$(BIN)/python -m benchmarks.gpu $(or $(ARGS),--write)

clean:  ## Remove the virtual environment and everything that was built or painted here
	rm -rf $(VENV) build out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e .
	@touch $@

# onnxruntime and onnxruntime-gpu hold the same files: the second must be laid down last, in the version that was chosen.
$(VENV)/.gpu: $(VENV)/.runtime deploy/constraints-gpu.txt
	$(PIP) install -c constraints.txt $(GPU_PINS) -e '.[$(GPU_EXTRA)]'
	$(PIP) uninstall -y onnxruntime
	version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("onnxruntime-gpu"))') && \
	$(PIP) install --force-reinstall --no-deps onnxruntime-gpu==$$version
	@touch $@

# What the GPU's results are held against; alone, for the package itself would bring onnxruntime back.
$(VENV)/.torch: $(VENV)/.gpu
	$(PIP) install -c constraints.txt torch
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) install -c constraints.txt -e '.[dev,reference,scipy,keras,openvino]'
	@rm -f $(VENV)/.gpu  # onnxruntime has come back
	@touch $@

# Other people's programs; neural-style alone, for it asks for torchvision, which has no build beside torch for CPUs alone.
$(VENV)/.peers: $(VENV)/.dev constraints.txt
	$(PIP) install -c constraints.txt -e '.[peers]'
	$(PIP) install -c constraints.txt --no-deps neural-style
	@touch $@

$(VENV)/.typed: $(SOURCES) pyproject.toml | $(VENV)/.dev
	rm -rf $(VENV)/typed
	$(PIP) install --no-deps --target $(VENV)/typed .
	@touch $@
