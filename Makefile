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
TIER ?= ci
SEED ?=
HOURS ?=
JOBS ?=
RESUME ?=
VERSION ?=
BENCH = $(if $(SIZE),--size $(SIZE)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(addprefix --only ,$(ONLY)) \
	$(if $(KEEP),--keep '$(KEEP)') $(if $(PUBLISH),--publish)
SCOREBOARD = --tier $(TIER) $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED)) $(if $(HOURS),--hours $(HOURS)) \
	$(if $(JOBS),--jobs $(JOBS)) $(if $(RESUME),--resume) $(if $(PUBLISH),--publish)
SHELL_SCRIPTS = $(shell git ls-files -z | xargs -0 grep -lIE '^\#!.*/(env )?(ba)?sh$$' -- 2>/dev/null | tr ' ' '?')

.DELETE_ON_ERROR:
.PHONY: help setup demo test coverage screenshots scoreboard mutation bench image chart check audit release lock translations clean

help: ## show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/.made ## install Debian packages and make .venv (PYTHON=... chooses another Python)
	@:

.venv/.made: requirements-build.txt requirements-dev.txt pyproject.toml $(wildcard scripts/*)
	@scripts/install-debian-packages
	@scripts/make-environment $(PYTHON)
	@touch $@

demo: setup ## back up a real server, destroy it, restore it, compare (TARGET=file, smb or s3)
	@$(BIN)/python -m demo --target $(TARGET)

# Three workers for two processors: many tests wait for a real part.
test: setup ## all tests, on real parts (PYTEST="-k name -x" chooses)
	@$(BIN)/python -m pytest -q -n 3 --dist worksteal $(PYTEST)

coverage: setup ## which lines and branches tests run (ONLY="tests/unit tests/integration/test_prune.py"): build/coverage
	@scripts/coverage $(ONLY)

scoreboard: setup ## the reliability experiments, counted (TIER=nightly ONLY=R5 SEED=1 JOBS=2 RESUME=1; ONLY=R25 HOURS=2)
	@$(BIN)/python -m scoreboard $(SCOREBOARD)

mutation: setup ## break the reader in one place at a time: does a test notice? (ONLY=service/archive/zip64.py JOBS=2)
	@$(BIN)/python -m mutation $(if $(ONLY),--only $(ONLY)) $(if $(JOBS),--jobs $(JOBS))

bench: setup .venv/.bench ## ours and the peers, measured (SIZE=0.5 ROUNDS=1 ONLY=backup KEEP=dir PUBLISH=1)
	@$(BIN)/python -m benchmarks $(BENCH)

.venv/.bench: requirements-bench.txt .venv/.made
	@scripts/install-debian-packages scripts/debian-packages-bench.txt
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --require-hashes -r requirements-bench.txt
	@touch $@

deb: setup ## build the Debian package of this release: dist/*.deb
	@scripts/make-deb

debproof: setup ## install it in a machine that systemd has booted, and have it tell the demo's story (needs root)
	@scripts/prove-deb

image: setup ## build the container image and have it tell the demo's story (needs root)
	@scripts/prove-image

chart: setup ## make what is generated of the Helm chart: README, schema, golden renders
	@$(BIN)/python -m tests.helm.make

check: setup ## format, lint, types, architecture, Dockerfile, shell scripts, licences
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py
	$(BIN)/hadolint Dockerfile
	shellcheck $(SHELL_SCRIPTS)
	$(BIN)/python -m release.licences

audit: setup ## known vulnerabilities of what is pinned (needs the network: says so when it could not ask)
	@$(BIN)/python -m release.audit

release: setup ## rehearse a release (VERSION=0.1.0); docs/RELEASING.md
	@scripts/release $(VERSION) --without test --without image

lock: setup ## pin what pyproject.toml asks for (UPGRADE=--upgrade takes the newest)
	@scripts/lock $(UPGRADE)

screenshots: setup ## take pictures of the portal for docs/images (some minutes)
	@$(BIN)/python -m tests.browser.screenshots

translations: setup ## collect the portal's texts into service/portal/locale/*.po
	@scripts/translations

clean: ## remove .venv, caches and what was built
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
