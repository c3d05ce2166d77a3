# What people and CI type. `make serve` and `make test` work on a fresh machine.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# The public index of CPU builds of PyTorch. Harmless when it cannot be reached; empty it with TORCH_INDEX= .
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
REQUIREMENTS ?= requirements/dev-cpu.txt
STAMP := $(VENV)/.installed
# Gateway, linters and validators of system tests; they share no package with ours.
TOOLS := .venv-tools
# Third-party clients, whose requirements contradict the server's.
CLIENTS := .venv-clients

.PHONY: install tools clients serve test test-fast test-system lint bench lock

install: $(STAMP)

$(STAMP): $(REQUIREMENTS) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --retries 1 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $$(grep '^torch==' $(REQUIREMENTS))
	$(BIN)/pip install --quiet --no-deps -r $(REQUIREMENTS)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

clients: $(CLIENTS)/.installed

$(CLIENTS)/.installed: requirements/clients.txt tests/system/node/package-lock.json
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --no-deps -r requirements/clients.txt
	PATH="$(CURDIR)/$(CLIENTS)/bin:$$PATH" npm ci --silent --prefix tests/system/node
	touch $@

tools: $(TOOLS)/.installed

$(TOOLS)/.installed: requirements/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --no-deps -r requirements/tools.txt
	touch $@

serve: install
	$(BIN)/lethe serve --demo

test: install
	$(BIN)/python -m pytest -m "not system" -rs

test-fast: install
	$(BIN)/python -m pytest -m "not engine and not system" -rs

test-system: install tools clients
	$(BIN)/python -m pytest -m system -rs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks serving --condition unregistered --condition unmatched \
	  --against benchmarks/report.json --out reports/bench.json
	$(BIN)/python -m benchmarks sites

# Rewrites the locks from requirements/*.in; needs uv.
LOCK = uv pip compile --quiet --no-header --no-annotate --python-version 3.11
lock:
	for name in serve dev train; do \
	  $(LOCK) --override requirements/overrides.txt requirements/$$name.in requirements/cpu.in -o requirements/$$name-cpu.txt; done
	for name in serve train; do $(LOCK) requirements/$$name.in requirements/cuda.in -o requirements/$$name-cuda.txt; done
	$(LOCK) requirements/clients.in -o requirements/clients.txt
	sed -i 's/^torch==\(.*\)+cpu/torch==\1/; /^--/d' requirements/*-cpu.txt
