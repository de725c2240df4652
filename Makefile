# The commands of this project; `make help` lists them. Every target sets up .venv first, which costs nothing when it is
# as it should be.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
unexport PYTHONDONTWRITEBYTECODE # without bytecode on the disk each program compiles torch and vLLM anew: 15 s and more
.NOTPARALLEL: # the programs use the cores themselves

STUDY ?= main
# The study's scale: paper where there is a GPU, else cpu.
SCALE ?= $(if $(shell nvidia-smi -L 2>/dev/null | grep GPU),paper,cpu)
# make chaos: how many kills, and the seed of their moments.
N ?= 100
SEED ?= 0
# Overrides and options for the program behind a target, e.g. make test ARGS="-k surrogates -x".
ARGS ?=
# make plan: the devices to plan for, a file of conf/gpu/.
GPU ?= $(if $(filter cpu,$(SCALE)),cpu,h100)
GPUS ?= 1
# PYTHON, ENGINE_SET, VLLM_WHEEL and TORCH_INDEX are scripts/setup.sh's, and explained there: given on the command line or
# in the environment, they reach it as they are.

PY := .venv/bin/python
# Without vLLM the programs are told so, and a rollout= in ARGS, which comes later, still wins.
ENGINE = $(if $(filter hf,$(shell cat .venv/pspo-engine 2>/dev/null)),rollout=hf)

.PHONY: help setup reproduce test doctor fetch plan chaos lint format bench sweep slurm slurm-status wandb-sync dashboard theory report audit docs lock clean distclean need-sbatch

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  variables: SCALE=cpu|paper STUDY=main JOBS=n ARGS=\"overrides or options\" PYTHON=path ENGINE_SET=cpu|cuda|hf"

setup: ## everything that is needed, into .venv (scripts/setup.sh says what can be chosen)
	@scripts/setup.sh

reproduce: setup ## the whole study to the tables; runs only what is missing (SCALE, STUDY, JOBS, ARGS)
	$(PY) experiments/reproduce.py study=$(STUDY) scale=$(SCALE) $(if $(JOBS),jobs=$(JOBS)) $(ENGINE) $(ARGS)

test: setup ## every test that this machine can run, two files at a time (ARGS go to pytest)
	@scripts/slurm.sh || echo "make test: going on without a cluster" >&2
	@scripts/browser.sh || echo "make test: going on without a browser" >&2
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

doctor: setup ## what a run needs of this machine, a line each: ok or what to do (SCALE, ARGS)
	$(PY) -m pspo.doctor scale=$(SCALE) $(ENGINE) $(ARGS)

fetch: setup ## policies and problems from the hub into a directory that offline nodes read: make fetch TO=/shared/hub
	$(PY) -m pspo.fetch to=$(or $(TO),???) $(ARGS)

plan: setup ## what a run and every study take: memory, hours, scaling (SCALE, GPU=h100, GPUS=8, ARGS; docs/scaling.md)
	@status=0; $(PY) -m pspo.plan scale=$(SCALE) gpu=$(GPU) gpus=$(GPUS) $(ARGS) || status=$$?; \
		if [[ $$status -le 1 ]]; then echo; $(PY) experiments/plan.py scale=$(SCALE) gpu=$(GPU) gpus=$(GPUS) $(ARGS); fi; \
		exit $$status

chaos: setup ## N kills of a small run at random moments (N, SEED, ARGS="--jobs 2 --json FILE"); any difference is an error
	$(PY) experiments/chaos.py $(N) --seed $(SEED) $(ARGS)

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

sweep: setup ## accuracy against PSPO's alpha, drawn; runs only what is missing (SCALE, JOBS, ARGS; docs/sweeps.md)
	$(PY) experiments/sweep.py study=alpha scale=$(SCALE) $(if $(JOBS),jobs=$(JOBS)) $(ENGINE) $(ARGS)

slurm: need-sbatch setup ## the same as SLURM jobs (ARGS="slurm.partition=gpu"; docs/running-on-slurm.md)
	$(PY) experiments/reproduce.py study=$(STUDY) scale=$(SCALE) launcher=slurm $(ENGINE) $(ARGS)

slurm-status: setup ## every run of the study by what became of it, and why (STUDY, SCALE, ARGS as for make slurm)
	$(PY) experiments/status.py study=$(STUDY) scale=$(SCALE) $(ENGINE) $(ARGS)

need-sbatch:
	@command -v sbatch >/dev/null || { echo "make slurm: there is no sbatch here; run it where jobs are submitted, or use make reproduce" >&2; exit 1; }

wandb-sync: setup ## upload what W&B lacks of the runs below runs/ (ARGS: other runs, or directories of runs)
	$(PY) -m pspo.tracking.sync $(ARGS)

dashboard: setup ## the study's workspace in W&B, or as a file without an account (STUDY; docs/tracking.md)
	$(PY) experiments/dashboard.py study=$(STUDY) scale=$(SCALE) $(ARGS)

theory: setup ## the properties that the paper claims, checked numerically
	$(PY) experiments/theory.py $(ARGS)

report: setup ## tables, figures and report again, from what has been run (STUDY, SCALE)
	$(PY) experiments/report.py study=$(STUDY) scale=$(SCALE) $(ENGINE) $(ARGS)

audit: setup ## graded completions to look at, those first on which readings disagree (STUDY, SCALE; docs/audit.md)
	$(PY) experiments/audit.py study=$(STUDY) scale=$(SCALE) $(ENGINE) $(ARGS)

docs: setup ## docs/metrics.md again, from the registry of metrics
	@$(PY) -m pspo.metrics > docs/metrics.md.new && mv docs/metrics.md.new docs/metrics.md || { rm -f docs/metrics.md.new; exit 1; }

lock: ## requirements/*.txt again, from pyproject.toml and requirements/*.in (ARGS=--upgrade for newer versions)
	@scripts/lock.sh $(ARGS)

clean: ## remove runs, results, models and caches; keeps .venv
	rm -rf runs results models outputs multirun wandb build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv as well
	rm -rf .venv .venv.lock .lock-tool src/*.egg-info
