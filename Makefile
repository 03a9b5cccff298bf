# make study   sets everything up and runs the fusion study      make test   sets up and tests
PYTHON ?= python3
BIN := .venv/bin
export PYTHONSAFEPATH := 1# the root stays off sys.path: the bare name `kernels` is not ours to claim

.PHONY: study test slow check install

study: install
	$(BIN)/archsearch study spaces/fusion.yaml

test: install
	$(BIN)/pytest

slow: install
	$(BIN)/pytest -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "archsearch needs Python 3.11 or newer: make PYTHON=python3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
