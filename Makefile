# Three commands; everything they need they install into .venv and .cache, and (as root, on Debian) with apt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint simulate newest-modal clean

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
	$(BIN)/python -m pip install --quiet torch==2.13.0  # first, exactly so: its wheel may be a local one
	$(BIN)/python -m pip install --quiet --editable '.[transformers]'
	touch $@

simulate: .venv/.test      ## 20,000 seeds of the simulation of many containers; SEEDS=n for more
	$(BIN)/python tests/simulate.py --seeds $(or $(SEEDS),20000)

newest-modal:              ## the tests of Modal's client against its newest version; tells, and never fails
	test -x .venv-modal/bin/python || $(PYTHON) -m venv .venv-modal
	.venv-modal/bin/python -m pip install --quiet --editable '.[test]'
	.venv-modal/bin/python -m pip install --quiet --upgrade modal
	-.venv-modal/bin/python -m pytest -q tests/test_control_plane.py tests/test_weight_volume.py tests/test_tool_volume.py tests/test_containers.py

clean:
	rm -rf .venv .venv-* .cache demo-volume
