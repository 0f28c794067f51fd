# Everything lives in .venv; `make quickstart` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint schema reliability clean

quickstart: .venv/installed
	$(BIN)/limbeck run recipes/quickstart.yaml

# One thread to each process of tests: more would fight for the same cores.
test: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

schema: .venv/installed
	$(BIN)/limbeck schema > recipes/schema.json

reliability: .venv/installed-test
	$(BIN)/python -m tests.faults.reliability

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[local,gym]'
	touch $@

.venv/installed-test: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@ .venv/installed

clean:
	rm -rf .venv
