# Everything installs itself into .venv first: Python ≥ 3.11, make and a package index suffice.
#
#   make study                        the quick study: table and figure in results/quick
#   make study STUDY=standard DATA=…  another study, on a data set's folder
#   make study … NAME=mine            its results go to results/mine
#   make study PROFILE=slurm          its runs as jobs of a Slurm cluster (profiles/)
#   make tables STUDY=…               a study's tables and report from its records, untrained
#   make test                         all tests
#   make test-slurm                   those on a Slurm, which they start, where it is installed
#   make test-fuzz                    ten minutes of random calls of the products under sanitizers
#   make test-browser                 pages and notebooks in a headless Chromium, where there is one
#   make lab                          JupyterLab
#   make book                         the guide as pages to open from disk: build/book/index.html
#   make paper                        the replication report, its numbers filled in: paper/paper.md
#   make lint                         ruff, notebooks too, and the type checker
#   make lock                         requirements.lock from pyproject.toml; what fits stays

STUDY ?= quick
DATA ?=
NAME ?=
PROFILE ?= local
PYTHON ?= python3
PYTEST_ARGS ?=
WORKERS ?= logical
LAB_ARGS ?= notebooks
PAPER_ARGS ?=
BIN := .venv/bin

.PHONY: study tables test test-slurm test-fuzz test-browser lab book paper lint lock install
.DEFAULT_GOAL := study

study: .venv/installed
	@$(BIN)/python workflow/scripts/run_study.py config/$(STUDY).yaml --profile "$(PROFILE)" \
	  $(if $(DATA),--data "$(DATA)") $(if $(NAME),--name "$(NAME)")

# Every table, figure and report again from the records that a study keeps, without training.
tables: .venv/installed
	@$(BIN)/python workflow/scripts/remake_tables.py "results/$(or $(NAME),$(STUDY))"

test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)

test-slurm: .venv/installed
	$(BIN)/python -m pytest -m slurm tests/workflow/test_slurm.py $(PYTEST_ARGS)

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
