# make demo: train and test on the embedded glyphs. make test: everything that CI tests. Both need Python alone.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Development and CI test against exactly this PyTorch (the oracle of the fidelity tests); without it they skip.
TORCH ?= torch==2.13.0

.PHONY: demo test test-slow chaos fuzz lint bench results docs clean

demo: $(VENV)/installed
	$(BIN)/python -m mtl_jax.demo --workdir=runs/demo

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Several processes, killed and stopped among them, and what else takes too long for `make test`.
test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow

# Kills, stops, starves and doubles small runs, and compares their ends: docs/reliability.md. CHAOS=--short: once each.
chaos: $(VENV)/installed-test
	$(BIN)/python -m tests.chaos $(CHAOS)

# Damages every kind of file that is read, at random, and counts what the readers make of it: docs/reliability.md.
fuzz: $(VENV)/installed-test
	$(BIN)/python -m tests.fuzz

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[test,lint]'
	$(BIN)/python -m pip install --quiet '$(TORCH)' || echo "without $(TORCH): the tests that need it skip"
	touch $@

clean:
	rm -rf $(VENV) .venv-3.12 runs build *.egg-info .pytest_cache .ruff_cache .hypothesis
