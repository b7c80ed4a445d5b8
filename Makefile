# Everything here sets itself up: a virtual environment in .venv with the pinned packages, then the job.
# PYTHON chooses the interpreter (3.10 or newer) that .venv is made from.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# torch comes first and from PyPI's CPU build where there is one: nothing here needs CUDA packages.
TORCH ?= torch==2.13.0

# JOBS: processes that share the tests, file by file; 0 for none but this one.
JOBS ?= auto

.PHONY: demo test test-fast lint bench clean

demo: $(STAMP)
	$(RUN) -m models.demo

test: $(STAMP) lint
	$(RUN) -m pytest -n $(JOBS) --maxprocesses 4 --dist loadfile

test-fast: $(STAMP)
	$(RUN) -m pytest -m "not slow"

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: $(STAMP)
	$(RUN) -m benchmarks.startup
	$(RUN) -m benchmarks.cpu $(BENCH)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("dsopt needs Python 3.10 or newer, not " + sys.version) if sys.version_info < (3, 10) else None'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
