# Needs only Python >= 3.11 and make. Everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-all check bench clean

help:
	@echo 'make install the environment in .venv, with everything that development needs'
	@echo 'make demo    three nodes on this machine, one mesh, a real MCP client: see it work'
	@echo 'make test    every test that this machine can run'
	@echo 'make check   format, lint, types, layers'
	@echo 'make bench   the figures of docs/benchmarks.md'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'agentmesh needs Python 3.11 or newer; set PYTHON=python3.x' >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing agentmesh and its tools into $(VENV) ...'
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/python benchmarks/demo.py

test: $(STAMP)
	@$(BIN)/python -m pytest tests

test-all: $(STAMP)
	@AGENTMESH_REQUIRE_ALL=1 $(BIN)/python -m pytest tests

check: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/pyright

bench: $(STAMP)
	@$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
