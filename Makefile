# Every target sets up by itself what it needs; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check bench soak build gpu native-test native-tsan fuzz cluster payload images chart lock clean distclean

SETUP := python3 .ci/setup.py
PY := .venv/bin/python
export KVCOMMONS_CACHE ?= $(CURDIR)/.cache
# NAME and ARGS come from the command line: `make bench NAME=ttft ARGS="--peers"`.
NAME ?=
ARGS ?=
ONLY ?=
BENCHES := codec copy disk eviction gpu keys load lookup node operator peers policy router throughput ttft

help:
	@echo "make demo              two engines, a node, a router: see one replica answer from what the other computed"
	@echo "make test              every test but the long ones"
	@echo "make check             formatting, types, imports, warnings"
	@echo "make bench NAME=...    one benchmark (ARGS=... goes to it)"
	@echo "make soak              the long tests, and the native tests under ThreadSanitizer"
	@echo "make build             the environment and the native module; seconds where little changed"
	@echo "make gpu               the kernels for GPUs beside it; nvcc is brought (ARGS=--help)"
	@echo "make native-test       the native tests under AddressSanitizer and UndefinedBehaviorSanitizer (ONLY=regex)"
	@echo "make fuzz              libFuzzer over frames and disk headers, a minute each, where clang is (ONLY=regex, ARGS=--seconds=N)"
	@echo "make payload           build/payload: the connector as it is added to stock engine images (ARGS=--help)"
	@echo "make images            the images of operator, node and router, by buildah or docker (ARGS=--help)"
	@echo "make cluster           a Kubernetes of two nodes with our images, until Ctrl-C, and what to type next (ARGS=--help)"
	@echo "make chart             what is made from the chart: values, README, plain manifests"
	@echo "make observe           docs/metrics.md, Grafana's dashboards, the operator's alerts"
	@echo "make lock              the locked requirements anew (ARGS=--upgrade for the newest)"
	@echo "make clean             what was built and measured; make distclean: the environment and models too"

demo:
	@$(SETUP) demo
	@python=$$(python3 .ci/setup.py --print-python demo) && exec $$python -P -m kvcommons_cli demo $(ARGS)

build:
	@$(SETUP)

test: build
	@$(PY) .ci/test.py $(ARGS)

check: build
	@$(PY) .ci/check.py $(ARGS)

bench:
	@case " $(BENCHES) " in *" $(or $(NAME),?) "*) ;; *) echo "which? make bench NAME=... of: $(BENCHES)" >&2; exit 2;; esac
	@$(SETUP)
	@exec $(PY) -m bench.$(NAME) $(ARGS)

soak: build
	@$(PY) .ci/test.py --soak $(ARGS)

gpu: build
	@$(PY) .ci/gpu.py install $(ARGS)

native-test: build
	@$(PY) .ci/native.py test --sanitizer address --only "$(ONLY)"

native-tsan: build
	@$(PY) .ci/native.py test --sanitizer thread --only "$(ONLY)"

fuzz: build
	@$(PY) .ci/native.py fuzz --only "$(ONLY)" $(ARGS)

payload: build
	@$(PY) .ci/payload.py $(ARGS)

images:
	@python3 .ci/images.py $(ARGS)

cluster: build
	@exec env PYTHONPATH=tests $(PY) tests/kube_keep.py $(ARGS)

chart: build
	@$(PY) .ci/chart.py write

observe: build
	@$(PY) .ci/observe.py write

lock:
	@python3 .ci/lock.py $(ARGS)

clean:
	@rm -rf build dist bench-out .demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@rm -f cache_node/kvcommons_core/_native*.so cache_node/kvcommons_core/_cuda.fatbin
	@find operator cache_node connector tests bench .ci -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	@rm -rf .venv .venv-gpu .cache
