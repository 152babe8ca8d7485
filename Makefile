# Everything installs itself into .venv first: Python ≥ 3.11, make and a package index suffice.
#
#   make study                        the quick study: table and figure in results/quick
#   make study STUDY=standard DATA=…  another study, on a data set's folder
#   make tune STUDY=digits            the arms of a study, before it starts: config/chosen/
#   make study … NAME=mine            its results go to results/mine
#   make study … MIX=1                allows several states of code or data in its tables
#   make study PROFILE=slurm          its runs as jobs of a Slurm cluster (profiles/)
#   make tables STUDY=…               a study's tables and report from its records, untrained
#   make networks STUDY=…             its trained networks are kept beside its records
#   make test                         all tests
#   make test-slurm                   those on a Slurm, which they start, where it is installed
#   make test-shell                   bad inputs and faults, those too that take longer
#   make test-fuzz                    ten minutes of random calls of the products under sanitizers
#   make test-browser                 pages and notebooks in a headless Chromium, where there is one
#   make lab                          JupyterLab
#   make book                         the guide as pages to open from disk: build/book/index.html
#   make paper                        the replication report, its numbers filled in: paper/paper.md
#   make lock                         requirements.lock from pyproject.toml; what fits stays
#   make lint                         ruff, notebooks too, and the type checker

STUDY ?= quick
DATA ?=
NAME ?=
PROFILE ?= local
MIX ?=
PYTHON ?= python3
PYTEST_ARGS ?=
WORKERS ?= logical
LAB_ARGS ?= notebooks
PAPER_ARGS ?=
BIN := .venv/bin

# What users give goes to the shell as it is, in the environment, and is quoted there: neither make
# nor a shell reads it as anything but text. (PYTHON, *_ARGS and WORKERS are words of commands.)
override STUDY := $(value STUDY)
override DATA := $(value DATA)
override NAME := $(value NAME)
override PROFILE := $(value PROFILE)
override MIX := $(value MIX)
export STUDY DATA NAME PROFILE MIX

.PHONY: study tune tables networks test test-slurm test-shell test-fuzz test-browser lab book paper lint lock install
.DEFAULT_GOAL := study

study: .venv/installed
	@$(BIN)/python workflow/scripts/run_study.py "config/$$STUDY.yaml" "--profile=$$PROFILE" \
	  $${DATA:+"--data=$$DATA"} $${NAME:+"--name=$$NAME"} $(if $(filter 1,$(MIX)),--mix)

# What a study with a tuning block takes: to be committed before the study starts.
tune: .venv/installed
	@$(BIN)/python workflow/scripts/tune_study.py "config/$$STUDY.yaml" "--profile=$$PROFILE" \
	  $${DATA:+"--data=$$DATA"} $${NAME:+"--name=$$NAME"}

# Every table, figure and report again from the records that a study keeps, without training.
tables: .venv/installed
	@$(BIN)/python workflow/scripts/remake_tables.py "results/$${NAME:-$$STUDY}"

# Trained networks beside the records: attacks and the like go on from them without training.
networks: .venv/installed
	@$(BIN)/python workflow/scripts/keep_networks.py "results/$${NAME:-$$STUDY}"

test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)

test-slurm: .venv/installed
	$(BIN)/python -m pytest -m slurm tests/workflow/test_slurm.py $(PYTEST_ARGS)

test-shell: .venv/installed
	$(BIN)/python -m pytest -m "shell or not shell" tests/shell $(PYTEST_ARGS)

test-fuzz: .venv/installed
	$(BIN)/python -m pytest -m fuzz tests/layers/products/test_fuzz.py $(PYTEST_ARGS)

test-browser: .venv/installed
	$(BIN)/python -m pytest -m browser tests/browser $(PYTEST_ARGS)

lab: .venv/installed
	$(BIN)/python -m jupyter lab $(LAB_ARGS)

book: .venv/installed
	$(BIN)/sphinx-build --fail-on-warning --quiet --conf-dir docs --doctree-dir build/doctrees . build/book
	@echo build/book/index.html

paper: .venv/installed
	$(BIN)/python paper/fill.py $(PAPER_ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: .venv/installed
	$(BIN)/python -m pip install --quiet uv
	mkdir -p build
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --constraint requirements.lock --no-header --no-annotate --quiet --output-file build/lock
	cp build/lock requirements.lock

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"PYTHON: got {sys.version}, needed: 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@
