# Everything from a bare clone: `make demo`, `make test`. Each target installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# uv does not read pip's configuration: pass a local wheel folder on, where pip has one.
export UV_FIND_LINKS ?= $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
WORKERS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-vqa table test test-slow mutate lint fast docs bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "uv>=0.9,<0.14"

$(STAMP): pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[all,dev,docs]"
	@touch $@

setup: $(STAMP) ## make .venv and install the library with all its parts

demo: $(STAMP) ## federate LoRA adapters over ten clients, print and save what was gained
	$(BIN)/fedvlm simulate simulations/configs/demo.toml --out runs/demo --overwrite $(ARGS)
	$(BIN)/fedvlm report runs/demo

table: $(STAMP) ## what each protection buys and costs: ARGS=--quick, or hours for all; goes on when stopped
	$(BIN)/fedvlm compare simulations/configs/compare.toml --out runs/table $(ARGS)

demo-vqa: $(STAMP) ## teach a small model to answer, three seeds: zero-shot, local, federated, central
	$(BIN)/python -m simulations.demo_vqa $(ARGS)

lint: $(STAMP) ## format, rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Workers share the cores, and threads fight for them.
test fast test-slow: export OMP_NUM_THREADS := 1

test: $(STAMP) ## lint, types and the fast tests; types are checked on one core while tests are collected
	@$(MAKE) --no-print-directory -j2 lint fast

fast: $(STAMP) ## the fast tests alone
	$(BIN)/pytest -m "not slow" -n $(WORKERS) --dist loadgroup $(ARGS)

test-slow: $(STAMP) ## the long tests: Ray, SuperLink, whole federations
	$(BIN)/pytest -m slow $(ARGS)

mutate: $(STAMP) ## put deliberate faults in, one at a time, and list those that no test notices
	$(BIN)/python -m simulations.mutate $(ARGS)

docs: $(STAMP) ## build the documentation, warnings as errors
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

bench: $(STAMP) ## every benchmark beside its peer: make bench, or make bench ARGS=aggregation
	$(BIN)/python -m simulations.benchmarks $(or $(ARGS),all) --json runs/bench.json

clean: ## remove what was built
	rm -rf $(VENV) docs/_build runs .pytest_cache .ruff_cache .hypothesis
