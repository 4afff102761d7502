# make demo: train and test on the embedded glyphs. make test: everything that CI tests. Both need Python alone.
# The first Python of this list that runs and is 3.11 to 3.13; `make PYTHON=...` names another.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3 python,$(shell \
	$(name) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
# Development and CI test against exactly this PyTorch (the oracle of the fidelity tests); without it they skip.
TORCH ?= torch==2.13.0

.PHONY: demo test test-slow chaos fuzz lint bench results docs site dist clean

demo: $(VENV)/installed
	$(BIN)/python -m mtl_jax.demo --workdir=runs/demo

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Several processes, killed and stopped among them, and what else takes too long for `make test`.
test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow -n 2

# Kills, stops, starves and doubles small runs, and compares their ends: docs/reliability.md. CHAOS=--short: once each.
chaos: $(VENV)/installed-test
	$(BIN)/python -m tests.chaos $(CHAOS)

# Damages every kind of file that is read, at random, and counts what the readers make of it: docs/reliability.md.
fuzz: $(VENV)/installed-test
	$(BIN)/python -m tests.fuzz

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

# About 20 minutes on two cores; nothing else should run meanwhile. Writes benchmarks/results.json.
bench: $(VENV)/installed-test
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks table benchmarks/results.json docs/performance.md README.md

# Every kept network again on the same tasks; DATA holds a folder a data set: fc100, omniglot. docs/results.md.
DATA ?= data
results: $(VENV)/installed
	$(BIN)/python -m results check --data=$(DATA)

# Every command and every piece of Python in README and docs/.
docs: $(VENV)/installed-test
	$(BIN)/python -m pytest -m docs tests/test_docs.py

# The pages and the API reference in build/site, without a network; a warning, such as of a broken link, is an error.
site: $(VENV)/installed-test
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/site

# A release: sdist and wheel in dist/, each installed and tried in a new environment.
dist: $(VENV)/installed-test
	PYTHON=$(BIN)/python .ci/dist

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 is here; install one, or name one: make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: $(VENV)/bin/python setup.cfg setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[test,lint,site,hub]'
	$(BIN)/python -m pip install --quiet '$(TORCH)' || echo "without $(TORCH): the tests that need it skip"
	$(BIN)/python -m pip install --quiet '$(TORCH)' -e '.[vision]' || echo "without the extra vision: its tests skip"
	touch $@

clean:
	rm -rf $(VENV) .venv-3.12 .venv-3.13 runs build dist docs/api docs/index.md *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
