# Two commands: `make demo` and `make test`. Each first makes its own environment in .venv, once, and again when
# setup.py, pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Worker processes of pytest; JAX uses the remaining threads by itself.
WORKERS ?= 2
PYTEST_FLAGS ?=

# Wheels only, except for the two pure Python packages that publish none (and editdistance has none for Python 3.13).
SOURCE_ONLY = promise,rouge-score$(shell $(PYTHON) -c "import sys; print(',editdistance' * (sys.version_info >= (3, 13)), end='')")
PIP_INSTALL = -m pip install --disable-pip-version-check --quiet --only-binary :all: --no-binary $(SOURCE_ONLY) \
	--constraint constraints.txt

# The TPU compiler lies apart from the environment: JAX would look for TPUs with it at every start.
TPU_COMPILER = build/tpu

.PHONY: demo test test-plan test-peers test-slow lint wheel install-wheel setup clean help

help:
	@echo "make demo       the two-stage demo; results in out/demo/report.html and out/demo/comparison.json"
	@echo "make test       the tests, without those marked slow"
	@echo "make test-plan  the tests that need the TPU compiler, which it installs into $(TPU_COMPILER)"
	@echo "make test-peers the tests against transformers and PEFT, which it installs; against T5X where it is importable"
	@echo "make test-slow  all tests"
	@echo "make lint       ruff, format check, pyright, the floors of the package"
	@echo "make wheel      dist/promot_t5x-*.whl, by way of a source distribution"
	@echo "make clean      remove .venv and everything built; out/ stays"

demo: $(STAMP)
	$(BIN)/promot-t5x demo

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(PYTEST_FLAGS)

test-plan: $(STAMP) $(TPU_COMPILER)
	PYTHONPATH=$(TPU_COMPILER) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "tpu_compiler and not slow" $(PYTEST_FLAGS)

$(TPU_COMPILER): constraints.txt
	rm -rf $@
	$(BIN)/python $(PIP_INSTALL) --no-deps --target $@ libtpu

test-peers: $(STAMP)
	$(BIN)/python $(PIP_INSTALL) --editable ".[test,hf]"
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "peer and not slow" $(PYTEST_FLAGS)

test-slow: $(STAMP) $(TPU_COMPILER)
	PYTHONPATH=$(TPU_COMPILER) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_FLAGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright promot_t5x
	$(BIN)/lint-imports

wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

# The wheel in an environment of its own, for a check from outside the repository: make install-wheel INTO=/some/folder
# (no byte code: the environment is used once, and that saves a third of the time).
install-wheel:
	$(PYTHON) -m venv $(INTO)
	$(INTO)/bin/python $(PIP_INSTALL) --no-compile dist/*.whl

setup: $(STAMP)

$(STAMP): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))" || { \
	  echo "PYTHON=$(PYTHON) is `$(PYTHON) -V 2>&1`, expected Python 3.11 to 3.13 (tensorflow has no wheels for others):" \
	       "run 'make PYTHON=/path/to/python3.12 ...'." >&2; exit 1; }
	@echo "Installing into $(VENV): wheels from PyPI (3.6 GB unpacked), two to three minutes ..."
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python $(PIP_INSTALL) --editable ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./.git/*" -prune -exec rm -rf {} +
