# make demo   install, fetch a small real model and mixture, fine-tune with HBO, write the report
# make test   install, run the whole test suite
# make check  format, lint, types, import layers, docs (no tests)

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin
STAMP := .venv/.hbo-installed

.DEFAULT_GOAL := help
.PHONY: help install demo demo-multilingual test test-crash check bench bench-gpu format tree clean

help:
	@sed -n '1,3s/^# //p' Makefile

install: $(STAMP)

# Runs again only when pyproject.toml changes. torch comes first, so that the pinned build
# (on Linux without a GPU: the CPU one) is in place before anything asks for "some torch".
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

demo: install
	$(BIN)/hbo train configs/demo.yaml --overwrite

demo-multilingual: install
	$(BIN)/hbo train configs/demo-multilingual.yaml --overwrite

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

# Kills runs at every moment that tests/crash/points.py knows, and at twenty random ones; the ordinary
# suite at some of them.
test-crash: install
	HBO_KILLS=20 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/crash $(ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/docs

# An hour or more, and only on an idle machine worth a word: docs/performance.md. The numbers go to
# build/bench/*.json. RELEASED=PATH: a checkout of the paper's code, to compare an update with.
BENCHMARKS := stream scoring norms throughput growth signals overhead

bench: install
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@for name in $(BENCHMARKS); do \
		$(BIN)/python benchmarks/$$name.py --json build/bench/$$name.json $(ARGS) || exit 1; done
	$(BIN)/python benchmarks/update.py --share 4 $(if $(RELEASED),--released $(RELEASED)) \
		--json build/bench/update.json $(ARGS)

# The same on a CUDA device, where a whole step of 64 examples is measured. ARGS="--model PATH" tries
# another model.
bench-gpu: install
	@for name in scoring norms; do \
		$(BIN)/python benchmarks/$$name.py --device cuda --json build/bench/gpu-$$name.json $(ARGS) \
			|| exit 1; done
	$(BIN)/python benchmarks/overhead.py --device cuda --measured-batch 64 --steps 20 \
		--json build/bench/gpu-overhead.json $(ARGS)

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Writes the source tree of README.md again from the first line of each file's docstring.
tree: install
	$(BIN)/python tools/tree.py

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
