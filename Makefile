# Needs nothing but make, bash and a Python >= 3.11 with venv and pip. The first target installs into .venv; later ones are quick.
SHELL := bash
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help demo dev test test-docker bench-smoke check format docs dist clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

demo: ## Run the demonstration on the real default model
	@.ci/venv local
	@$(BIN)/myna demo showcase

dev: ## Install everything that work on Myna needs
	@.ci/venv dev

test: ## Run the tests; name some with: make test T=tests/actors, one after another with: make test T=-n0
	@.ci/venv dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(T)

test-docker: ## Build the cluster's images, run it, break it: 15 minutes and more
	@.ci/venv dev
	@.ci/docker
	MYNA_TEST_DOCKER=1 MYNA_REQUIRE_LANES=docker $(BIN)/python -m pytest tests/deploy

bench-smoke: ## Run every experiment small, and compare its ratios with the recorded ones: minutes
	@.ci/venv dev
	$(BIN)/python -m tests.benchmarks.experiment.smoke

check: ## Lint, formatting, types, import laws
	@.ci/venv dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_laws.py

format: ## Format the code
	@.ci/venv dev
	$(BIN)/ruff check --fix --exit-zero --quiet
	$(BIN)/ruff format

docs: ## Build the documentation into build/docs
	@.ci/venv dev
	$(BIN)/python -m sphinx -W --keep-going -b html sdk/docs build/docs

dist: ## Build the wheel and the source distribution into dist: the same bytes for the same commit
	@.ci/venv dev
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --outdir dist

clean: ## Remove what was installed and built
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
