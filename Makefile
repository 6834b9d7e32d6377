# Everything a developer does with this repository. Needed: Python 3.11 or newer, git, make. No compiler, no Node.js.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SUITE  ?= ../shared/acceptance
ARGS   ?=
# Many tests wait for blocks, so there is work for one process more than there are cores.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

PROJECTS := $(sort $(wildcard plugins/*/pyproject.toml clients/*/pyproject.toml))
PLUGINS  := $(patsubst %/pyproject.toml,%,$(PROJECTS))

# The pinned anvil exists for Linux on x86-64 only; elsewhere the caller names one.
ifeq ($(shell uname -sm),Linux x86_64)
ANVIL ?= $(CURDIR)/tools/npm/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil
endif
export ANVIL

.DEFAULT_GOAL := help
.PHONY: help install tools geth interop vault secret-service demo test unit check format bench dist acceptance faults faults-chain faults-power fuzz-api clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)

# The hashed lock first, then our own distributions on top of it without looking for anything else.
$(VENV)/.locked: requirements/dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --only-binary :all: --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml $(PROJECTS)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e . $(addprefix -e ,$(PLUGINS))
	@touch $@

install: $(VENV)/.installed ## everything into .venv, from the hashed lock; nothing to do when nothing changed

tools: install ## solc and anvil, from the npm lock
	$(BIN)/python tools/fetch_node_tools.py

vault: install ## the Vault server that tests use, where a Go toolchain exists; tests use it when it is there
	$(BIN)/python tools/build_vault.py

secret-service: ## the Secret Service that tests use, where apt-get can install it; tests use it when it is there
	@command -v gnome-keyring-daemon >/dev/null && command -v dbus-run-session >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gnome-keyring dbus; \
	else echo "gnome-keyring is not installed; its tests are skipped"; fi

geth: install ## the geth chain node, where a Go toolchain exists; tests use it when it is there
	$(BIN)/python tools/build_geth.py

interop: install ## clients of other makers (grpcurl, Go, JavaScript) that tests let speak to a node
	$(BIN)/python tools/build_interop.py

demo: install ## two nodes on an embedded chain open a channel, pay and settle
	$(BIN)/perunnode demo $(ARGS)

test: install tools ## all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

unit: install ## the fast tests
	$(BIN)/python -m pytest -n auto -m "not slow and not anvil" tests/unit $(wildcard $(addsuffix /tests,$(PLUGINS))) $(ARGS)

check: install tools ## style, types, import directions, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python plugins/api_grpc/generate_stubs.py --check
	$(BIN)/python clients/perunnodecli/generate_stubs.py --check
	$(BIN)/python plugins/chain_ethereum/build_contracts.py --check

format: install ## put the sources into the agreed form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install tools ## measure; prints ratios, writes JSON into build/
	@mkdir -p build
	$(BIN)/python bench/payments.py --json build/payments.json $(ARGS)
	$(BIN)/python bench/gas.py --json build/gas.json
	$(BIN)/python bench/chaincalls.py --json build/chaincalls.json
	$(BIN)/python bench/disputes.py --json build/disputes.json
	$(BIN)/python bench/restore.py --json build/restore.json

dist: install ## wheels of every distribution into dist/
	$(BIN)/python tests/dist/build_wheels.py dist

acceptance: install tools ## a black-box suite: make acceptance SUITE=DIR
	$(BIN)/python tests/acceptance/run.py $(SUITE) $(ARGS)

RUNS ?= 200
SEED ?=

faults: install tools ## kill -9 either node at every persist, send, sign and submit: make faults RUNS=n SEED=s
	$(BIN)/python tests/faults/process/campaign.py --runs $(RUNS) $(if $(SEED),--seed $(SEED)) $(ARGS)

faults-chain: install tools ## open, pay, something goes wrong, settle: make faults-chain RUNS=n SEED=s
	$(BIN)/python tests/faults/chain/campaign.py --runs $(RUNS) $(if $(SEED),--seed $(SEED)) $(ARGS)

faults-power: install ## lose power at every point of a run of the store (needs strace): make faults-power SEED=s
	$(BIN)/python tests/faults/power/campaign.py $(if $(SEED),--seed $(SEED)) $(ARGS)

fuzz-api: install ## hostile requests to every method: make fuzz-api RUNS=requests-per-method SEED=s
	FUZZ_RUNS=$(RUNS) FUZZ_SEED=$(or $(SEED),20) $(BIN)/python -m pytest -n 0 -q -s tests/faults/api $(ARGS)

clean: ## remove what was built, not what was installed
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find perun_core plugins clients tests -name __pycache__ -type d -prune -exec rm -rf {} +
