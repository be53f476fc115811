# make demo   environment, the smoke study on real digits, its report        (needs Python 3.11 and make only)
# make test   environment, all tests
# make test-fast   the tests of the core alone, in a minute
# make check  what .ci/run does besides the tests: lint, formatting, direction of imports, types, documentation
# make house  the health figures of the code base: floors, circles, lines
# make keep   STUDY=smoke: the records of a finished study into results/, the documents' tables from there
# Variables: PYTHON (the interpreter to start from), VENV (where the environment goes), PYTEST_ARGS.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check lint types docs house format keep tables clean

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
PYTEST_ARGS ?= -n 2 --dist worksteal
TABLES := README.md docs/results.md docs/believing.md docs/fine_tuning.md docs/hashing.md docs/memory.md docs/reproduce_biotorch.md docs/robustness.md docs/spiking.md docs/weight_transport.md docs/low_dim_error.md docs/learners.md

FAST := names transport broadcast conversion corners controls describe updates history state_dict outputs attention \
	kolen_pollack mirror low_dimensional direct wrappers spiking_rules alignment_losses product probes imports house

# One thread a process: on a shared machine two threads can be many times slower than one.
export OMP_NUM_THREADS ?= 1

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

# An environment is as old as what it was made from: each stamp names the kind of environment.
$(VENV)/.made-python:
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11 or set PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "creating the environment in $(VENV)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.made-bench: $(VENV)/.made-python pyproject.toml constraints.txt
	@echo "installing apical[bench] (first time: some minutes)"
	@$(PIP) -e '.[bench]'
	@touch $@

# Oracles of the tests only; without their dependencies they can never replace torch (nor requests).
$(VENV)/.made-dev: $(VENV)/.made-bench pyproject.toml constraints.txt
	@echo "installing apical[dev] and the test oracles (first time: some minutes)"
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps timm torchattacks torchvision
	@touch $@

demo: $(VENV)/.made-bench
	@$(BIN)/apical study smoke --jobs 2
	@$(BIN)/apical report runs/smoke
	@echo "the report: file://$(CURDIR)/runs/smoke/report/index.html"

test: $(VENV)/.made-dev
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: $(VENV)/.made-dev
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(FAST:%=tests/test_%.py)

check: lint types docs

lint: $(VENV)/.made-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache

types: $(VENV)/.made-dev
	@$(BIN)/mypy

docs: $(VENV)/.made-dev
	@$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@APICAL_HTML=docs/_build/html $(BIN)/python -m pytest -q -k built_pages tests/test_docs_site.py
	@echo "documentation: docs/_build/html/index.html"

house: $(VENV)/.made-dev
	@$(BIN)/python tools/house.py --check

format: $(VENV)/.made-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Checkpoints and pictures stay behind: what a table needs is the settings and the rows.
keep: $(VENV)/.made-bench
	@test -n "$(STUDY)" -a -d "runs/$(STUDY)" || { echo "give STUDY=, a folder in runs/"; exit 1; }
	@$(BIN)/python -c 'from apical.bench.storage.packing import pack; pack("runs/$(STUDY)", "results/$(STUDY)")'
	@$(MAKE) --no-print-directory tables

tables: $(VENV)/.made-bench
	@$(BIN)/python -c 'from apical.bench.report import refresh; [refresh(f, "results") for f in "$(TABLES)".split()]'
	@$(BIN)/python benchmarks/speed_page.py docs/results.md docs/speed.md
	@$(BIN)/python benchmarks/attack_strength.py --page docs/robustness.md

clean:
	rm -rf build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
