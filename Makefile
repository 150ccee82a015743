# Everything a developer does here, on a machine that has Python >= 3.11 and nothing else. All paths are relative, so
# that a checkout in a path with a space works.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PINS := deploy/constraints.txt
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-input
# 3.11 and 3.12 first: every pinned package has a wheel for them. `make PYTHON=/path/to/python …` overrules.
PYTHON ?=
CANDIDATES := $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3 python)
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

BENCHES := stream share serve overload export rebuild history
# `make bench`, `make bench stream` and `make bench BENCH=stream` are all understood.
BENCH ?= $(or $(filter $(BENCHES),$(MAKECMDGOALS)),$(BENCHES))
ARGS ?=
DOCUMENTED := featurestore streams README.md docs tests/docs

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: .venv/package ## the whole path on a year of real flights; ARGS=--keep leaves it running
	@.venv/bin/featurestore demo $(ARGS)

.PHONY: test
test: .venv/package ## all tests; with Java 17 and Maven also those on a real Kafka. ARGS='-k name' chooses
	@$(PY) -m pytest $(ARGS)

.PHONY: lint
lint: .venv/package ## style, types and arrows between modules
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports

.PHONY: fix
fix: .venv/package ## repairs what of `lint` can be repaired
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

.PHONY: bench
bench: .venv/package ## measurements beside peers and limits: `make bench`, or `make bench stream` (share, serve, overload, export, rebuild, history)
	@for name in $(BENCH); do $(PY) -m "tests.bench.$$name" $(ARGS); done

.PHONY: chaos
chaos: .venv/package ## kills, empties and takes away parts while data flows; nothing may be lost or counted twice
	@$(PY) -m tests.chaos $(ARGS)

.PHONY: docs
docs: .venv/package ## runs the examples of the documentation, and checks every name in it
	@$(PY) -m pytest --doctest-modules --doctest-glob='*.md' $(DOCUMENTED) $(ARGS)

.PHONY: pins
pins: ## resolves the pinned packages again (needs uv on PATH)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --quiet --upgrade \
	  --no-header --no-annotate --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-package featurestore \
	  --output-file $(PINS)

.PHONY: clean
clean: ## removes the environment, caches and everything the demo left
	@rm -rf .venv .demo .kafka build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

ifneq ($(filter bench,$(MAKECMDGOALS)),)
.PHONY: $(BENCHES)
$(BENCHES):
	@:
endif

# Two stamps: the pinned packages, which take a minute, and this package on top of them, which takes a second.
# `--no-compile` saves a good part of it: Python compiles on first import what is imported at all.
.venv/pins: $(PINS)
	@python=''; \
	for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c '$(USABLE)' >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'No Python >= 3.11 with the venv module was found: tried $(subst ",,$(CANDIDATES)).' >&2; \
	  echo 'Install one (Debian: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python' >&2; \
	  exit 1; \
	fi; \
	echo "Setting up .venv with $$("$$python" --version): once, about a minute" >&2; \
	"$$python" -m venv .venv
	@$(PIP) --no-compile --require-hashes -r $(PINS)
	@touch $@

.venv/package: .venv/pins pyproject.toml
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
