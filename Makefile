# Every target does its own set-up: a fresh clone needs python3 (3.11 or later) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := examples

.PHONY: demo demo-everything test lint types docs unit slow campaign eval-small bench clean

demo: $(VENV)/installed  ## objects cut out of photographs, into demo_output/
	$(BIN)/sam-jax demo --out demo_output

demo-everything: $(VENV)/installed  ## all masks of the same photographs, into demo_output/everything/
	$(BIN)/sam-jax everything sam_jax/assets/demo --out demo_output/everything --format overlay

test: lint types docs unit  ## what CI runs

lint: $(VENV)/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test-installed
	$(BIN)/mypy

docs: $(VENV)/test-installed  ## the site, into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --site-dir build/site

unit: $(VENV)/test-installed
	$(BIN)/pytest -n 2 --dist loadfile

slow: $(VENV)/test-installed  ## the tests that take minutes
	$(BIN)/pytest -m slow -n 2 --dist loadfile

SCALE ?= 1
campaign: $(VENV)/test-installed  ## kills, full disks and 100,000 damaged inputs, see docs/campaign.md; SCALE=0.05 for a part
	SCALE=$(SCALE) $(BIN)/pytest -m campaign -s tests/campaign

eval-small: $(VENV)/eval-installed  ## the embedded model's clicks, boxes and proposals on a small held-out set
	$(BIN)/sam-jax eval small --data $(DATA)
	$(BIN)/sam-jax eval instances --annotations $(DATA)/photographs/annotations.json --methods sam box
	$(BIN)/sam-jax eval proposals --annotations $(DATA)/photographs/annotations.json --methods sam --points-per-side 32
	@echo "examples/README.md says what these images are; the first table names larger sets and where they come from."

bench: $(VENV)/test-installed  ## seconds on this CPU, beside the PyTorch implementations
	$(BIN)/python benchmarks/cpu_predict.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, $(PYTHON) is not that: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/eval-installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[eval]'
	touch $@ $(VENV)/installed

# torch by itself and first: a plain "torch" can mean gigabytes of CUDA libraries, this version is at hand as a CPU build.
$(VENV)/test-installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@ $(VENV)/installed $(VENV)/eval-installed

clean:
	rm -rf $(VENV) demo_output build *.egg-info
