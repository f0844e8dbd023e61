# Everything runs in .venv, which `setup` makes: make demo, make test, make lint, make docs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
DEMO ?= runs/demo

.PHONY: setup demo test sanitize arm lint docs wheel audit clean

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

# The engine under the address and undefined-behaviour sanitizers (GCC; no leak check of the interpreter itself).
SANITIZED := build/sanitized.so
sanitize: $(STAMP)
	mkdir -p build
	$(BIN)/python src/contraprune/engine/compile.py --sanitize --output $(SANITIZED)
	LD_PRELOAD=$$(cc -print-file-name=libasan.so):$$(cc -print-file-name=libubsan.so) ASAN_OPTIONS=detect_leaks=0 \
	  OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/engine/sanitized.py $(SANITIZED)

# The engine cross-compiled for aarch64, in build/; that it is for that machine is looked up in its ELF header.
ARM := build/aarch64.so
arm:
	mkdir -p build
	CXX=aarch64-linux-gnu-g++ $(PYTHON) src/contraprune/engine/compile.py --machine aarch64 --output $(ARM)
	aarch64-linux-gnu-readelf --file-header $(ARM) | grep "Machine: *AArch64"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in build/site; a link that leads nowhere is an error.
docs: $(STAMP)
	$(RUN) NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The wheel of this machine, in build/wheel, with the compiled engine; cibuildwheel (pyproject.toml) makes the others.
wheel: $(STAMP)
	rm -rf build/wheel
	CONTRAPRUNE_REQUIRE_ENGINE=1 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	.ci/check_wheel build/wheel/*.whl

# Known vulnerabilities of the installed packages; says so, and is no error, where the service cannot be reached.
audit: $(STAMP)
	.ci/audit $(VENV)

clean:
	rm -rf $(VENV) build dist src/*.egg-info
