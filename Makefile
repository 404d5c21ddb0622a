# Every target prepares what it needs on its first call (see bootstrap.sh) and starts at once afterwards.
#
#   make demo ARGS="--help"      arguments for the program behind a target
#   make test ARGS="-k two_room"
#   make demo VENV=path          another virtual environment than .venv
#   make demo PYTHON=python3.12  the interpreter to make it from

VENV ?= .venv
PYTHON ?=
TORCH ?=
ARGS ?=
export VENV PYTHON TORCH

# Two cores run two tests at a time; more than four workers cost more memory than they save time.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ "$$n" -gt 4 ] && n=4; echo "$$n")

CORE = python=$$(sh bootstrap.sh core)
ALL = python=$$(sh bootstrap.sh all)
DOCS = python=$$(sh bootstrap.sh docs)

.DEFAULT_GOAL := help
.PHONY: help demo gpu bundle setup setup-gl test test-slow fuzz lint types docs format hooks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: ## collect, train, evaluate and film an agent on Two-Room, into runs/demo
	@$(CORE) && "$$python" -m lewm_gym $(ARGS)

gpu: ## measure what only a GPU can show, in stages of minutes that resume; without one, at toy size
	@$(ALL) && "$$python" -m benchmarks gpu $(ARGS)

bundle: ## pack what make gpu needs on a machine without a network, into dist/bundle.tar.gz
	@$(ALL) && "$$python" -m benchmarks bundle $(ARGS)

setup: ## install everything, and do nothing else
	@$(ALL) && echo "$$python"

setup-gl: ## install the system libraries that draw MuJoCo's tasks without a screen
	@sh bootstrap.sh gl

test: ## run the tests, all but those marked slow
	@$(ALL) && "$$python" -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-slow: ## run the tests marked slow
	@$(ALL) && "$$python" -m pytest -m slow $(ARGS)

fuzz: ## call every command line and read every file format oddly: N=5000 calls and files of SEED=7
	@$(ALL) && FUZZ_N=$(or $(N),300) FUZZ_SEED=$(or $(SEED),0) "$$python" -m pytest -n $(JOBS) --timeout 0 tests/test_fuzz.py

lint: ## check style, formatting and spelling
	@$(ALL) && "$$python" -m ruff check . && "$$python" -m ruff format --check --quiet . && "$$python" -m codespell_lib

types: ## check types
	@$(ALL) && "$$python" -m mypy

docs: ## build the site, into docs/_build/html; a warning is an error
	@$(DOCS) && "$$python" -m sphinx -W --keep-going -q docs docs/_build/html && echo docs/_build/html/index.html

format: ## mend what lint can mend by itself
	@$(ALL) && "$$python" -m ruff check --fix . ; "$$python" -m ruff format .

hooks: ## run lint, types and spelling at every git commit
	@$(ALL) && "$$python" -m pre_commit install

clean: ## remove .venv and caches; data, runs and results stay
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
