# Everything runs in .venv, which `setup` makes: make demo, make test, make lint.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
DEMO ?= runs/demo

.PHONY: setup demo test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev,study]"
	touch $(STAMP)

demo: $(STAMP)
	$(RUN) $(BIN)/contraprune demo --output_dir $(DEMO) --overwrite

# Two workers with one thread each: tiny models gain nothing from more threads.
test: $(STAMP)
	$(RUN) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist src/*.egg-info
