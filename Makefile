# Every target makes what it needs first; `make help` lists them.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# As pip and curl do: trust what this machine trusts, a company's proxy for one.
export UV_SYSTEM_CERTS ?= 1
# Every server that a test or the demo starts would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
PROTOS := $(shell find proto/trine -name '*.proto')
# Each folder of tests by itself: every one may have its conftest.py.
TESTS := $(wildcard proto/tests services/*/tests models/*/tests cli/tests deploy/tests charts/tests)
PACKAGES := $(wildcard proto/pyproject.toml services/*/pyproject.toml cli/pyproject.toml)

.PHONY: help setup lint demo test chart-test images kind-load k8s-demo clean bench-fraud-quality bench-recommendations bench-stream bench-archive

help:            ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 24

setup: $(VENV)/.ready  ## the virtual environment, generated code and the `trine` command

$(VENV)/bin/uv:
	@echo "setup: virtual environment"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v == (3, 11) or sys.exit(f"setup: Python 3.11 is needed, found {v}")'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install -q uv -c constraints.txt

$(VENV)/.tools: $(VENV)/bin/uv constraints.txt
	@echo "setup: code generator"
	@uv pip install -q --python $(PY) -c constraints.txt grpcio-tools mypy-protobuf
	@touch $@

proto/gen/.ready: $(VENV)/.tools $(PROTOS) proto/generate.py
	@echo "setup: contracts"
	@$(PY) proto/generate.py
	@touch $@

$(VENV)/.ready: proto/gen/.ready constraints.txt pyproject.toml $(PACKAGES)
	@echo "setup: packages (a few GB on a new machine, seconds afterwards)"
	@uv pip install --python $(PY) -c constraints.txt $(foreach p,$(PACKAGES),-e $(dir $(p))) -e '.[dev]'
	@$(PY) -c 'from trine_cli.local.java import java_program; java_program()' 2>/dev/null || \
		echo "setup: done, but Kafka and TorchServe need a JDK 17 or newer (java on PATH, or JAVA_HOME)"
	@touch $@

lint: setup      ## ruff, mypy --strict, contract compatibility
	@ruff check .
	@ruff format --check .
	@mypy --exclude '/tests/' services models cli benchmarks deploy charts conftest.py proto/generate.py proto/compatibility.py
	@for tests in $(TESTS); do echo "mypy $$tests"; mypy --no-error-summary $$tests || exit 1; done
	@mypy --no-error-summary k8s-tests
	@$(PY) proto/compatibility.py
	@$(PY) charts/readme_table.py --check

demo: setup      ## the whole path for real, ending in a report [KEEP=1: leave it running]
	@$(PY) -m trine_cli.demo $(if $(filter-out 0,$(KEEP)),--keep)

test: setup      ## all tests, with real Redis, Kafka and TorchServe
	@# Three files at a time, in order (see conftest.py): most tests wait for servers.
	@pytest -n 3 --dist loadfile --no-loadscope-reorder

# Images and clusters need docker, kind, kubectl and helm on PATH, and no virtual environment.
TAG ?=
CLUSTER ?= kind
images:          ## all images [TAG=the chart's appVersion RELEASES=folder for trine/releases IMAGES=names]
	@$(PYTHON) deploy/images.py build $(IMAGES) --tag "$(TAG)" $(if $(RELEASES),--releases $(RELEASES))

kind-load:       ## the images into a kind cluster [TAG=… CLUSTER=kind IMAGES=names]
	@$(PYTHON) deploy/images.py kind-load $(IMAGES) --tag "$(TAG)" --cluster $(CLUSTER)

k8s-demo: setup  ## Trine on the cluster at hand, ending with open ports [RELEASES=folder KEEP=0: end; REMOVE=1: take away]
	@$(PY) -m deploy.k8s_demo --tag "$(TAG)" $(if $(RELEASES),--releases $(RELEASES)) \
		$(if $(filter 0,$(KEEP)),--no-wait) $(if $(filter-out 0,$(REMOVE)),--remove)

chart-test: setup ## the chart without a cluster: lint, schema, objects, guards, flows [needs helm]
	@helm lint --strict charts/trine
	@pytest -n 2 charts

# These make what else they need: images and a release where they are missing, a kind cluster where there is none.
.PHONY: k8s-test k8s-test-full
K8S_TEST := pytest -vv --durations=0
k8s-test: setup  ## install, score, batch job, uninstall on the cluster at hand
	@uv pip install -q --python $(PY) -c constraints.txt kubernetes
	@$(K8S_TEST) -x k8s-tests/smoke

k8s-test-full: setup  ## the same, then scaling, rolling, breaking, upgrading under load [ARGS='-k rolling']
	@uv pip install -q --python $(PY) -c constraints.txt kubernetes
	@$(K8S_TEST) k8s-tests $(ARGS)

bench-fraud-quality: setup  ## the fraud network against tuned XGBoost [DATA=dataset folder]
	@uv pip install -q --python $(PY) -r benchmarks/requirements.txt
	@$(PY) -m benchmarks.fraud_quality $(if $(DATA),--transactions $(DATA))

bench-realtime: setup  ## the gateway beside TorchServe alone and a service of one's own [RELEASES=folder RELEASE=id]
	@uv pip install -q --python $(PY) -r benchmarks/requirements.txt
	@$(PY) -m benchmarks.realtime $(if $(RELEASES),--releases $(RELEASES) --release $(RELEASE))

bench-recommendations: setup  ## the recommender against popularity and tuned BPR [DATA=dataset folder ARGS='--seeds 3']
	@uv pip install -q --python $(PY) -r benchmarks/requirements.txt
	@$(PY) -m benchmarks.recommendations $(if $(DATA),--interactions $(DATA)) $(ARGS)

clean:           ## forget what runs and builds left here
	rm -rf .run build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

bench-archive: setup  ## Kafka to Parquet by the worker against a plain loop [ARGS='--runs 3']
	@$(PY) -m benchmarks.archive $(ARGS)

bench-batch: setup  ## from Parquet to published, beside Feast and redis-benchmark [ARGS='--runs 1']
	@$(PY) -m benchmarks.batch $(ARGS)

bench-features: setup  ## features of a million transactions, on Spark and in one process [ARGS='--runs 1']
	@$(PY) -m benchmarks.features $(ARGS)

bench-stream: setup  ## the stream worker against an event-by-event loop [ARGS='--runs 3']
	@$(PY) -m benchmarks.stream $(ARGS)
