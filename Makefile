# The commands of the project. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup run test check docs coverage slurm-demo clean
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: ## .venv with the pinned packages
	@scripts/setup

run: setup ## the pipeline on config/config.yaml, here; ARGS="..." is passed on to snakemake
	snakemake --profile profiles/local $(ARGS)

test: setup ## every check: style, types, tests, and a real SLURM where it is installed
	scripts/check

check: setup ## style and types only, in seconds
	scripts/check style

docs: setup ## the documentation as a site, in build/docs
	mkdocs build --quiet
	@echo "build/docs/index.html"

coverage: setup ## lines and branches that the tests reach, at least the floor in pyproject.toml; slower than `make test`
	pytest -q -n 2 --dist worksteal --ignore tests/slurm --cov $(ARGS)

slurm-demo: setup ## the same pipeline on a four-node SLURM cluster that lives on this machine
	scripts/slurm-sandbox run snakemake --profile profiles/slurm --jobs 16 $(ARGS)

clean: setup ## what `everstep clean` would delete from the store; it lists first
	everstep clean
