# The commands of this project; `make help` lists them. Every target sets up .venv first, which costs nothing when it is
# as it should be.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
.NOTPARALLEL: # the programs use the cores themselves

STUDY ?= main
# The study's scale: paper where there is a GPU, else cpu.
SCALE ?= $(if $(shell nvidia-smi -L 2>/dev/null | grep GPU),paper,cpu)
# Overrides and options for the program behind a target, e.g. make test ARGS="-k surrogates -x".
ARGS ?=
# PYTHON, ENGINE_SET, VLLM_WHEEL and TORCH_INDEX are scripts/setup.sh's, and explained there: given on the command line or
# in the environment, they reach it as they are.

PY := .venv/bin/python
# Without vLLM the programs are told so, and a rollout= in ARGS, which comes later, still wins.
ENGINE = $(if $(filter hf,$(shell cat .venv/pspo-engine 2>/dev/null)),rollout=hf)

.PHONY: help setup reproduce test lint format bench sweep slurm theory report audit docs lock clean distclean need-sbatch

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  variables: SCALE=cpu|paper STUDY=main JOBS=n ARGS=\"overrides or options\" PYTHON=path ENGINE_SET=cpu|cuda|hf"

setup: ## everything that is needed, into .venv (scripts/setup.sh says what can be chosen)
	@scripts/setup.sh

reproduce: setup ## the whole study to the tables; runs only what is missing (SCALE, STUDY, JOBS, ARGS)
	$(PY) experiments/reproduce.py study=$(STUDY) scale=$(SCALE) $(if $(JOBS),jobs=$(JOBS)) $(ENGINE) $(ARGS)

test: setup ## every test that this machine can run, two files at a time (ARGS go to pytest)
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

lint: setup ## ruff and mypy, changing nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup ## let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: setup ## speed and memory, ours beside a peer's on the same work
	@$(PY) -m pip install -qq --disable-pip-version-check --no-deps -r requirements/bench.txt
	@for script in benchmarks/[!_]*.py; do echo "== $$script"; $(PY) "$$script" $(ARGS); done

sweep: setup ## an example of a sweep: three alphas by two seeds (ARGS add overrides)
	$(PY) -m pspo.train -m surrogate=pspo surrogate.alpha=0.05,0.1,0.2 seed=0,1 $(ENGINE) $(ARGS)

slurm: need-sbatch setup ## the study as a SLURM job (ARGS go to sbatch)
	sbatch $(ARGS) slurm/study.sh study=$(STUDY) scale=$(SCALE)

need-sbatch:
	@command -v sbatch >/dev/null || { echo "make slurm: there is no sbatch here; run it where jobs are submitted, or use make reproduce" >&2; exit 1; }

theory: setup ## the properties that the paper claims, checked numerically
	$(PY) experiments/theory.py $(ARGS)

report: setup ## tables, figures and report again, from what has been run (STUDY)
	$(PY) experiments/report.py study=$(STUDY) $(ARGS)

audit: setup ## graded completions to look at, those first on which readings disagree (STUDY; docs/audit.md)
	$(PY) experiments/audit.py study=$(STUDY) $(ARGS)

docs: setup ## docs/metrics.md again, from the registry of metrics
	@$(PY) -m pspo.metrics > docs/metrics.md.new && mv docs/metrics.md.new docs/metrics.md || { rm -f docs/metrics.md.new; exit 1; }

lock: ## requirements/*.txt again, from pyproject.toml and requirements/*.in (ARGS=--upgrade for newer versions)
	@scripts/lock.sh $(ARGS)

clean: ## remove runs, results, models and caches; keeps .venv
	rm -rf runs results models outputs multirun wandb build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv as well
	rm -rf .venv .venv.lock .lock-tool src/*.egg-info
