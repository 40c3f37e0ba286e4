.PHONY: build native-test native-tsan
PY := .venv/bin/python

build:
	@python3 .ci/setup.py

native-test: build
	@$(PY) .ci/native.py test --sanitizer address --only "$(ONLY)"

native-tsan: build
	@$(PY) .ci/native.py test --sanitizer thread --only "$(ONLY)"
