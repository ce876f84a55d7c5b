# What one does with a checkout. `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 5678
TARGET ?=
ADMIN ?= 127.0.0.1:9678
ARGS ?=
FUZZ_SECONDS ?= 60
SOAK_KILLS ?= 300
JOBS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n + 1 : 8)))

bin := $(VENV)/bin
python := $(bin)/python
pip := $(python) -m pip --disable-pip-version-check
# What an installation depends on.
metadata := setup.py pyproject.toml fwdrelay/_version.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run venv dev test coverage trial check fuzz soak bench format clean

# Tests start some thousand interpreters: without bytecode kept, each would compile all of it anew.
test coverage trial: export PYTHONDONTWRITEBYTECODE :=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "variables: PORT, TARGET, ADMIN, ARGS, JOBS, FUZZ_SECONDS, SOAK_KILLS, PYTHON, VENV"

run: $(VENV)/.installed ## relay on PORT to TARGET (without one, to a demonstration), to be seen at ADMIN; more options in ARGS
	@echo "Relaying port $(PORT) to $(or $(TARGET),a page of its own). Try: curl -s localhost:$(PORT)   Stop with Ctrl-C."
	@$(if $(filter-out off unix:%,$(ADMIN)),echo "The dashboard: http://$(ADMIN)/   In a terminal: $(bin)/fwdrelayctl --admin $(ADMIN) top")
	@$(bin)/twistd --nodaemon --pidfile= fwdrelay --port $(PORT) $(if $(TARGET),$(addprefix --target ,$(TARGET)),--demo) --admin $(ADMIN) $(ARGS)

venv: $(VENV)/.installed ## make VENV with fwdrelay in it

dev: $(VENV)/.dev ## make VENV with fwdrelay and what tests and checks need

test: $(VENV)/.dev check ## check, then run all tests under pytest, JOBS at a time; ARGS go to pytest
	$(python) -m pytest --numprocesses=$(JOBS) --dist=worksteal $(ARGS)

coverage: $(VENV)/.dev ## run all tests, and tell which lines none of them reaches; ARGS go to pytest
	@rm -f .coverage .coverage.*
	@status=0; \
	$(bin)/coverage run -m pytest $(ARGS) || status=$$?; \
	$(bin)/coverage combine --quiet && $(bin)/coverage report; \
	exit $$status

trial: $(VENV)/.dev ## run all tests under trial; ARGS go to trial
	$(python) -m twisted.trial --temp-directory=build/trial $(ARGS) tests

check: $(VENV)/.dev ## lint, format, types, floors, and that pytest and trial find the same tests
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(python) -m pytest -q -p no:randomly tests/test_floors.py
	$(python) -m tests.agreement

fuzz: $(VENV)/.dev ## feed the parsers damaged input for FUZZ_SECONDS; ARGS go to it (see --help)
	$(python) -m fuzz --seconds $(FUZZ_SECONDS) $(ARGS)

soak: $(VENV)/.dev ## kill SOAK_KILLS workers under load, and see that no session notices; ARGS go to it (see --help)
	$(python) -m tests.soak --kills $(SOAK_KILLS) $(ARGS)

bench: $(VENV)/.bench ## measure against other relays, to build/bench.json and .png; ARGS go to it (see --help)
	@mkdir -p build
	$(python) -m bench --json build/bench.json --plot build/bench.png $(ARGS)

format: $(VENV)/.dev ## put the code in its one format
	$(bin)/ruff check --select I --fix .
	$(bin)/ruff format .

clean: ## remove what make and the tools made, VENV too
	rm -rf $(VENV) build dist fwdrelay.egg-info .coverage .coverage.* \
	  .mypy_cache .ruff_cache .hypothesis _trial_temp* twisted/plugins/dropin.cache
	find bench fuzz fwdrelay tests twisted -name __pycache__ -prune -exec rm -rf {} +

# The environment. Each stamp stands for what was installed as the metadata told when it was made.
# A venv that failed half way leaves no stamp, and is made good the next time.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"fwdrelay needs Python 3.11 or newer, and $(PYTHON) is {v[0]}.{v[1]}: try make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) has no venv module: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made $(metadata)
	@echo "installing fwdrelay and what it needs in $(VENV)"
	@$(pip) install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed $(metadata)
	@echo "installing what tests and checks need in $(VENV)"
	@$(pip) install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.installed $(metadata)
	@echo "installing what the benchmark needs in $(VENV)"
	@$(pip) install --quiet --editable '.[bench]'
	@touch $@

# Installing it on a machine: `make install DESTDIR= PREFIX=/usr/local`.
-include etc/install.mk
