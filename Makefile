# A few commands; everything they need they install into .venv and .cache, and (as root, on Debian) with apt.
PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin

.PHONY: demo test lint docs audit dist fashion scenarios pictures photos simulate campaign mutants
.PHONY: prerequisites core oldest pythons oldest-modal newest-modal gvisor clean

demo: .venv/.core          ## the main job on this machine, offline; WEIGHTS=real for the real one
	$(BIN)/python examples/demo.py

test: .venv/.test .venv-fashion/.test  ## all tests, those of the example, then the core tests on the oldest and newest Python and the oldest Modal
	./tests/prerequisites.sh
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest --numprocesses 2 --dist worksteal
	$(BIN)/coverage combine -q
	$(BIN)/coverage report
	.venv-fashion/bin/python -m pytest --numprocesses 2 --dist loadfile tests/example
	$(BIN)/python tests/system/other_pythons.py
	$(BIN)/python tests/system/other_modals.py
	$(BIN)/python tests/system/in_gvisor.py --build trixie --sample

lint: .venv/.test          ## formatting, rules, types, layers, words
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/shared/check_words.py

docs: .venv/.docs          ## the site, in .cache/site: strict, with its links checked
	$(BIN)/python docs/site/build_site.py

audit: .venv/.audit        ## known vulnerabilities in the requirements, with those of all extras for users; needs the advisories of PyPI or OSV
	$(BIN)/python tests/system/audit_packages.py

dist: .venv/.dist          ## the wheel and the sdist in dist/, checked, the wheel also with tests; TAG=v1.2.3 for a release
	$(BIN)/python tests/system/distribution.py --tag "$${TAG:-}"

.venv/.core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.test: pyproject.toml .venv/.core
	$(BIN)/python -m pip install --quiet --editable '.[test,lint,dist,docs]'
	$(BIN)/python -m pip install --quiet torch==2.13.0  # first, exactly so: its wheel may be a local one
	$(BIN)/python -m pip install --quiet --editable '.[transformers,libraries]'
	touch $@

.venv/.dist: pyproject.toml .venv/.core
	$(BIN)/python -m pip install --quiet --editable '.[dist]'
	touch $@

.venv/.docs: pyproject.toml .venv/.core
	$(BIN)/python -m pip install --quiet --editable '.[docs,modal]'
	touch $@

.venv/.audit: pyproject.toml .venv/.core
	$(BIN)/python -m pip install --quiet --editable '.[audit,hf,modal,completion,tool,sign]'
	touch $@

fashion: .venv-fashion/.app ## the example, on http://127.0.0.1:$(PORT), with stand-in weights; WEIGHTS=real for the real ones
	PYTHONPATH=examples .venv-fashion/bin/python -m fashion_crop.web.serve --port $(PORT) --weights $(or $(WEIGHTS),stand-in) \
		--segmenter $(or $(FASHION_SEGMENTER),large)

scenarios: .venv-fashion/.test ## how long the example takes to start, beside the usual way, and a photo: 30 minutes, 5 GB of disk
	./tests/prerequisites.sh
	PYTHONPATH=examples .venv-fashion/bin/python -m fashion_crop.benchmarks.scenarios --json .cache/scenarios.json --pictures docs
	$(MAKE) photos
	PYTHONPATH=. .venv-fashion/bin/python benchmarks/cost.py --photos .cache/photos.json

pictures: .venv-fashion/.test ## draw the pictures again from what `make scenarios` measured
	PYTHONPATH=examples .venv-fashion/bin/python -m fashion_crop.benchmarks.scenarios --from .cache/scenarios.json --pictures docs
	PYTHONPATH=. .venv-fashion/bin/python benchmarks/cost.py --picture docs/cost.svg

photos: .venv-fashion/.test ## how long a photo takes with each segmenter: 10 minutes, 2 GB of disk
	PYTHONPATH=examples .venv-fashion/bin/python -m fashion_crop.benchmarks.photos --json .cache/photos.json

.venv-fashion/.app: examples/fashion_crop/requirements.txt examples/fashion_crop/requirements-without-dependencies.txt
	test -x .venv-fashion/bin/python || $(PYTHON) -m venv .venv-fashion
	.venv-fashion/bin/python -m pip install --quiet torch==2.13.0  # first, exactly so, as above
	.venv-fashion/bin/python -m pip install --quiet --requirement examples/fashion_crop/requirements.txt
	SAM2_BUILD_CUDA=0 .venv-fashion/bin/python -m pip install --quiet --no-deps --no-build-isolation \
		--requirement examples/fashion_crop/requirements-without-dependencies.txt
	.venv-fashion/bin/python -m pip install --quiet --editable .
	touch $@

.venv-fashion/.test: tests/example/requirements.txt .venv-fashion/.app
	.venv-fashion/bin/python -m pip install --quiet --requirement tests/example/requirements.txt
	touch $@

prerequisites:             ## the programs that some tests run against; as root on Debian it installs what is missing
	./tests/prerequisites.sh

core:                      ## the core tests on one version of Python, with its newest requirements: VERSION=3.12
	$(PYTHON) tests/system/other_pythons.py --only $(VERSION)

oldest:                    ## the same on the oldest Python, with the oldest version of each requirement
	$(PYTHON) tests/system/other_pythons.py --oldest

pythons: .venv/.test       ## the core tests on every other supported Python that is installed
	$(BIN)/python tests/system/other_pythons.py --all

simulate: .venv/.test      ## 20,000 seeds of both simulations, of containers and of one root; SEEDS=n for more
	$(BIN)/python tests/simulation/simulate.py --seeds $(or $(SEEDS),20000)

campaign: .venv/.test      ## kills, torn writes, failing calls and load, as one table; SEED=n BUDGET=seconds ONLY=crash,torn,...
	PYTHONPATH=examples:tests/shared:tests/fakes:tests/system $(BIN)/python tests/campaign/campaign.py \
		--seed $(or $(SEED),0) --budget $(or $(BUDGET),600) --only "$(ONLY)"

mutants: .venv/.test       ## small changes of the library, one at a time: how many a quick subset of the tests notices; SEED=n N=200
	$(BIN)/python tests/mutation/mutate.py --seed $(or $(SEED),0) --mutants $(or $(N),200)

oldest-modal: .venv/.test  ## the tests of Modal's client against the oldest version that is supported
	$(BIN)/python tests/system/other_modals.py

newest-modal: .venv/.test  ## the same against the newest version; reports, and never fails
	$(BIN)/python tests/system/other_modals.py --newest

gvisor: .venv/.test        ## the core tests inside two builds of gVisor, the sandbox that Modal uses; forty minutes
	$(BIN)/python tests/system/in_gvisor.py

clean:
	rm -rf .venv .venv-* .cache demo-volume
