# `make help` lists what there is. Everything lives in .venv; a stamp file there makes a second set-up instant.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --no-input --disable-pip-version-check --constraint infra/constraints.txt
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-gate test test-browser test-metrics test-hosts lint format bench benefit clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp-run  ## set up .venv with what the product needs

demo: $(VENV)/.stamp-run  ## run the main job on embedded data: images -> store -> picture
	$(BIN)/gatehouse extract infra/demo.yaml
	$(BIN)/gatehouse inspect demo-store

demo-gate: $(VENV)/.stamp-run  ## select techniques by GATE, and extract what it selected
	$(BIN)/gatehouse gate infra/demo-gate.yaml
	$(BIN)/gatehouse extract infra/demo.yaml --set store=./demo-gate/features --set groups=./demo-gate/selection.json
	@echo demo-gate/report.html

test: $(VENV)/.stamp-test  ## run the tests (ARGS="-k noise" picks some)
	$(BIN)/python -m pytest $(ARGS)

test-browser: $(VENV)/.stamp-test  ## look at GATE's report in a real browser, if there is a Chromium
	$(BIN)/python -m pytest tests/browser -rs $(ARGS)

test-metrics: $(VENV)/.stamp-test  ## ask a real Prometheus all that the dashboard asks, if there is one
	$(BIN)/python -m pytest tests/infra/test_prometheus.py -rs $(ARGS)

test-hosts: $(VENV)/.stamp-test  ## three nights on a cluster of three hosts, as root (ARGS=-s prints what was said)
	$(BIN)/python -m pytest tests/faults/test_hosts.py -m hosts -rs $(ARGS)

lint: $(VENV)/.stamp-dev  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint infra/Dockerfile

format: $(VENV)/.stamp-dev  ## bring the code into format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.stamp-test  ## measure speed and bytes, as ratios within one run
	$(BIN)/python -m jobs.bench $(ARGS)

benefit: $(VENV)/.stamp-run  ## does suppressing content shift pay? the whole pipeline on embedded scenes, one table
	$(BIN)/python -m jobs.benefit $(ARGS)

clean:  ## remove all that these targets make
	rm -rf $(VENV) demo-store demo-store-inspect.png demo-gate benefit build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# torch first and alone: everything else is small beside it, and must not choose another release.
$(VENV)/.stamp-run: pyproject.toml infra/constraints.txt
	@echo "Setting up $(VENV): a minute or two, most of it torch"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-run
	$(PIP) --editable ".[test]"
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-test
	$(PIP) --editable ".[dev]"
	@touch $@
