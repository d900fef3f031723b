# `make demo` and `make test` need python3 (3.11 or newer) and make, nothing else; both do the set-up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
PIP := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check --constraint constraints.txt
# Small tensors: one thread per process is fastest. Two processes share the tests, a file at a time: what a file makes
# once is not made in both. What they compile is kept, whatever the environment says: tests start many processes.
TEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile
TYPES := PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
# One command while the types are checked, whose outcome comes last.
beside_types = found=$$(mktemp); $(TYPES) > $$found 2>&1 & checking=$$!; $(1); tests=$$?; \
	wait $$checking; types=$$?; cat $$found; rm $$found; exit $$((tests | types))
BENCHMARKS := step_overhead run_overhead check_time saved_time cut_vs_scratch compiled_cut joins trace_time trace_scale cut_scale surgery_time denormals ddp_cut scoring mask_step report_scale

.DEFAULT_GOAL := help
.PHONY: help setup demo style test test-slow test-browser lint bench coverage docs dist clean

help:
	@echo 'make demo       train a network that shrinks while it learns; compare it with its dense twin'
	@echo 'make test       lint, types and quick tests; about six and a half minutes on two cores'
	@echo 'make test-slow  the same with the slow tests'
	@echo 'make test-browser  the report in a headless Chromium, which has to be installed'
	@echo 'make bench      the measurements of docs/numbers.md, without the hours of CIFAR-10'
	@echo 'make coverage   write docs/coverage.md: what can be removed from which architecture'
	@echo 'make docs       the documentation site, in docs/_build; its tests are among the tests'
	@echo 'make dist       build wheel and source archive, install the wheel in an empty environment, run the README there'
	@echo 'make setup      the environment in .venv that all of these use; they call it themselves'
	@echo 'make clean      remove .venv and caches; runs stay'

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null \
		|| { echo 'demp needs Python 3.11 or newer, and there is no $(PYTHON); install it, or name one: make PYTHON=/path/to/python'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "demp needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1); name a newer one: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo '$(PYTHON) cannot make virtual environments; install its venv package (Debian, Ubuntu: apt install python3-venv) and run make again'; exit 1; }
	@echo 'Setting up $(VENV) (once; a minute or two, 2 GB) ...'
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/demp demo

style: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

lint: style
	@$(TYPES)

test: style
	@$(call beside_types,$(TEST) -m 'not slow and not browser')

test-slow: style
	@$(call beside_types,$(TEST) -m 'not browser')

test-browser: $(STAMP)
	@$(BIN)/python -m pytest -m browser tests/report

bench: $(STAMP)
	@for name in $(BENCHMARKS); do echo "$$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

coverage: $(STAMP)
	@$(BIN)/python tests/zoo/write_coverage.py

docs: $(STAMP)
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build
	@echo 'open docs/_build/index.html'

dist: $(STAMP)
	@rm -rf dist build
	@$(PIP) build twine
	@$(BIN)/python -m build --no-isolation --outdir dist >/dev/null
	@$(BIN)/twine check --strict dist/*
	@$(PYTHON) -m venv build/empty
	@build/empty/bin/python -m pip install --quiet --no-input --disable-pip-version-check --constraint constraints.txt dist/*.whl
	@$(BIN)/python tests/docs/first_example.py > build/empty/example.py
	@cd build/empty && bin/python example.py
	@ls -lh dist

clean:
	rm -rf $(VENV) build dist docs/_build docs/reference .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
