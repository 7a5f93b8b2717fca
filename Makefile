# make demo   adapts the shipped checkpoint to Spanish (about 10 minutes on 2 cores)
# make test       everything that is not marked slow
# make test-all   everything
# Both set up .venv first. PRESET=paper gives the paper's own parts.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PRESET ?= best
export TOKENIZERS_PARALLELISM = false

.PHONY: test-peers setup demo demo-short test test-all lint

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/python -m demo.run --preset $(PRESET)

demo-short: setup
	$(BIN)/python -m demo.run --steps 6 --test_minutes 0.3

# two test processes on tiny models: more threads only wait for each other
test test-all: export OMP_NUM_THREADS = 1

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-all: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m ""

test-peers: setup  # the common test suites of Transformers and PEFT on our classes: before every release
	$(BIN)/python tests/peers/suites.py
	$(BIN)/python -m pytest -q -m "" --timeout 300 -o filterwarnings= tests/peers/peers_transformers.py tests/peers/peers_peft.py

lint: setup
	$(BIN)/ruff check .
