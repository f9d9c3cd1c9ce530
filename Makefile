# demo, test, check on a fresh machine that has Python >= 3.11, a C compiler and make. `make` alone says what there is.

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# The first Python that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3.14 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$python"; break; }; done)
PYTEST ?= $(PY) -m pytest
# Test processes of `make test`; most tests wait for something. Modules stay together, and so do all Docker tests.
PROCESSES ?= 3
ARGS ?=
ROUNDS ?= 1
SEED ?=

.PHONY: help
help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(READY) ## a gateway with an agent on this machine, and a task that runs through it
	@$(VENV)/bin/tesgate demo $(ARGS)

.PHONY: test
test: beds ## everything, with every real service that can be had here (up to 20 minutes)
	@$(PYTEST) -n $(PROCESSES) --dist loadgroup --no-loadscope-reorder -o faulthandler_exit_on_timeout=true $(ARGS)

.PHONY: soak
soak: beds ## faults at random moments: ROUNDS rounds from SEED on (3 to 5 minutes each, and more the first)
	@ROUNDS=$(ROUNDS) SEED=$(SEED) $(PYTEST) tests/soak/rounds.py tests/soak/store_rounds.py -q -s $(ARGS)

.PHONY: clients
clients: beds ## real clients that take minutes: Toil (and its environments, the first time)
	@$(PYTEST) tests/clients/toil.py -q $(ARGS)

.PHONY: beds
beds: $(READY) ## what the tests' real services need, as far as this machine lets us install it
	@sh tests/beds/setup.sh

.PHONY: check
check: $(READY) ## style, types, layers and the quick tests (under 2 minutes)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports
	@if [ -e tools/check_runner.py ]; then $(PY) tools/check_runner.py; fi
	@$(PYTEST) -q -m "not bed and not slow" tests/unit tests/model tests/services tests/api $(ARGS)

BENCHMARKS ?= overhead staging objects ftp api polls lists statements load path_of_a_task claims
.PHONY: bench
bench: beds ## every benchmark with its table, one after the other (QUICK=1: minutes instead of hours)
	@for script in $(BENCHMARKS:%=benchmarks/%.py); do \
		echo "=== $$script"; date -u; PYTHONPATH=. $(PY) "$$script" $(if $(QUICK),--quick) $(ARGS) || failed="$$failed $$script"; echo; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

.PHONY: wheels
wheels: $(READY) ## the release wheel in dist/, with exec for amd64 and arm64 (needs gcc-aarch64-linux-gnu)
	@$(PY) tools/build_wheel.py $(ARGS)

.PHONY: image
image: $(READY) ## the container image tesgate:VERSION, with the release wheel (IMAGE=…, BASE=… choose others)
	@$(PY) tools/build_image.py $(if $(IMAGE),--tag $(IMAGE)) $(if $(BASE),--base $(BASE)) $(ARGS)

.PHONY: format
format: $(READY) ## put the code into its form
	@$(PY) -m ruff check --fix --exit-zero --quiet .
	@$(PY) -m ruff format .

.PHONY: lock
lock: ## choose the dependencies anew (needs uv)
	@command -v uv >/dev/null || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		pyproject.toml -o requirements/base.lock
	uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		--group dev pyproject.toml -o requirements/dev.lock
	uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --python-version 3.9 \
		requirements/runner.in -o requirements/runner.lock

.PHONY: venv
venv: $(READY) ## only the virtual environment

.PHONY: clean
clean: ## remove the virtual environment and the caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# Of the locked distributions by their hashes; then ourselves, built by the locked hatchling.
$(READY): requirements/dev.lock pyproject.toml $(wildcard hatch_build.py) $(wildcard src/tesgate/runner/exec/*.c)
	@[ -n "$(PYTHON)" ] || [ -x $(PY) ] || { echo "tesgate needs Python 3.11 or newer: install it (apt-get install python3.11)" \
		"or name one (make PYTHON=/path/to/python3)." >&2; exit 1; }
	@[ -x $(PY) ] || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "tesgate needs Python 3.11 or newer, and $(PYTHON) is not: name another (make PYTHON=/path/to/python3)." >&2; exit 1; }
	@[ -x $(PY) ] && $(PY) -c 'import pip' 2>/dev/null || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || { \
		rm -rf $(VENV); echo "$(PYTHON) cannot make virtual environments: install its venv package" \
		"(apt-get install python3-venv)." >&2; exit 1; }
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@
