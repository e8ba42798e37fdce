# `make demo` and `make test` do all the set-up; repeating it costs seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUNS := $(VENV)/.runs
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NEEDED_DISK_GIB := 8
# Two of them drive a real stack and mostly wait.
TEST_PROCESSES ?= 2
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-study down test lint audit format lock clean

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(STAMP) ## make .venv with the pinned dependencies, those of the tests included

$(RUNS): requirements.lock pyproject.toml
	@PYTHON="$(PYTHON)" NEEDED_DISK_GIB=$(NEEDED_DISK_GIB) ./scripts/check-machine
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (some minutes the first time)"
	@rm -rf *.egg-info  # an old one would hide newer entry points from programs that run in this folder
	@$(PIP) --constraint requirements.lock setuptools
	@$(PIP) --constraint requirements.lock --no-build-isolation --editable .
	@touch $(RUNS)

$(STAMP): $(RUNS)
	@echo "installing what tests and checks need"
	@$(PIP) --requirement requirements.lock
	@touch $(STAMP)

demo: $(RUNS) ## the whole pipeline on bundled photographs, then the addresses to look at
	@echo "make demo: starts Prefect and Ray (half a minute), then shards photographs, trains three stages from a shipped prior,"
	@echo "draws and scores: six minutes on two idle cores; a second time, seconds. Ctrl-C leaves it running; make down stops all."
	@$(BIN)/piti up
	@$(BIN)/piti run full-train --config demo

demo-study: $(RUNS) ## does the demo's prior pay? As many steps from it and from random weights, some minutes of one core
	@$(BIN)/python benchmarks/demo_prior_pays.py --folder data/demo-study

down: $(RUNS) ## stop what `make demo` or `piti up` started
	@$(BIN)/piti down

test: setup lint ## lint, types, and the whole test suite
	$(BIN)/python -m pytest tests/unit -n $(TEST_PROCESSES) --dist loadfile
	$(BIN)/python -m pytest tests/e2e tests/integration

chaos: setup ## what takes minutes each: training that hangs, nodes that are killed
	$(BIN)/python -m pytest tests/chaos

lint: setup ## ruff, the floors of the house, mypy
	$(BIN)/ruff check . scripts/check-architecture
	$(BIN)/ruff format --check . scripts/check-architecture
	$(BIN)/python scripts/check-architecture
	$(BIN)/mypy

audit: setup ## licences and known vulnerabilities of the pinned dependencies
	@$(BIN)/python scripts/audit.py

format: setup ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup ## resolve requirements.lock anew from pyproject.toml
	@$(BIN)/python scripts/lock.py

clean: ## delete .venv and caches (not data/, not .piti/)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
