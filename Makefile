# make serve | make test | make help
.DEFAULT_GOAL := help
SHELL := /bin/bash

# The first Python of a supported version on PATH; override with `make PYTHON=/path/to/python setup`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
    $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 3000
export BENTOML_DO_NOT_TRACK ?= True

.PHONY: help setup serve test test-all test-fast test-verified test-families test-times test-failed docs site image-check compose-check models full-size lint lint-ui types check bench soak conformance verify audit nightly clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 on PATH: install one, or name it with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch goes first and by its exact pin: on a machine that offers a CPU build beside the index, pip then takes it
# and leaves it alone.
$(VENV)/.installed: $(VENV)/.created requirements.txt pyproject.toml
	@echo "Installing the pinned requirements into $(VENV): about a minute, plus the download of torch"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# torchvision goes into a folder of its own, from which the tests that need it load it (tests/support/vision.py).
$(VENV)/.installed-test: $(VENV)/.installed requirements-test.txt requirements-quantization.txt \
		requirements-c2pa.txt requirements-vision.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt \
		-r requirements-quantization.txt -r requirements-c2pa.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/vision \
		-r requirements-vision.txt
	@touch $@

setup: $(VENV)/.installed ## Create .venv with the pinned requirements and the project

serve: setup ## Serve the configured model (the embedded one by default) on port $(PORT)
	$(BIN)/bentoml serve --port $(PORT)

# Three test processes and their servers on two cores, with one thread of torch each: a third of the time of a test is
# waiting, for servers, leases and ranks.
# xdist would begin with the modules of most tests, and end with the longest; tests/conftest.py has the order.
PROCESSES ?= 3
# Compiled modules are kept: pytest's own take three seconds of each process to make, and each server imports the project.
ENVIRONMENT := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1
SPREAD := -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
PYTEST := $(ENVIRONMENT) $(BIN)/python -m pytest $(SPREAD)
MAIN := not verified and not apart

test: $(VENV)/.installed-test ## Run the test suite, without the tests of test-verified
	$(PYTEST) -m "$(MAIN)"

# None on record (a crash, an error of collection) is a failure too.
test-failed: $(VENV)/.installed-test ## The tests that failed last, one at a time
	$(ENVIRONMENT) $(BIN)/python -m pytest -x --last-failed --last-failed-no-failures none

test-all: $(VENV)/.installed-test ## Everything, four ranks and all storms too: before a release
	$(PYTEST)

test-fast: $(VENV)/.installed-test ## The same without whole servers, ranks, benchmarks and modules that draw many pictures
	$(PYTEST) -m "$(MAIN) and not slow" --ignore=tests/process --ignore=tests/ranks --ignore=tests/benchmarks

# PARTS="pipeline measure" names those to run, changed or not.
test-verified: $(VENV)/.installed-test ## Dear tests of the parts that changed since, and record them: tests/verified.json (minutes)
	$(ENVIRONMENT) $(BIN)/python -m tools.verified --run="$(SPREAD)" $(PARTS)

test-families: PARTS := families
test-families: test-verified ## The pipeline classes and shipped configurations that `make test` leaves out (minutes)

test-times: $(VENV)/.installed-test ## The same as `make test`, and where its time went: build/test-times.md
	@mkdir -p build
	$(PYTEST) -m "$(MAIN)" -p tests.support.times --times build/test-times.md

docs: $(VENV)/.installed-test ## Write the generated parts of docs/ and the snapshots; `make models` has its table
	PYTHONPATH=src:. $(BIN)/python -m tools.flags_page
	PYTHONPATH=src:. $(BIN)/python -m tools.schema_tables
	PYTHONPATH=src:. $(BIN)/python -m tools.measures_page
	PYTHONPATH=src:. $(BIN)/python -m tools.licences
	OMP_NUM_THREADS=1 PYTHONPATH=src:. $(BIN)/python -m tools.snapshot

# In an environment of its own: nothing else needs mkdocs.
$(VENV)-docs/.installed: requirements-docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

# The diagrams' script, which the theme would load from another host.
MERMAID := 11.17.2

build/mermaid/$(MERMAID): Makefile
	@mkdir -p build/mermaid
	cd build/mermaid && timeout 300 npm pack --silent mermaid@$(MERMAID) && \
		tar -xzf mermaid-$(MERMAID).tgz --strip-components=1 package/dist/mermaid.min.js package/LICENSE
	@touch $@

site: $(VENV)-docs/.installed build/mermaid/$(MERMAID) ## The documentation as a site without other hosts, in build/site; a dead link fails it
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --clean

