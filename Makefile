# Everything runs in .venv, which the first target makes; nothing is done twice.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST := $(RUN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal
BROWSERS := chromium chromium-browser google-chrome
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help setup grid test slow bench costs audit chaos scale check format browser tensorboard notebook clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP) ## make .venv and install the project with its development tools into it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vae_lab needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1); try make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV): about 6 GB and a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

grid: $(STAMP) ## train the 2×2 grid of encoders and decoders, print the table
	@$(RUN)/python train.py -m encoder=vanilla,encdec decoder=vanilla,encdec

bench: $(STAMP) ## measure speed beside other ways to train; a quiet machine and a quarter of an hour
	@$(RUN)/python scripts/benchmark.py

costs: $(STAMP) ## measure a step under each objective, into docs/objectives.md; a quiet machine and some minutes
	@$(RUN)/python scripts/objective_costs.py

test: $(STAMP) ## run the tests, but for those that take long
	@$(TEST) -m 'not slow'

slow: $(STAMP) ## run the other tests: kills, launchers, several processes; ten minutes more
	@$(TEST) -m slow

audit: $(STAMP) ## simulate studies and test closed forms, into docs/trust.md; a quarter of an hour
	@$(RUN)/python scripts/audit.py

chaos: $(STAMP) ## kill, fill up and fuzz sweeps for some minutes; the figures go to chaos.json
	@$(RUN)/python scripts/chaos.py

scale: $(STAMP) ## a sweep of a thousand runs, and runs side by side; a quarter of an hour, figures in scale.json
	@$(RUN)/python scripts/scale.py

check: $(STAMP) ## lint, formatting and types
	@$(RUN)/ruff check
	@$(RUN)/ruff format --check
	@$(RUN)/mypy

browser: $(STAMP) ## install Chromium, in which the tests open the HTML report
	@for name in $(BROWSERS); do command -v $$name > /dev/null && exit 0; done; \
	if grep -qx 'ID=debian' /etc/os-release 2> /dev/null; then \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq -y --no-install-recommends chromium; \
	else $(RUN)/playwright install --with-deps chromium; fi

format: $(STAMP) ## put the code into its format
	@$(RUN)/ruff check --fix
	@$(RUN)/ruff format

notebook: $(STAMP) ## train two small models and execute docs/walk.ipynb anew, from docs/walk.py
	@$(RUN)/python train.py -m encoder=vanilla,encdec latent.dim=16 objective.beta=0.001 trainer.threads=2 name=walk
	@$(RUN)/python scripts/make_notebook.py

tensorboard: $(STAMP) ## show all runs at http://localhost:6006
	@$(RUN)/tensorboard --logdir outputs

clean: ## remove .venv and caches, not outputs
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
