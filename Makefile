# `make demo` runs the main job on built-in data; `make test` runs the tests. Both make .venv first.
# `make results DATA=folder [VIDEOS=subfolder]` measures the tables of docs/results.md, which takes hours; `make bench`
# those of speed; `make paper DATA=folder [SCALE=1/200]` the paper's comparison, at a share of the published lengths.
# `make docs` builds the documentation into site/, and fails on any warning.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs results bench paper clean

demo: $(VENV)/installed
	$(BIN)/ptq4vm weights rvm_mobilenetv3
	$(BIN)/ptq4vm quantize --config lightning_configs/quantize/demo.yaml

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n auto --maxprocesses 4

lint: $(VENV)/installed-test
	$(BIN)/pip install --quiet --editable ".[dev]"
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg

docs: $(VENV)/installed-test
	$(BIN)/pip install --quiet --editable ".[docs]"
	$(BIN)/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet docs site

results: $(VENV)/installed
	@test -n "$(DATA)" || { echo "Expected the data's folder: make results DATA=folder"; exit 2; }
	$(BIN)/ptq4vm weights rvm_mobilenetv3
	$(BIN)/python benchmarks/results.py --root "$(DATA)" $(if $(VIDEOS),--videos "$(VIDEOS)")

bench: $(VENV)/installed-test
	$(BIN)/ptq4vm weights rvm_mobilenetv3
	$(BIN)/python benchmarks/speed.py

paper: $(VENV)/installed
	@test -n "$(DATA)" || { echo "Expected the data's folder: make paper DATA=folder [SCALE=1/200]"; exit 2; }
	$(BIN)/ptq4vm weights rvm_mobilenetv3
	$(BIN)/python benchmarks/paper.py --root "$(DATA)" --scale "$(or $(SCALE),1)"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: setup.cfg | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) runs site
