# Each target can be run first: it makes .venv, installs what it needs and does its work; a second run is quick.
# Another Python: make test PYTHON=python3.13. Without make (Windows): CONTRIBUTING.md has the same commands.

# the first that is new enough: on some systems python3 is an old one
FIND_PYTHON = for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
    $$p -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo $$p && break; done
PYTHON ?= $(shell $(FIND_PYTHON))

SCRIPTS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := .venv/$(SCRIPTS)
PY := $(BIN)/python
UV := $(PY) -m uv
COLAB := .venv-colab
COLAB_PY := $(COLAB)/$(SCRIPTS)/python
COLAB_PYTHON ?= 3.13
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=120 -p no:cacheprovider
COMPILE = $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate \
    --custom-compile-command "make pins" pyproject.toml

.NOTPARALLEL:
.PHONY: help demo lab test test-gpu lint notebooks test-colab pins clean

help:
	@echo "make demo        learn a small latent diffusion model from nothing; results in runs/demo (10 minutes)"
	@echo "make lab         open the course in JupyterLab, at notebooks/00_tour.ipynb"
	@echo "make test        package tests, notebook lint, and every notebook in fast mode"
	@echo "make test-gpu    on a GPU: what only it does, exercises and notebooks"
	@echo "make lint        ruff: style of the package, the tests and the notebooks"
	@echo "make notebooks   execute every notebook in full mode and store its outputs"
	@echo "make test-colab  the notebooks in an environment shaped like Google Colab's, with the wheel installed"
	@echo "make pins        compile requirements/*.txt anew from pyproject.toml"
	@echo "make clean       remove environments, builds and caches; runs/ and data/ stay"
	@echo "Another Python: make demo PYTHON=python3.13. Windows without make: CONTRIBUTING.md has the same commands."

demo: .venv/.core
	$(BIN)/ldm-lite demo

# The address it prints, with the token, leads to notebook 00 on a machine without a browser too.
# root is the only user of many a rented machine; the server still asks for its token
lab: .venv/.notebooks
	$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=lab/tree/notebooks/00_tour.ipynb

# one run, so that both parts are always done and pytest's last line counts both; two files at a time, on a thread each
test: export LDM_LITE_FAST = 1
test: export OMP_NUM_THREADS = 1
test: .venv/.dev
	$(PY) -m pytest -q -n 2 --dist loadfile $(NBVAL) tests notebooks

# On a machine with a GPU: what only it does, every exercise and every notebook on it. The rest stays with make test.
test-gpu: export LDM_LITE_FAST = 1
test-gpu: export LDM_LITE_TEST_DEVICE = cuda
test-gpu: .venv/.dev
	$(PY) -m pytest -q $(NBVAL) tests/test_gpu.py tests/notebooks/test_exercises.py notebooks

lint: .venv/.lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

notebooks: .venv/.dev
	$(PY) -m ldm_lite.course.build --execute

# What Colab has must still be there, in the same versions, once the package is installed.
test-colab: export LDM_LITE_FAST = 1
test-colab: $(COLAB)/.colab
	rm -rf $(COLAB)/dist
	$(UV) build --quiet --wheel --out-dir $(COLAB)/dist .
	$(UV) pip install --quiet --python $(COLAB_PY) --reinstall-package ldm-lite $(COLAB)/dist/*.whl
	@$(UV) pip freeze --quiet --python $(COLAB_PY) > $(COLAB)/after.txt
	@! grep -vxFf $(COLAB)/after.txt $(COLAB)/before.txt || { echo "installing ldm-lite replaced the above"; exit 1; }
	$(COLAB_PY) -m pytest -q $(NBVAL) notebooks

pins: .venv/.uv
	$(COMPILE) --extra dev -o requirements/dev.txt
	$(COMPILE) --extra notebooks -c requirements/dev.txt -o requirements/notebooks.txt
	$(COMPILE) -c requirements/dev.txt -o requirements/core.txt

clean:
	rm -rf .venv $(COLAB) build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . \( -name .pytest_cache -o -name .ruff_cache -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# uv lives in .venv, so nothing outside the clone is changed.
.venv/.uv:
	@test -n "$(PYTHON)" && $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	    echo "ldm_lite needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv || { \
	    rm -rf .venv; echo "$(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@touch $@

.venv/.%: requirements/%.txt pyproject.toml .venv/.uv
	$(UV) pip install --python $(PY) -r $<
	$(UV) pip install --python $(PY) --no-deps -e .
	@touch $@

.venv/.lint: requirements/dev.txt .venv/.uv
	$(UV) pip install --python $(PY) -c $< ruff
	@touch $@

$(COLAB)/.colab: requirements/colab.txt .venv/.uv
	$(UV) venv --quiet --clear --python $(COLAB_PYTHON) $(COLAB) || { \
	    echo "no Python $(COLAB_PYTHON) to be had: going on with `$(PY) -V`, which Colab has not"; \
	    $(UV) venv --quiet --clear --python $(PY) $(COLAB); }
	$(UV) pip install --python $(COLAB_PY) -r $<
	@$(UV) pip freeze --quiet --python $(COLAB_PY) > $(COLAB)/before.txt
	@touch $@
