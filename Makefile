# Each target can be run first: it makes .venv, installs what it needs and does its work; a second run is quick.
# Another Python: make test PYTHON=python3.13. Without make (Windows): CONTRIBUTING.md has the commands.

ifeq ($(OS),Windows_NT)
  PYTHON ?= python
  BIN := .venv/Scripts
else
  PYTHON ?= python3
  BIN := .venv/bin
endif
PY := $(BIN)/python
UV := $(PY) -m uv
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=120 -p no:cacheprovider

.NOTPARALLEL:
.PHONY: help demo test lab notebooks lint clean test-colab

help:  ## this list
	@echo "make demo        learn a small latent diffusion model from nothing; results in runs/demo (10 minutes)"
	@echo "make lab         open the course in JupyterLab, at notebooks/00_tour.ipynb"
	@echo "make test        package tests, notebook lint, and every notebook in fast mode"
	@echo "make lint        ruff: style of the package, the tests and the notebooks"
	@echo "make notebooks   execute every notebook in full mode and store its outputs"
	@echo "make test-colab  the notebooks in an environment shaped like Google Colab's"
	@echo "make clean       remove environments, builds and caches; runs/ and data/ stay"
	@echo "Another Python: make demo PYTHON=python3.13. Windows without make: CONTRIBUTING.md has the same commands."

demo: .venv/.core
	$(BIN)/ldm-lite demo

lab: .venv/.notebooks
	$(PY) -m jupyterlab notebooks/00_tour.ipynb

test: .venv/.dev
	LDM_LITE_FAST=1 $(PY) -m pytest -q tests
	LDM_LITE_FAST=1 $(PY) -m pytest -q $(NBVAL) notebooks

notebooks: .venv/.dev
	$(PY) -m ldm_lite.course.build --execute

lint: .venv/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf .venv .venv-colab build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +

# uv lives in .venv, so nothing outside the clone is changed.
.venv/.uv:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "ldm_lite needs Python 3.11 or newer as '$(PYTHON)'; name another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@touch $@

.venv/.%: requirements/%.txt pyproject.toml .venv/.uv
	$(UV) pip install --python $(PY) -r $<
	$(UV) pip install --python $(PY) --no-deps -e .
	@touch $@
