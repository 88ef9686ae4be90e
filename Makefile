# Everything a person does with this checkout. Needs python3 and make; docker/bootstrap.py brings the rest.
PYTHON ?= python3
BOOTSTRAP := $(PYTHON) docker/bootstrap.py
DEV := .venv-dev/bin
LOCK := uv pip compile --quiet --upgrade --generate-hashes --no-header --python-version 3.11
LOCK_PROJECT := $(LOCK) --override docker/requirements/overrides.txt pyproject.toml
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo up test check lint types containers audit unit format evaluate bench train lock clean serve-environment dev-environment train-environment sqs-environment faults

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[36mmake %-18s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: serve-environment ## judge the sample images on a stack of their own; results in demo-results/
	@.venv/bin/unmask demo $(ARGS)

up: serve-environment ## start the whole stack on this machine; Ctrl-C drains and stops it
	@.venv/bin/unmask up $(ARGS)

test: dev-environment sqs-environment ## run all tests (one file or name: make test ARGS="-k ledger")
	@$(DEV)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: lint types containers unit ## run what must be green before a commit: lint, types, container files, layering and unit tests

lint: dev-environment ## check style and formatting
	@$(DEV)/ruff check .
	@$(DEV)/ruff format --check .

types: dev-environment ## check types, strictly
	@$(DEV)/mypy

containers: dev-environment ## check Dockerfile, compose files and Kubernetes manifests; needs no engine and no cluster
	@$(DEV)/hadolint docker/Dockerfile
	@$(DEV)/docker-compose --env-file docker/.env.example -f docker/compose.yaml config --quiet
	@for more in train hpu; do $(DEV)/docker-compose --env-file docker/.env.example -f docker/compose.yaml \
	  -f docker/compose.$$more.yaml --profile '*' config --quiet || exit 1; done
	@$(DEV)/python docker/manifests.py

audit: dev-environment ## look for known vulnerabilities in every pinned package (offline: make audit ARGS="--database all.zip")
	@$(DEV)/python docker/advisories.py $(ARGS)

unit: dev-environment ## run the tests that need no service, the layering test among them
	@$(DEV)/python -m pytest tests/unit -n auto --dist loadfile $(ARGS)

format: dev-environment ## rewrite the code in the house style
	@$(DEV)/ruff check --fix .
	@$(DEV)/ruff format .

evaluate: dev-environment ## measure the champion on held-out identities; writes build/evaluate.json and build/report/
	@mkdir -p build
	@$(DEV)/unmask evaluate --json build/evaluate.json --report build/report $(ARGS)

faults: dev-environment ## prove that nothing is lost, by killing things; writes build/faults.json (make faults ARGS=--list)
	@$(DEV)/python -m tests.faults $(ARGS)

bench: dev-environment ## measure the product beside the bare work and the paper's server; writes build/bench.json and .png
	@$(DEV)/python -m tests.benchmarks.bench $(ARGS)

train: dev-environment ## train the classifier (make train ARGS=--help)
	@$(DEV)/unmask train $(ARGS)

train-environment: ## bring what trainings need (TensorFlow); then `make up` runs a train worker as well
	@$(BOOTSTRAP) train

lock: ## resolve all dependencies anew and write docker/requirements/
	@echo 'uv==0.13.*' | $(BOOTSTRAP) $(LOCK) --no-annotate - -o docker/requirements/uv.txt
	@echo 'setuptools>=77' | $(BOOTSTRAP) $(LOCK) --no-annotate - -o docker/requirements/build.txt
	@$(BOOTSTRAP) $(LOCK_PROJECT) -o docker/requirements/image.txt
	@$(BOOTSTRAP) $(LOCK_PROJECT) --extra embedded --extra demo -o docker/requirements/serve.txt
	@$(BOOTSTRAP) $(LOCK_PROJECT) --extra embedded --extra demo --extra train --group dev -o docker/requirements/dev.txt
	@$(BOOTSTRAP) $(LOCK_PROJECT) --extra train -o docker/requirements/train.txt
	@$(BOOTSTRAP) $(LOCK:3.11=3.10) --override docker/requirements/overrides.txt docker/requirements/train-hpu.in \
	  --no-emit-package tensorflow-cpu --no-emit-package keras -o docker/requirements/train-hpu.txt
	@$(BOOTSTRAP) $(LOCK) docker/requirements/sqs.in -o docker/requirements/sqs.txt

clean: ## remove what make made here: environments, build/, demo-results/, caches (never unmask-data/)
	@rm -rf .venv-tools build dist demo-results .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@for made in .venv .venv-dev .venv-train .venv-sqs; do if [ -f $$made/unmask.stamp ]; then rm -rf $$made; fi; done
	@find pipeline workers webhooks migrations tests docker -name __pycache__ -type d -prune -exec rm -rf {} +

serve-environment:
	@$(BOOTSTRAP) serve

dev-environment:
	@$(BOOTSTRAP) dev

sqs-environment:
	@$(BOOTSTRAP) sqs
