# Every target makes what it needs first; `make help` lists them.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
PROTOS := $(shell find proto/trine -name '*.proto')
PACKAGES := proto services/service-kit services/feature-store services/inference-gateway services/stream-worker services/model-release . cli

.PHONY: help setup lint test clean

help:            ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 24

setup: $(VENV)/.ready  ## the virtual environment, generated code and the `trine` command

$(VENV)/bin/uv:
	@echo "setup: virtual environment"
	@python3 -m venv $(VENV)
	@$(VENV)/bin/pip install -q uv -c constraints.txt

$(VENV)/.tools: $(VENV)/bin/uv constraints.txt
	@echo "setup: code generator"
	@uv pip install -q --python $(PY) -c constraints.txt grpcio-tools mypy-protobuf
	@touch $@

proto/gen/.ready: $(VENV)/.tools $(PROTOS) proto/generate.py
	@echo "setup: contracts"
	@$(PY) proto/generate.py
	@touch $@

$(VENV)/.ready: proto/gen/.ready constraints.txt pyproject.toml $(wildcard services/*/pyproject.toml) cli/pyproject.toml
	@echo "setup: packages (a few GB on a new machine, seconds afterwards)"
	 uv pip install --python $(PY) -c constraints.txt $(foreach p,$(filter-out .,$(PACKAGES)),-e $(p)) -e '.[dev]'
	@touch $@

lint: setup      ## ruff, mypy --strict, contract compatibility
	@ruff check .
	@ruff format --check .
	@mypy services models cli proto/generate.py

test: setup      ## all tests, with real Redis, Kafka and TorchServe
	@pytest

clean:           ## forget what runs and builds left here
	rm -rf .run build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
