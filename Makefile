# make demo and make test install what they need: Debian packages (root or sudo) and .venv.

PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/sh
.DELETE_ON_ERROR:

.PHONY: help setup demo test check lock clean

help: ## show this
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: .venv/.made ## install Debian packages and make .venv
	@scripts/install-debian-packages

.venv/.made: requirements-dev.txt pyproject.toml scripts/debian-packages.txt
	@scripts/install-debian-packages
	@echo "Making .venv (tpm2-pytss is built from source, about half a minute)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## back up a real server, destroy it, restore it, compare
	@$(BIN)/python -m demo

test: setup ## all tests, on real parts
	@$(BIN)/python -m pytest -q

check: setup ## format, lint, types, architecture, shell scripts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py
	shellcheck scripts/install-debian-packages .ci/run "tools/System Recovery/recovery.sh"

lock: ## pin every dependency by hash, from pyproject.toml
	$(BIN)/uv pip compile -q --generate-hashes --no-emit-index-url --no-header --upgrade pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile -q --generate-hashes --no-emit-index-url --no-header --upgrade --group dev pyproject.toml -o requirements-dev.txt

clean: ## remove .venv and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
