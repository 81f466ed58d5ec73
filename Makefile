# make demo   the main job on the shipped data and model        make test   the tests, without the slow ones
# make slow   the slow tests          make notebooks   runs the tutorials        make docs   the site, in build/docs
# make wheel  builds and tries the wheel   make gpu        what needs a GPU        make ci     all that CI runs
# make slurm  the tests on a SLURM of one node, which it installs on Debian as root
#
# Every target sets up its own virtual environment in .venv first, from the exact versions in constraints.txt. It is
# made again only when pyproject.toml or constraints.txt change. Another interpreter: make demo PYTHON=python3.13

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TESTS  ?= tests diffprobe
# One thread per test process: the processes share the cores.
JOBS   ?= auto
# The shape checks compile every module once more; without cached bytecode each process would pay for it.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow attacks slurm notebooks quantized docs wheel gpu lint format types ci clean

help:
	@sed -n '1,7s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11))' || { \
	  echo "diffprobe needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Choose another: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "'$(PYTHON)' cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing the packages of constraints.txt into $(VENV) (some minutes, the first time only) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,hub]'
	@touch $@

demo: setup
	$(BIN)/diffprobe demo

test: setup
	$(PYTEST) -n $(JOBS) --dist loadfile -m "not slow" $(TESTS)

# Notebooks, SLURM and wheel have targets of their own.
slow: setup
	$(PYTEST) -n $(JOBS) --dist loadfile -m slow $(TESTS) \
	  --ignore tests/docs/test_notebooks.py --ignore tests/house/test_wheel.py --ignore tests/slurm

# Hostile files, kills, signals and full disks, with all cases; `make slow` has one in four of many alike.
attacks: setup
	DIFFPROBE_ATTACKS=all $(PYTEST) -n $(JOBS) --dist loadfile -m slow tests/hostile tests/faults

# In one process: the jobs need the cores.
slurm: setup
	tests/slurm/one_node.sh install
	$(PYTEST) -m slow tests/slurm

notebooks: setup
	$(PYTEST) -m slow tests/docs/test_notebooks.py

# torchao lies apart from .venv: where it is installed, diffusers imports it in every process, which takes seconds.
quantized: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/torchao -c constraints.txt torchao
	PYTHONPATH=build/torchao $(PYTEST) -p no:xdist tests/backbones/test_quantized.py tests/benchmarks/test_quantized.py

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs

gpu: setup
	$(PYTEST) -m gpu tests/gpu

# dist/ holds the wheel; the test installs it into an empty environment and runs the demo there.
wheel: setup
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	DIFFPROBE_WHEEL_DIR=dist $(PYTEST) -m slow tests/house/test_wheel.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ci: lint types docs test slow slurm notebooks quantized wheel

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
