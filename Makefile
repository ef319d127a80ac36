# From a bare machine with make and Python 3.11 or newer: every target that needs the set-up does it first, once.
PYTHON ?= python3
RUN := .venv/bin/python
INSTALLED := .venv/installed
# Test processes at a time; files stay whole, as their tests share what they set up, and in order: by themselves they would
# be taken by number of tests, and the few long ones of tests/integration, last, keep one process busy alone.
JOBS ?= 2
# No compiler is needed to install DeepSpeed: its ops are built, if ever, where they are first used.
export DS_BUILD_OPS ?= 0
# Empty is unset: bytecode is kept, or each of the many processes of a launch would compile torch again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-11s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED) ## create .venv with the pinned dependencies (PYTHON=python3.12 names another interpreter)

demo: install ## text to trained encoder in minutes, on the standard library's English or TEXT=path
	@$(RUN) -m disentangled.trainer.demo $(if $(TEXT),--text "$(TEXT)")

test: install ## all tests but the slow ones, two at a time (JOBS=8; PYTEST_ARGS="tests/model -x" passes options on)
	@$(RUN) -m pytest -m "not slow" --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: install ## the slow tests
	@$(RUN) -m pytest -m slow $(PYTEST_ARGS)

lint: install ## ruff (rules and format) and mypy
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m ruff format --quiet --check .
	@$(RUN) -m mypy --no-error-summary

clean: ## remove .venv, builds and caches; shards and runs stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Build tools first, at their pins, then everything else without build isolation: an isolated build would fetch unpinned
# ones, and a DeepSpeed that finds no torch at build time asks for nothing that depends on the machine.
# --no-compile: Python compiles a module when it is first imported; most of what is installed never is.
$(INSTALLED): constraints.txt setup.py
	@stop() { echo "make: $$*" >&2; exit 1; }; \
	remedy="name another one: make install PYTHON=/path/to/python3.11"; \
	command -v "$(PYTHON)" >/dev/null || stop "$(PYTHON) was not found, Python 3.11 or newer is needed; $$remedy"; \
	version=$$("$(PYTHON)" --version 2>&1); \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		stop "$(PYTHON) is $$version, 3.11 or newer is needed; $$remedy"; \
	"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		stop "$(PYTHON) lacks venv or ensurepip; install them (Debian: the package python3-venv) or $$remedy"; \
	echo "setting up .venv (about a minute, longer where torch brings CUDA; log in .venv/install.log)"; \
	test "$$($(RUN) --version 2>/dev/null)" = "$$version" || rm -rf .venv; \
	"$(PYTHON)" -m venv .venv || stop "$(PYTHON) -m venv .venv failed, see above; mend that, then repeat it"; \
	pip() { $(RUN) -m pip install --no-compile --constraint constraints.txt "$$@" >>.venv/install.log 2>&1; }; \
	{ pip --upgrade pip setuptools wheel && pip --no-build-isolation --editable '.[test]'; } || \
		{ tail -n 12 .venv/install.log >&2; stop "the set-up failed, see above and .venv/install.log; mend that, then repeat it"; }
	@touch $(INSTALLED)
