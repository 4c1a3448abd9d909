# make serve   set up and start the service on the models that ship
# make test    set up, then lint, types and all tests; make types, make tests and make behind for a part of it
# make test-behind  set up, then every test of HTTP and of clients with two workers behind the API, over PostgreSQL
# make bench   set up, then every benchmark; tables on the terminal, JSON in runs/
# make eval    set up, then the whole evaluation: JSON, HTML and Markdown in runs/evaluation/ (well under an hour)
# make format  set up, then let ruff write the code's form
# make fresh   the steps of serve in a new environment in a temporary folder, up to one composed picture

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.set-up
# Tests that watch a browser and killed processes in real time; beside the others they would come too late.
APART := tests/clients/test_page.py tests/crash

# Those that make test runs once more, over workers: jobs, their events and pictures.
BEHIND := tests/service/test_jobs.py
OVER_WORKERS := SUPERDIFF_BEHIND=postgres OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p tests.behind --numprocesses auto --dist loadfile

.PHONY: setup serve test types tests behind test-behind bench eval format fresh

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

serve: setup
	$(BIN)/superdiff serve --host $(HOST) --port $(PORT)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --jobs 2 types tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile $(APART)
	$(MAKE) behind

types: setup
	$(BIN)/mypy

# In the folders' order: the files that take longest come first, and no processor is left with one at the end.
tests: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(APART:%=--ignore %)

behind: setup
	$(OVER_WORKERS) $(BEHIND)

test-behind: setup
	$(OVER_WORKERS) tests/service tests/clients --ignore tests/service/engine --ignore tests/service/store \
		--ignore tests/service/durable --ignore tests/clients/test_page.py
	$(OVER_WORKERS) tests/clients/test_page.py

bench: setup
	$(BIN)/python -m benchmarks.accuracy
	$(BIN)/python -m benchmarks.composition
	$(BIN)/python -m benchmarks.sampler
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.crowd
	$(BIN)/python -m benchmarks.burst
	$(BIN)/python -m benchmarks.crowded
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.models
	$(BIN)/python -m benchmarks.weights
	$(BIN)/python -m benchmarks.http
	$(BIN)/python -m benchmarks.overload
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.store
	$(BIN)/python -m benchmarks.workers
	$(BIN)/python -m benchmarks.scaling

eval: setup
	$(BIN)/python -m evaluation

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fresh:
	scripts/fresh_setup.sh
