# `make demo` and `make test` are all a newcomer needs; both set up what is missing first.
.PHONY: help demo test setup fastpath fastpath-asan fastpath-tsan fastpath-valgrind fuzz lint bench bench-quick e2e cluster cluster-down image clean
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
COMMA := ,

help:
	@echo "make demo    beer of the day: see identity enforced on this machine (about a minute)"
	@echo "make test    everything that must be green: lint, types, tests"
	@echo "make setup   only the set-up: Debian packages, .venv, a look at the kernel"
	@echo "make fastpath  compile the C fast path again, after a change to trireme_py/fastpath/"
	@echo "make fastpath-asan  the tests in memory on a fast path built with sanitizers"
	@echo "make fastpath-tsan  its threads, on real queues, built with ThreadSanitizer (as root)"
	@echo "make fastpath-valgrind  its engine and threads' work under valgrind"
	@echo "make fuzz    look for inputs that break the fast path, ten minutes for each target"
	@echo "make lint    ruff and mypy"
	@echo "make bench   the numbers behind every speed claim"
	@echo "make bench-quick  the fast path against the floor of the packet queue, in less than 50 seconds"
	@echo "make cluster       a Kubernetes of two nodes on this machine (docs/cluster.md; as root)"
	@echo "make cluster-down  its end"
	@echo "make e2e     the tests on that cluster (the first time it is compiled: a quarter of an hour)"
	@echo "make image   the container image, as an archive (manifests/README.md; as root)"
	@echo "make clean   remove .venv and every cache"

setup:
	@scripts/setup

fastpath:
	@$(PYTHON) -W ignore -c 'import setuptools; setuptools.setup()' --quiet build_ext --inplace

# Tests on a fast path that watches its own memory and arithmetic, or what its threads do to each other: those in memory, and those on real queues.
SANITIZED_TESTS = LD_PRELOAD="$$(gcc -print-file-name=lib$(1).so) $$(gcc -print-file-name=libstdc++.so)" TRIREME_SANITIZED=build/$(1) \
	$(PYTHON) -m pytest -p tests.harness.sanitized --impl c -m 'not slow'
SANITIZED_BUILD = CFLAGS='-g -O1 -fno-omit-frame-pointer -fsanitize=$(2) -fno-sanitize-recover=all -U_FORTIFY_SOURCE' LDFLAGS='-fsanitize=$(2)' \
	$(PYTHON) -W ignore -c 'import setuptools; setuptools.setup()' --quiet build_ext --build-lib build/$(1) --build-temp build/$(1)-objects

fastpath-asan:
	@$(call SANITIZED_BUILD,asan,address$(COMMA)undefined)
	@ASAN_OPTIONS=detect_leaks=0 $(call SANITIZED_TESTS,asan) $(or $(ARGS),tests/trireme_py)

fastpath-tsan:
	@$(call SANITIZED_BUILD,tsan,thread)
	@$(call SANITIZED_TESTS,tsan) $(or $(ARGS),tests/kernel/test_exchange.py tests/kernel/test_nfqueue.py tests/kernel/test_marks.py)

fastpath-valgrind:
	@$(PYTHON) -m tests.harness.memcheck

fuzz:
	@$(PYTHON) -m tests.harness.fuzzing $(ARGS)

demo:
	@scripts/setup --kernel
	@$(PYTHON) -m agent.cli demo $(ARGS)

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy --strict --explicit-package-bases trireme_py policy agent tests bench

# Without the tests on a cluster (make e2e). Kernel tests need root; an ordinary user gets it in a namespace of his own, where only the loopback device exists.
test: lint
	@if [ "$$(id -u)" -ne 0 ] && unshare -Urnm true 2>/dev/null; then \
		exec unshare -Urnm sh -c 'PATH=$$PATH:/usr/sbin:/sbin && ip link set lo up && exec $(PYTHON) -m pytest -m "not cluster" $(ARGS)'; \
	else exec $(PYTHON) -m pytest -m 'not cluster' $(ARGS); fi

e2e: setup
	@TRIREME_CLUSTER=1 $(PYTHON) -m pytest -m cluster $(or $(ARGS),tests/cluster)

bench: setup build/bench/load build/bench/floor
	@set -e; for file in bench/bench_*.py; do \
		if [ -f "$$file" ]; then echo "== $$file"; $(PYTHON) "$$file"; fi; \
	done

bench-quick: setup build/bench/load build/bench/floor
	@$(PYTHON) bench/bench_quick.py

BENCH_CFLAGS := -std=c11 -O2 -Wall -Wextra -Werror -D_GNU_SOURCE -pthread
FASTPATH_IO := $(addprefix trireme_py/fastpath/,worker.c serve.c netlink.c siphash.c)

build/bench/load: bench/load.c
	@mkdir -p $(@D)
	@$(CC) $(BENCH_CFLAGS) -o $@ $<

build/bench/floor: bench/floor.c bench/never_parks.h $(FASTPATH_IO) $(wildcard trireme_py/fastpath/*.h)
	@mkdir -p $(@D)
	@$(CC) $(BENCH_CFLAGS) -o $@ $< $(FASTPATH_IO)

cluster: setup
	@$(PYTHON) -m tests.cluster.up

cluster-down: setup
	@$(PYTHON) -m tests.cluster.down

image:
	@scripts/image

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
