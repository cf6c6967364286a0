# `make demo` and `make test` are all a newcomer needs; both set up what is missing first.
.PHONY: help demo test setup fastpath lint bench clean
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python

help:
	@echo "make demo    beer of the day: see identity enforced on this machine (about a minute)"
	@echo "make test    everything that must be green: lint, types, tests"
	@echo "make setup   only the set-up: Debian packages, .venv, a look at the kernel"
	@echo "make fastpath  compile the C fast path again, after a change to trireme_py/fastpath/"
	@echo "make lint    ruff and mypy"
	@echo "make bench   the numbers behind every speed claim"
	@echo "make clean   remove .venv and every cache"

setup:
	@scripts/setup

fastpath:
	@$(PYTHON) -W ignore -c 'import setuptools; setuptools.setup()' --quiet build_ext --inplace

demo:
	@scripts/setup --kernel
	@$(PYTHON) -m agent.cli demo $(ARGS)

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy --strict --explicit-package-bases trireme_py policy agent tests bench

# Kernel tests need root; an ordinary user gets it in a namespace of his own, where only the loopback device exists.
test: lint
	@if [ "$$(id -u)" -ne 0 ] && unshare -Urnm true 2>/dev/null; then \
		exec unshare -Urnm sh -c 'PATH=$$PATH:/usr/sbin:/sbin && ip link set lo up && exec $(PYTHON) -m pytest $(ARGS)'; \
	else exec $(PYTHON) -m pytest $(ARGS); fi

bench: setup
	@set -e; for file in bench/bench_*.py; do \
		if [ -f "$$file" ]; then echo "== $$file"; $(PYTHON) "$$file"; fi; \
	done

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
