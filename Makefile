# Every target creates .venv if necessary: on a fresh clone `make demo` and `make test` each work as the only command.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Overrides: make setup PYTHON=/path/to/python3.12   make test JOBS=8 ARGS="-k collate -x"   make demo ARGS="seed=2"
PYTHON ?=
JOBS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CHECKED := llm2slm tests experiments

.PHONY: help setup demo test test-all matrix lint audit format builtin-llm wheel clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)$$/\1|\2/' | \
	  while IFS='|' read -r target text; do printf '  make %-12s %s\n' "$$target" "$$text"; done

setup: $(STAMP) ## Create .venv and install the project with the exact versions of constraints.txt

demo: $(STAMP) ## Train, evaluate and benchmark LLM, SLM and hybrid on CPU, offline; writes outputs/demo/report.html
	$(BIN)/llm2slm demo $(ARGS)

PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(JOBS)

test: $(STAMP) ## Run every kind of test on JOBS processes (2): all but those that are marked slow
	$(PYTEST) $(ARGS)

test-all: $(STAMP) ## Run all tests, the slow ones included
	$(PYTEST) --slow $(ARGS)

# the files that test a covering subset of their combinations otherwise
MATRIX := tests/models/test_matrix.py tests/evaluation/test_costs.py tests/training/test_fit.py \
  tests/commands/test_generate_command.py

matrix: $(STAMP) ## Test every combination of LLM and SLM family, conditioning and tokenizers (many minutes)
	LLM2SLM_MATRIX=1 $(PYTEST) --slow $(MATRIX) $(ARGS)

lint: $(STAMP) ## Check style (ruff) and types (mypy)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy

# strict: a package that the database does not have is an error, not a success
audit: $(BIN)/python ## Look up the versions of constraints.txt in the database of known vulnerabilities (needs a network)
	$(BIN)/python -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	build/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

format: $(STAMP) ## Format the code and apply ruff's automatic fixes
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

builtin-llm: $(STAMP) ## Retrain the built-in LLM (about an hour: see experiments/LOG.md)
	$(BIN)/llm2slm tokenizer data.corpus=mixture data.train_size=30000 task=mixture vocab_size=2048 \
	  out=outputs/builtin_llm_tokenizer
	$(BIN)/llm2slm train experiment=builtin_llm hydra.run.dir=outputs/builtin_llm $(ARGS)
	$(BIN)/python experiments/builtin_llm/ship.py outputs/builtin_llm llm2slm/builtin/llm

wheel: $(STAMP) ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## Delete caches and build outputs (not .venv, outputs and multirun)
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find llm2slm tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  echo "creating $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv $(VENV) && exit 0; \
	  rm -rf $(VENV); \
	  echo "$$python cannot create a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; \
	done; \
	echo "no Python >= 3.11 among: $(or $(PYTHON),python3.13 python3.12 python3.11 python3)." \
	  "Install one, or name it: make $(or $(firstword $(MAKECMDGOALS)),setup) PYTHON=/path/to/python" >&2; exit 1

# torch first and alone, so that no other requirement selects its build.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(VENV) has $$($(BIN)/python --version), but Python >= 3.11 is needed: delete it and run make again" >&2; exit 1; }
	@echo "installing the packages of constraints.txt into $(VENV): 2 to 7 minutes, 2.6 GB"
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
