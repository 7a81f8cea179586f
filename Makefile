# Every target sets itself up in .venv first; nothing outside this folder is touched.
#   make test TORCH=2.12.0    another torch
#   make test PYTHON=python3.12

PYTHON ?= python3
TORCH ?= 2.13.0
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready-torch-$(TORCH)
OFFLINE := HF_HUB_OFFLINE=1

.PHONY: help setup demo demo-full test test-slow lint docs clean

help:  ## Say what there is (the default)
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-11s %s\n", $$1, $$2 }'

setup: $(STAMP)  ## Make .venv with everything the other targets need

demo: $(STAMP)  ## Align the embedded model with real photographs and write runs/demo/report.html
	$(OFFLINE) $(BIN)/diffalign demo --out runs/demo

demo-full: $(STAMP)  ## The demo over five training seeds: an hour or two; goes on where it stopped
	$(OFFLINE) $(BIN)/python scripts/demo/full.py --out runs/full

test: $(STAMP)  ## Run the tests that take seconds
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

test-slow: $(STAMP)  ## Run the tests that take minutes
	$(OFFLINE) $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## Build the site into site/, every warning an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## Remove .venv, the site and every cache
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first, so that the rest is resolved against the one that was chosen
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; choose one with PYTHON=..., such as PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "cannot make $(VENV); on Debian: apt install python3-venv"; exit 1; }
	rm -f $(VENV)/.ready-torch-*
	sed 's/^torch==.*/torch==$(TORCH)/' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt "torch==$(TORCH)"
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt --editable ".[dev,docs]"
	touch $@
