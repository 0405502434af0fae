# `make demo` and `make test` install what they need: Debian packages (as root or through sudo) and .venv.

SHELL := /bin/sh
BIN := .venv/bin
PYTHON ?=
PYTEST ?=
TARGET ?= file
SIZE ?=
ROUNDS ?=
ONLY ?=
KEEP ?=
PUBLISH ?=
BENCH = $(if $(SIZE),--size $(SIZE)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(addprefix --only ,$(ONLY)) \
	$(if $(KEEP),--keep '$(KEEP)') $(if $(PUBLISH),--publish)
SHELL_SCRIPTS = $(shell git ls-files -z | xargs -0 grep -lIE '^\#!.*/(env )?(ba)?sh$$' -- 2>/dev/null | tr ' ' '?')

.DELETE_ON_ERROR:
.PHONY: help setup demo test bench image check lock clean

help: ## show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: .venv/.made ## install Debian packages and make .venv (PYTHON=... chooses another Python)
	@:

.venv/.made: requirements-build.txt requirements-dev.txt pyproject.toml $(wildcard scripts/*)
	@scripts/install-debian-packages
	@scripts/make-environment $(PYTHON)
	@touch $@

demo: setup ## back up a real server, destroy it, restore it, compare (TARGET=file, smb or s3)
	@$(BIN)/python -m demo --target $(TARGET)

test: setup ## all tests, on real parts (PYTEST="-k name -x" chooses)
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal $(PYTEST)

bench: setup .venv/.bench ## ours and the peers, measured (SIZE=0.5 ROUNDS=1 ONLY=backup KEEP=dir PUBLISH=1)
	@$(BIN)/python -m benchmarks $(BENCH)

.venv/.bench: requirements-bench.txt .venv/.made
	@scripts/install-debian-packages scripts/debian-packages-bench.txt
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --require-hashes -r requirements-bench.txt
	@touch $@

image: setup ## build the container image and have it tell the demo's story (needs root)
	@scripts/prove-image

check: setup ## format, lint, types, architecture, Dockerfile, shell scripts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py
	$(BIN)/hadolint Dockerfile
	shellcheck $(SHELL_SCRIPTS)

lock: setup ## pin what pyproject.toml asks for (UPGRADE=--upgrade takes the newest)
	@scripts/lock $(UPGRADE)

clean: ## remove .venv, caches and what was built
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