# A folder with torch's CPU build: `make image-check WHEELS=/folder`. Without it the image takes PyPI's, with CUDA.
image-check: $(VENV)/.installed-test ## The image built by buildah, run hardened by podman, measured: docs/image.md (minutes)
	PYTHONPATH=src:. $(BIN)/python -m tools.image $(if $(WHEELS),--wheels $(WHEELS))

compose-check: $(VENV)/.installed-test ## deploy/compose.yaml started by podman, after `make image-check`: docs/deploy.md (minutes)
	PYTHONPATH=src:. $(BIN)/python -m tools.compose

models: $(VENV)/.installed-test ## Run every model family and write its row into docs/models.md (minutes)
	OMP_NUM_THREADS=1 PYTHONPATH=src:. $(BIN)/python -m tools.models_table --write

full-size: $(VENV)/.installed-test ## Draw each model that changed at full size without data: memory and FLOP, in docs/models.md (minutes)
	OMP_NUM_THREADS=1 PYTHONPATH=src:. $(BIN)/python -m tools.full_size

lint: $(VENV)/.installed-test ## ruff: lint and format; import-linter: the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@if command -v npm > /dev/null && $(MAKE) --silent tools/ui/node_modules; then \
		$(MAKE) --no-print-directory lint-ui; else \
		echo "No npm, or it cannot be reached: the playground's scripts are not checked" >&2; fi

UI := src/cache_dit_serving/api/static/ui

tools/ui/node_modules: tools/ui/package.json
	timeout 300 npm install --prefix tools/ui --no-package-lock --no-audit --no-fund --silent
	@touch $@

lint-ui: tools/ui/node_modules ## The playground's scripts: Biome, and types by TypeScript
	tools/ui/node_modules/.bin/biome check --config-path=tools/ui $(UI)
	tools/ui/node_modules/.bin/tsc -p tools/ui

types: $(VENV)/.installed-test ## mypy, strict
	$(BIN)/mypy

check: lint types test-fast ## Lint, types and the fast tests: before every commit

bench: $(VENV)/.installed-test ## What serving adds, saturation, the cache, answers, files, a start (20 to 45 minutes)
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.answers
	$(BIN)/python -m benchmarks.files
	$(BIN)/python -m benchmarks.start

SOAK ?= 10m

soak: $(VENV)/.installed-test ## Four times the traffic that fits, for ten minutes (SOAK=8h: longer); fails where anything grows
	SOAK=$(SOAK) $(BIN)/python -m benchmarks.soak

conformance: $(VENV)/.installed-test ## Made-up requests to every route, with keys: forty times those of `make test`
	CONFORMANCE_EXAMPLES=400 CONFORMANCE_KEYS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/http/test_openapi.py

verify: setup ## The speeds of the embedded model against uncached outputs: 12 prompts x 2 seeds, every floor (a minute)
	OMP_NUM_THREADS=1 $(BIN)/cache-dit-serving verify embedded --seeds 2

audit: ## Known vulnerabilities of the pinned requirements, by pip-audit; fails where their data cannot be reached
	$(PYTHON) -m tools.audit

# Parts of the nightly run that need tools beyond Python, and those tools. A part without its tools is left out by name.
NIGHTLY := test-all soak conformance verify audit
WITH_TOOLS := site image-check compose-check
site-tools := npm
image-check-tools := buildah podman runc mmdebstrap root
compose-check-tools := $(image-check-tools) iptables
here = $(if $(filter root,$(1)),$(filter 0,$(shell id -u)),$(shell command -v $(1)))
missing = $(strip $(foreach tool,$($(1)-tools),$(if $(call here,$(tool)),,$(tool))))

able = $(foreach part,$(WITH_TOOLS),$(if $(call missing,$(part)),,$(part)))
left-out = $(foreach part,$(WITH_TOOLS),$(if $(call missing,$(part)),echo "left out: $(part) (lacks $(call missing,$(part)))" >&2;))

# A part that fails keeps none of the others from running. `WHEELS=/folder` is image-check's.
nightly: ## All tests, soak, conformance, the speeds' floors, the audit; the site and the image where their tools are
	@$(MAKE) --no-print-directory --keep-going $(NIGHTLY) $(able); status=$$?; $(left-out) exit $$status

clean: ## Remove the environment and caches
	rm -rf $(VENV) $(VENV)-docs .mypy_cache .ruff_cache .pytest_cache .hypothesis build src/*.egg-info
