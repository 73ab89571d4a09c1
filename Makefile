# make demo | check | test | lint | bench | docs | clean.  PYTHON=... picks the interpreter (3.11 or newer) that .venv is made with.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
DEMO := $(VENV)/.installed
TEST := $(VENV)/.installed-test

.PHONY: demo check test lint bench docs clean
.DELETE_ON_ERROR:

demo: $(DEMO)
	$(VENV)/bin/fedsdr demo

# The fast tier: lint, types, the rules between rooms, unit tests of the core.
check: $(TEST)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python tests/suite.py --core

test: lint
	$(VENV)/bin/python -m pytest tests/unit/test_architecture.py
	$(VENV)/bin/python tests/suite.py

lint: $(TEST)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

# docs/ to be browsed, with the Python API's page from its docstrings: build/docs/index.html
docs: $(VENV)/.installed-docs
	$(VENV)/bin/mkdocs build --strict --quiet
	@echo "build/docs/index.html"

bench: $(TEST)
	$(VENV)/bin/python benchmarks/round.py
	$(VENV)/bin/python benchmarks/memory.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: what was installed from these files is not installed again. The test extra comes on top of the plain package
# under the same constraints, so neither takes anything back from the other.
$(TEST): $(DEMO)
	@echo "Installing what the tests need ..."
	@$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(DEMO)
	@$(PIP) --editable '.[docs]'
	@touch $@

$(DEMO): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "Installing fedsdr and the pinned packages into $(VENV) (a few minutes the first time) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("fedsdr needs Python 3.11 or newer, and $(PYTHON) is %d.%d: name another, as in  make demo PYTHON=python3.12" % v[:2])'
	@$(PYTHON) -m venv $(VENV)
