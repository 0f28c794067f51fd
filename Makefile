# Everything lives in .venv; `make quickstart` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint schema reliability clean

quickstart: .venv/installed
	$(BIN)/limbeck run recipes/quickstart.yaml

test: .venv/installed-test
	$(BIN)/pytest

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
