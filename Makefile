# Every target installs what it lacks: system packages by apt when run as root (tools/bootstrap.sh), Python packages
# by hash into .venv. docs/development.md explains the targets.

VENV := .venv
BIN := $(VENV)/bin
EXTENSION := hyperplane/_native.abi3.so
C_SOURCES := $(wildcard csrc/*.c)
C_HEADERS := $(wildcard csrc/*.h)
C_TESTS := $(wildcard tests/unit/c/*.[ch] tests/fuzz/*.[ch] tests/tsan/*.c bench/tools/*.c)
FUZZERS := $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_SECONDS := 20
TSAN_SECONDS := 7
PIP := $(BIN)/pip --disable-pip-version-check -qq
PYTEST := $(BIN)/python -m pytest

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test bench bench-quick performance lint format lock build clean distclean
.PHONY: need-demo need-test need-bench need-lint need-run need-kernels test-plain test-sanitized test-fuzz test-tsan test-system test-packaging test-kernels
.PHONY: lint-python lint-imports lint-c lint-shell sanitized

help:
	@echo "make demo         see it work, in under a minute (root)"
	@echo "make test         all tests: unit, packet, sanitizers, fuzzing, system, packaging (root)"
	@echo "make test-kernels the main paths on this kernel and, emulated, on those that Debian packages (root)"
	@echo "make bench-quick  the main figures in two minutes (root);  make bench: all of them, in twenty"
	@echo "make performance  the newest figures of make bench into docs/performance.md"
	@echo "make lint         formatters, linters, types, imports, C warnings"
	@echo "make build        the extension, into hyperplane/;  make format: rewrite the sources in the project's format"
	@echo "make lock         new versions of all Python packages into requirements*.lock"
	@echo "make clean        remove what was built;  make distclean: and .venv"

demo: need-demo $(EXTENSION)
	@$(BIN)/hyperplane-nat demo

test: need-test test-plain test-sanitized test-fuzz test-tsan test-system test-packaging
	@echo "make test: everything passed"

bench: need-bench $(EXTENSION) $(VENV)/all.stamp
	@$(PYTEST) bench

bench-quick: need-bench $(EXTENSION) $(VENV)/all.stamp
	@HYPERPLANE_BENCH=quick $(PYTEST) bench

# RUN: results of a whole run, in bench/results/, other than the newest.
performance: need-run $(VENV)/all.stamp
	@$(BIN)/python -m bench.report $(RUN)

lint: need-lint lint-python lint-imports lint-c lint-shell
	@echo "make lint: clean"

need-run need-demo need-test need-bench need-lint need-kernels:
	@tools/bootstrap.sh $(@:need-%=%)

# --- Python environment and extension -------------------------------------------------------------------------------

$(BIN)/python:
	@echo "python: making $(VENV)"
	@rm -rf $(VENV)
	@python3 -m venv $(VENV)

$(VENV)/run.stamp: requirements-run.lock | $(BIN)/python
	@echo "python: installing what the program needs into $(VENV)"
	@$(PIP) install --require-hashes -r $<
	@touch $@

$(VENV)/all.stamp: requirements.lock | $(VENV)/run.stamp
	@echo "python: installing the tools of test, lint and bench into $(VENV)"
	@$(PIP) install --require-hashes -r $<
	@touch $@

build: need-run $(EXTENSION)
	@$(BIN)/python -m compileall -q hyperplane

# The first time pip builds it and makes the command; afterwards only what changed is compiled.
$(EXTENSION): $(C_SOURCES) $(C_HEADERS) csrc/build.py setup.py $(VENV)/run.stamp
	@echo "build: compiling $@"
	@if [ -x $(BIN)/hyperplane-nat ]; then $(BIN)/python setup.py -q build_ext --inplace; \
	else $(PIP) install --no-index --no-deps --no-build-isolation --editable .; fi
	@touch $@

# --- tests ----------------------------------------------------------------------------------------------------------

test-plain: need-test $(EXTENSION) $(VENV)/all.stamp
	@echo "test: unit and packet"
	@$(PYTEST) tests/unit tests/packet

# The tests that reach C, again, in a mirror of the tree whose extension is built with the sanitizers, so that nothing
# there can reach the plain build. PYTHONMALLOC=malloc puts red zones around the buffers that Python hands to C. The C unit
# tests have a sanitized variant of their own; leaks are looked for there and while fuzzing, not in the interpreter.
SANITIZE := address,undefined
SANITIZED_TESTS := tests/packet tests/unit/test_dataplane.py tests/unit/test_reader.py tests/unit/test_ipc.py \
	tests/unit/test_ipc_engine.py tests/unit/test_api_doc.py tests/unit/test_model.py
MIRROR := build/asan
SANITIZERS = $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libubsan.so)

sanitized: need-test $(VENV)/all.stamp
	@echo "build: compiling with -fsanitize=$(SANITIZE) into $(MIRROR)"
	@mkdir -p $(MIRROR)
	@rm -rf $(MIRROR)/tests && find $(MIRROR) -name '*.py*' -delete
	@find hyperplane -name '*.py*' -not -name '*.pyc' -exec cp -p --parents {} $(MIRROR) \;
	@cp -pr csrc tests pyproject.toml $(MIRROR)
	@HYPERPLANE_SANITIZE=$(SANITIZE) $(BIN)/python setup.py -q build_ext --build-lib $(MIRROR) \
		--build-temp $(MIRROR)/temp

# pytest keeps what is printed, and a finding ends it: so the reports go to files.
test-sanitized: sanitized
	@echo "test: what reaches C, under -fsanitize=$(SANITIZE)"
	@rm -f $(MIRROR)/report.*
	@cd $(MIRROR) && { LD_PRELOAD="$(SANITIZERS)" PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:log_path=report \
		UBSAN_OPTIONS=print_stacktrace=1:log_path=report $(CURDIR)/$(PYTEST) $(SANITIZED_TESTS) || { cat report.* 2>/dev/null; exit 1; }; }

# A target writes its own first inputs (-seeds=); findings that were mended lie in tests/fuzz/corpus/.
test-fuzz: need-test $(FUZZERS:%=build/fuzz/%)
	@for fuzzer in $(FUZZERS); do \
		echo "test: $$fuzzer for $(FUZZ_SECONDS) s"; \
		corpus=build/fuzz/corpus/$$fuzzer; mended=tests/fuzz/corpus/$$fuzzer; [ -d $$mended ] || mended=; \
		mkdir -p $$corpus && build/fuzz/$$fuzzer -seeds=$$corpus && \
		build/fuzz/$$fuzzer -max_total_time=$(FUZZ_SECONDS) -timeout=10 -max_len=4096 -verbosity=0 -print_final_stats=1 \
			-artifact_prefix=build/fuzz/ $$corpus $$mended || exit 1; \
	done

build/fuzz/%: tests/fuzz/%.c $(wildcard tests/fuzz/*.h tests/unit/c/*.h) $(C_SOURCES) $(C_HEADERS)
	@mkdir -p build/fuzz
	@echo "build: compiling $@"
	@clang -std=gnu11 -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
		-Icsrc $< $(C_SOURCES) -luring -o $@

# With each I/O engine for so long. link_tun.c is replaced: the links are sockets.
test-tsan: need-test build/tsan/workers
	@echo "test: two workers under ThreadSanitizer, $(TSAN_SECONDS) s with each I/O engine"
	@TSAN_OPTIONS=halt_on_error=1:exitcode=66 build/tsan/workers $(TSAN_SECONDS)

build/tsan/%: tests/tsan/%.c $(wildcard tests/unit/c/*.h) $(C_SOURCES) $(C_HEADERS)
	@mkdir -p build/tsan
	@echo "build: compiling $@"
	@gcc -std=gnu11 -O1 -g -fno-omit-frame-pointer -fsanitize=thread -Wno-tsan -Icsrc $< \
		$(filter-out csrc/link_tun.c,$(C_SOURCES)) -luring -o $@

test-system: need-test $(EXTENSION) $(VENV)/all.stamp build/guest/initramfs.img
	@echo "test: system"
	@$(PYTEST) tests/system

# What virtual machines of the tests start from.
build/guest/initramfs.img: tools/guest.sh
	@echo "test: downloading a kernel for virtual machines"
	@tools/guest.sh build/guest

test-packaging: need-test $(VENV)/all.stamp
	@echo "test: packaging"
	@$(PYTEST) tests/packaging

# On this machine's kernel and, in QEMU, on those that Debian packages; KERNELS: names of those that are wanted only.
test-kernels: need-kernels $(EXTENSION) $(VENV)/all.stamp
	@echo "test: kernels"
	@$(BIN)/python -m tests.kernels $(KERNELS)

# --- lint -----------------------------------------------------------------------------------------------------------

WARNINGS := -std=gnu11 -Icsrc -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	-Wpointer-arith -Wcast-qual -Wwrite-strings -Wundef -Wvla -Wformat=2 -Werror
PYTHON_SOURCES := hyperplane tests bench csrc/build.py setup.py

lint-python: need-lint $(VENV)/all.stamp
	@echo "lint: ruff"
	@$(BIN)/ruff check --quiet $(PYTHON_SOURCES)
	@$(BIN)/ruff format --quiet --diff $(PYTHON_SOURCES)
	@echo "lint: mypy --strict"
	@$(BIN)/mypy --no-error-summary --cache-dir=build/mypy hyperplane tests bench

lint-imports: need-lint $(VENV)/all.stamp
	@echo "lint: imports"
	@$(BIN)/lint-imports --no-logo --no-cache

# Compiled, not only parsed: some warnings need the optimizer. Tests are held to the same, but need no prototypes.
lint-c: need-lint
	@echo "lint: clang-format"
	@clang-format --dry-run -Werror $(C_SOURCES) $(C_HEADERS) $(C_TESTS)
	@echo "lint: gcc and clang warnings"
	@for file in $(C_SOURCES); do \
		gcc -O3 $(WARNINGS) -c $$file -o /dev/null && clang -O2 $(WARNINGS) -c $$file -o /dev/null || exit 1; \
	done
	@for file in $(filter %.c,$(C_TESTS)); do \
		gcc -O2 $(WARNINGS) -Wno-missing-prototypes -c $$file -o /dev/null && \
		clang -O2 $(WARNINGS) -Wno-missing-prototypes -c $$file -o /dev/null || exit 1; \
	done
	@echo "lint: clang-tidy"
	@printf '%s\n' $(C_SOURCES) $(filter %.c,$(C_TESTS)) | \
		xargs -P "$$(nproc)" -I{} clang-tidy --quiet {} -- -std=gnu11 -Icsrc 2>&1 | grep -v 'warnings generated\.$$' | \
		{ ! grep . ; }

lint-shell: need-lint
	@echo "lint: shellcheck"
	@shellcheck tools/*.sh tests/kernels/*.sh findings/*.sh .ci/run

format: need-lint $(VENV)/all.stamp
	@$(BIN)/ruff check --quiet --fix $(PYTHON_SOURCES)
	@$(BIN)/ruff format --quiet $(PYTHON_SOURCES)
	@clang-format -i $(C_SOURCES) $(C_HEADERS) $(C_TESTS)

# --- the rest -------------------------------------------------------------------------------------------------------

lock:
	@tools/bootstrap.sh run
	@tools/lock.sh

clean:
	@rm -rf build dist ./*.egg-info $(EXTENSION) .ruff_cache .mypy_cache .pytest_cache .hypothesis .benchmarks
	@find hyperplane tests bench csrc -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)
