# Three commands; everything they need they install into .venv and .cache, and (as root, on Debian) with apt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/.core          ## the main job on this machine, offline; WEIGHTS=real for the real one
	$(BIN)/python examples/demo.py

test: .venv/.test          ## all tests, then the core tests on every other Python that is here
	./tests/prerequisites.sh
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine -q
	$(BIN)/coverage report
	$(BIN)/python tests/other_pythons.py

lint: .venv/.test          ## formatting, rules, types, layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/.core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.test: pyproject.toml .venv/.core
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $@

clean:
	rm -rf .venv .venv-* .cache demo-volume
