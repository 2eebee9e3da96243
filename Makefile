# Everything a person types. The virtual environment and the pinned installation are made on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test e2e check bench format clean help

help:  ## this list
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else "waggle needs Python 3.10 to 3.13, this is %d.%d: run make with PYTHON=/path/to/python3.11" % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## a bootstrap and three peers on this machine, with a live table
	@$(BIN)/waggle demo

test: $(READY)  ## the whole test suite
	@$(BIN)/python -m pytest

e2e: $(READY)  ## builds the Docker image and tries a swarm of containers; skips without an engine
	@$(BIN)/python -m pytest tests/e2e -s

check: $(READY)  ## ruff, mypy strict, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY)  ## measures docs/performance.md but the frontier (a night), more cores and GPUs; Linux, root, two hours
	@set -e; for part in even uplink slow; do $(BIN)/python -m bench.goodput --part $$part; done
	@$(BIN)/python -m bench.plain_tcp
	@$(BIN)/python -m bench.starts
	@set -e; for part in even steps uplink uneven; do $(BIN)/python -m bench.utilisation --part $$part; done
	@$(BIN)/python -m bench.bytes
	@$(BIN)/python -m bench.overhead
	@$(BIN)/python -m bench.inner
	@$(BIN)/python -m bench.page

format: $(READY)  ## format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
