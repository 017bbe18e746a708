# make run            the quickstart: SteerLM on this machine, on real data
# make test           everything that is checked, as .ci/run does
# make test-fast      the same without a Kubernetes cluster
# make test-slow      what takes minutes and rarely breaks: see CONTRIBUTING.md
# make test-cluster   the operator on a real control plane and node only
# make test-controllers  the operator beside JobSet's and Kueue's own controllers
# make test-engines   every engine on SmolLM2-135M, a real vLLM, and other clients against our server
# make test-gpu       what only CUDA can show, where there is CUDA; make bench-gpu: speed and memory there
# make bench          speed, as ratios against a baseline in the same run; make bench-quickstart: does the quickstart steer on further seeds
# make mutants        how many small faults in the code the tests notice; see CONTRIBUTING.md
# make chart          what is generated from code: the resource's definition, the chart's values and schema
# make docs           the documentation: generated reference pages, and a site below site/
# make help           these lines
# All make .venv and install what they need first; make run less than the others.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.10 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUNS := nemo,serve,report
EXTRAS := $(RUNS),openvino,operator,docs,dev
RUNNABLE := $(VENV)/.runnable
INSTALLED := $(VENV)/.installed
SOURCES := nemo_steerlm k8s charts docs tests examples

export HF_HUB_DISABLE_TELEMETRY := 1
# uv brings its own certificates; those of the machine also know a company's proxy, as pip does.
export UV_SYSTEM_CERTS ?= 1
# Stages and commands are processes. Without a bytecode cache each would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

# Three processes share the tests and two cores: those with a cluster's wait more than they compute.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 3

.PHONY: run test test-fast test-slow test-cluster test-controllers test-engines test-gpu bench-gpu lint browser cluster bench bench-quickstart mutants chart docs help clean install

install: $(INSTALLED)

$(BIN)/uv:
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 13), f"Python 3.10 to 3.12 needed, this is {sys.version.split()[0]}; make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy python3-venv && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/uv
	$(INSTALL) '.[$(EXTRAS)]'
	touch $@ $(RUNNABLE)

$(RUNNABLE): pyproject.toml constraints.txt | $(BIN)/uv
	$(INSTALL) '.[$(RUNS)]'
	touch $@

run: $(RUNNABLE)
	$(BIN)/steerlm run examples/pipelines/quickstart.yaml

lint: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/mypy

# The page's tests want a browser: Debian's, where there is none and we may install it. Without one they say so and skip.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -q && apt-get install -qy --no-install-recommends chromium; } || echo "no chromium: the page's tests will skip"

# The programs of a real control plane and node, for root on Linux: built once, which takes up to a quarter of an hour on two cores.
cluster: $(INSTALLED)
	@$(BIN)/python tests/cluster/cluster.py build || echo "no cluster: its tests will skip"

test: lint browser cluster
	$(PYTEST) -m 'not slow'

test-fast: lint browser
	$(PYTEST) -m 'not cluster and not slow'

test-slow: browser cluster
	$(PYTEST) -m slow

test-cluster: $(INSTALLED)
	$(BIN)/pytest -m cluster tests/cluster

# What other controllers make of the operator's objects. They are built from their Go modules once, which takes a quarter of an hour.
test-controllers: cluster
	STEERLM_TEST_CONTROLLERS=1 $(BIN)/pytest -m controllers tests/cluster/test_controllers.py

# Every engine on SmolLM2-135M; vLLM's environment (6 GB) is made once, in the user's cache. NeMo's own annotate script runs where
# STEERLM_NEMO names a checkout of NeMo.
test-engines: $(INSTALLED)
	STEERLM_TEST_ENGINES=1 $(BIN)/pytest tests/inference/test_engines.py tests/inference/test_newest_transformers.py tests/serving/test_clients.py \
		tests/annotation/test_nemos_script.py

# On a machine with CUDA (tests.gpu.carry fetches what one without network needs); elsewhere they skip.
test-gpu: $(INSTALLED)
	$(BIN)/pytest -m gpu tests/gpu

bench-gpu: $(INSTALLED)
	$(BIN)/python -m tests.gpu.bench

# What is made from code: the resource's definition; and of the chart the same, values.yaml, its schema, the table in its README.
chart: $(INSTALLED)
	$(BIN)/steerlm schema --crd > k8s/crd/steerlmpipelines.yaml
	$(BIN)/python -m charts.generate

help:
	@sed -n 's/^# \(make [a-z]\)/\1/p' Makefile

bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks

# The quickstart on three seeds, a quarter of an hour each on two cores; it goes on where it was interrupted.
bench-quickstart: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks.bench_quickstart

# Hours for all rooms on two cores; it goes on where it was interrupted.
mutants: $(INSTALLED)
	$(BIN)/python -m tests.mutants $(ROOMS)

docs: $(INSTALLED)
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
