# The commands of the project. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup run test check docs coverage slurm-demo clean
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: ## make .venv with the pinned packages
	@scripts/setup

run: setup ## run the pipeline of config/config.yaml on this machine; ARGS="..." goes to snakemake
	@everstep run $(if $(ARGS),-- $(ARGS))

test: setup ## run every check: style, types, tests, and tests on a real SLURM where it is installed
	scripts/check

check: setup ## check style, types and documentation only, in seconds
	scripts/check style

docs: setup ## build the documentation as a site in build/docs
	mkdocs build --quiet
	@echo "build/docs/index.html"

coverage: setup ## measure the coverage of the tests; slower than `make test`
	pytest -q -n 2 --dist worksteal --ignore tests/slurm --cov $(ARGS)

slurm-demo: setup ## run the same pipeline on a SLURM of four nodes on this machine
	scripts/slurm-sandbox run snakemake --profile profiles/slurm --jobs 16 $(ARGS)

clean: setup ## list what `everstep clean --yes` would delete from the store
	everstep clean
