# `make quickstart` and `make test` work in a fresh clone; VENV=dir picks another environment, ARGS=--resume goes on
# with a quickstart that was stopped.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
KEY := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: quickstart test check pretrained install

quickstart: install
	$(BIN)/nas quickstart --out results/quickstart $(ARGS)

test: install
	$(BIN)/python -m pytest -n 2

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=benchmarks $(BIN)/mypy --allow-untyped-calls benchmarks

# The networks that ship, trained anew; what was interrupted goes on.
pretrained: install
	$(BIN)/python benchmarks/pretrain.py $(ARGS)

# The packages are installed once for a pyproject.toml and constraints.txt; the editable project itself, which is quick,
# every time, because the environment may be shared by several clones.
install: $(KEY)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .

$(KEY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "setuptools>=77"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,hf,openvino]"
	touch $(KEY)
