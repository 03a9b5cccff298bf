# make study   sets everything up and runs the fusion study      make test   sets up and tests
PYTHON ?= python3
BIN := .venv/bin
export PYTHONSAFEPATH := 1# the root stays off sys.path: the bare name `kernels` is not ours to claim

.PHONY: study test slow newest parity check install
PYTEST := $(BIN)/pytest -n 2 --dist worksteal
KERNELS := TRITON_INTERPRET=1 $(PYTEST) tests/kernels/test_*_triton.py # on the CPU

study: install
	$(BIN)/archsearch study spaces/fusion.yaml

test: install
	$(PYTEST)
	$(KERNELS)

slow: install
	$(PYTEST) -m slow

newest: install
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/newest triton
	PYTHONPATH=.venv/newest $(KERNELS)

parity: install
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/parity -c constraints.txt transformers tokenizers regex torchscale accelerate
	PYTHONPATH=.venv/parity $(BIN)/pytest tests/blocks/test_parity.py tests/archsearch/test_hub.py

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
