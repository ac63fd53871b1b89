# What `make ask` asks. Override on the command line:
#   make ask QUESTION="Who signed the lease?" FILE=lease.pdf MODEL=http://127.0.0.1:8080
QUESTION := How many displaced persons now remain in the United States zone?
FILE := examples/data/state-of-the-union-1946.txt
MODEL := embedded

PYTHON ?= python3
VENV := .venv

# Name a PyTorch here and the tests that need one run too: make test TORCH=torch==2.13.0
# It is not asked for by itself, since what PyPI gives for Linux has several GB.
TORCH ?=

# Taken literally, so that a "$" in a question reaches the program and no shell sees a quote in it.
override QUESTION := $(value QUESTION)
override FILE := $(value FILE)
override MODEL := $(value MODEL)
export QUESTION FILE MODEL

PIP_INSTALL := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check

.PHONY: help ask test lint types format notebooks bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

ask: $(VENV)/.installed ## Ask the example document a question (QUESTION=... FILE=... MODEL=...)
	@$(VENV)/bin/qwenlong-graph ask "$$QUESTION" "$$FILE" --model "$$MODEL"

# Tests beside each other first; then those that need the machine to themselves.
test: lint types $(if $(TORCH),$(VENV)/.installed-torch) ## Run the linter, the type checker and all tests (TORCH=torch)
	@failed=; $(VENV)/bin/pytest -m "not alone" --numprocesses auto --dist loadfile || failed=yes; \
	$(VENV)/bin/pytest -m alone || failed=yes; \
	test -z "$$failed"

lint: $(VENV)/.installed-dev ## Check style and format
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-dev ## Check types
	@$(VENV)/bin/mypy

format: $(VENV)/.installed-dev ## Mend style and format where that is safe
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

notebooks: $(VENV)/.installed-dev ## Execute the notebooks and write their outputs anew
	@$(VENV)/bin/python -m tests.run_notebooks

bench: $(VENV)/.installed-dev ## Measure everything; the embedded model takes hours, and goes on where it was stopped
	@mkdir -p benchmarks/results
	@$(VENV)/bin/python benchmarks/unsupported.py --json benchmarks/results/unsupported.json
	@$(VENV)/bin/python benchmarks/loop.py --json benchmarks/results/loop.json
	@$(VENV)/bin/python benchmarks/clients.py --json benchmarks/results/clients.json
	@$(VENV)/bin/python benchmarks/hosts.py --json benchmarks/results/hosts.json
	@$(VENV)/bin/python benchmarks/reading_report.py --json benchmarks/results/reading_report.json
	@$(VENV)/bin/python benchmarks/kills.py --json benchmarks/results/kills.json
	@$(VENV)/bin/python benchmarks/faults.py --json benchmarks/results/faults.json
	@$(VENV)/bin/python benchmarks/repetition.py --json benchmarks/results/repetition.json
	@$(VENV)/bin/python benchmarks/embedded_quality.py --json benchmarks/results/embedded_quality.json \
		--cells benchmarks/results/embedded_quality.jsonl

clean: ## Remove .venv, caches and build outputs
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: a second run installs again only when pyproject.toml has changed.
$(VENV)/.installed: pyproject.toml | $(VENV)/.created
	@echo "Installing qwenlong-graph into $(VENV); the first time this takes a few minutes."
	@$(PIP_INSTALL) --editable '.[embedded]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.created
	@echo "Installing qwenlong-graph and its tests into $(VENV); the first time this takes a few minutes."
	@$(PIP_INSTALL) --editable '.[embedded,dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-torch: $(VENV)/.installed-dev
	@echo "Installing $(TORCH)"
	@$(PIP_INSTALL) '$(TORCH)' --editable '.[embedded,dev,transformers]' fastapi
	@touch $@

$(VENV)/.created:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "$(PYTHON) was not found. Install Python 3.11 or newer, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), and 3.11 or newer is needed. Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) lacks the venv module. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@
