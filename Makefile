# Every target makes .venv itself when it is not there, and does nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
# A file is one worker's, so that what its tests share is compiled once; conftest.py puts
# the longest first.
IN_PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all test-oldest test-newest lint data tables bench check-results docs clean

$(STAMP): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --constraint requirements.txt --editable '.[docs]'
	touch $@

demo: $(STAMP)  ## a dozen optimizers on a small task, then nano fine-tuned; report
	$(BIN)/python -m experiments.demo

test: $(STAMP)  ## tests, without the slow ones
	$(BIN)/python -m pytest $(IN_PARALLEL)

test-all: $(STAMP)  ## all tests
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "slow or not slow"

# Other versions than those of requirements.txt, each in an environment of its own. The
# package is what is in this folder; its commands are tested in .venv.
EXTRAS := train,data,pretrained,privacy,dev
OTHER_TESTS ?= tests

test-oldest:  ## tests under the least versions that pyproject.toml promises
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet packaging
	.venv-oldest/bin/python .ci/lower_bounds.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/pip install --quiet --constraint .venv-oldest/constraints.txt --editable '.[$(EXTRAS)]'
	.venv-oldest/bin/python -m pytest $(IN_PARALLEL) $(OTHER_TESTS)

test-newest:  ## tests under the newest versions that pyproject.toml allows
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable '.[$(EXTRAS)]'
	.venv-newest/bin/python -m pytest $(IN_PARALLEL) $(OTHER_TESTS)

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

data: $(STAMP)  ## download and prepare all datasets and the pretrained encoders (1.3 GB)
	$(BIN)/python -m meta_opt.data.prepare --all

tables: $(STAMP)  ## optimizers compared on the multimodal suite: Table 1, Figures 2 and 3
	$(BIN)/python -m experiments.reproduce_tables --config configs/tables.py:table1

bench: $(STAMP)  ## update, step, compile and import time, state size, meta-training
	$(BIN)/python -m experiments.benchmark

check-results: $(STAMP)  ## a cell of every published table again: is it in its interval?
	$(BIN)/python -m experiments.check_results --config configs/check_results.py:published

docs: $(DOCS_STAMP)  ## the site, docs/_build/html; runs its notebooks, warnings are errors
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html

clean:  ## remove the environment, runs and compiled tests; data stay
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-peers runs report .cache docs/_build
