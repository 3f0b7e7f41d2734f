# `make demo` and `make test` need Python 3.11 and make, nothing else.
PYTHON ?= python3.11
VENV := .venv
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test soak bench check docs install lock clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is needed (set PYTHON=… to name another 3.11+)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## run the main job for real on loopback (ARGS=--check to verify and stop)
	@$(BIN)/nodestr demo $(ARGS)

test: $(STAMP)  ## all tests, in two processes (JOBS=4 for more, ARGS='-k name' to choose)
	@PYTHONHASHSEED=0 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

soak: $(STAMP)  ## thousands of mixed operations with kills and faults, requests over bad lines to relays, then the whole kill matrix (SOAK='--seed 7', NOSTR='--loss 0.3'); takes long
	@$(BIN)/python -m tests.soak $(SOAK)
	@$(BIN)/python -m tests.soak.nostr $(NOSTR)
	@NODESTR_SOAK=1 $(BIN)/python -m pytest tests/integration/test_kill_matrix.py tests/integration/test_lightning_kills.py tests/e2e/test_gateway_money.py tests/e2e/test_gateway_chaos.py tests/e2e/test_slow_clients.py $(ARGS)

bench: $(STAMP)  ## the node beside a bare proxy, in numbers (ARGS=--quick, ARGS=--profile, ARGS=--help)
	@$(BIN)/python -m bench $(ARGS)

check: $(STAMP)  ## the gates: ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)  ## write docs/configuration.md again, from the settings
	@$(BIN)/python -m node.ops.reference

# Where `make install` puts things; DESTDIR stands before all of it, for packages.
PREFIX ?= /opt/nodestr
SYSTEMD ?= /etc/systemd/system

install:  ## as root: the program to /opt/nodestr (PREFIX=…), the systemd units, /etc/nodestr
	$(PYTHON) -m venv $(DESTDIR)$(PREFIX)
	$(DESTDIR)$(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(DESTDIR)$(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation .
	install -d -m 0755 $(DESTDIR)/etc/nodestr $(DESTDIR)$(SYSTEMD)
	sed 's#/opt/nodestr#$(PREFIX)#g' systemd/nodestr.service > $(DESTDIR)$(SYSTEMD)/nodestr.service
	install -m 0644 systemd/nodestr.socket $(DESTDIR)$(SYSTEMD)/nodestr.socket
	$(if $(DESTDIR),,systemctl daemon-reload || true)
	@echo "next: $(PREFIX)/bin/nodestr init --out /etc/nodestr/node.toml --data-dir /var/lib/nodestr"
	@echo "      systemctl enable --now nodestr.socket nodestr"

lock:  ## pin every dependency again (needs uv)
	uv pip compile --quiet --no-header --python-version 3.11 --generate-hashes --extra dev pyproject.toml -o requirements.lock

clean:  ## remove what the targets made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
