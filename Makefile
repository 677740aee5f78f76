# The commands of the project. Everything happens in a virtual environment, .venv, that is made when it is missing
# and brought up to date when the package's build files change.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUILD_FILES := pyproject.toml setup.py $(wildcard fastcnn/kernels/cpu/*.pyx)

OLDEST := .venv-oldest

# A process for each core, as long as memory allows; one that is done takes tests of another.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: help demo test test-oldest sanitize lint docs bench clean

help:
	@echo "make demo   train the default classifier and save it to model.safetensors"
	@echo "make test   the suite; its small cases without the just-in-time compiler; the GPU's in a simulator"
	@echo "make test-oldest   what touches scikit-learn, with the oldest releases that are supported (Python up to 3.13)"
	@echo "make sanitize   compiled code under AddressSanitizer, with bounds checked, against forbidden pages (Linux, gcc)"
	@echo "make lint   ruff, mypy and the import contracts"
	@echo "make docs   the documentation, build/docs/index.html; its pages' code runs, and a warning is an error"
	@echo "make bench  the benchmarks; each checks its result before it is timed"
	@echo "make clean  remove the environment and everything that was built"

demo: $(VENV)/installed
	$(BIN)/fastcnn train --save model.safetensors

test: $(VENV)/installed-test
	$(BIN)/python $(PYTEST)
	NUMBA_DISABLE_JIT=1 $(BIN)/python $(PYTEST) -m "small and not cuda"
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python $(PYTEST) -m "cuda and small" tests/kernels tests/engine tests/training

test-oldest: $(VENV)/installed $(OLDEST)/installed
	PYTHONPATH=$(CURDIR) $(OLDEST)/bin/python $(PYTEST) tests/test_classifier.py tests/test_sklearn.py \
		tests/test_preprocessing.py tests/test_joblib.py

# The Cython parts in a copy of the package, built for gcc's sanitizers; then the kernels. Bounds-checked kernels have
# a cache of their own.
SANITIZED := build/sanitized
SANITIZERS := -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
SANITIZER_LIBRARIES = $(foreach name,libasan.so libubsan.so libstdc++.so,$(shell gcc -print-file-name=$(name)))

sanitize: $(VENV)/installed-test
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r fastcnn tests setup.py pyproject.toml README.md LICENSE $(SANITIZED)
	rm -f $(SANITIZED)/fastcnn/kernels/cpu/*.so
	$(BIN)/python -m pip install --quiet 'cython>=3.1' 'setuptools>=77'
	cd $(SANITIZED) && CFLAGS="$(SANITIZERS)" $(abspath $(BIN))/python setup.py --quiet build_ext --inplace
	nm $(SANITIZED)/fastcnn/kernels/cpu/_batches*.so | grep -q __asan_report_load
	cd $(SANITIZED) && LD_PRELOAD="$(SANITIZER_LIBRARIES)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
		$(abspath $(BIN))/python -m pytest -s -p no:cacheprovider tests/kernels/test_batches.py tests/kernels/test_blas.py \
		tests/training/test_batches.py
	NUMBA_BOUNDSCHECK=1 $(BIN)/python -m pytest tests/kernels
	$(BIN)/python -m pytest -p tests.kernels.guard_pages --guard end tests/kernels
	$(BIN)/python -m pytest -p tests.kernels.guard_pages --guard start tests/kernels

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fastcnn
	$(BIN)/lint-imports

docs: $(VENV)/installed-docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs

bench: $(VENV)/installed-bench
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	rm -rf docs/generated $(filter-out docs/gallery/index.md,$(wildcard docs/gallery/*.md))
	rm -f fastcnn/kernels/cpu/*.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: $(BUILD_FILES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# Packages for an extra: fastcnn is installed already and is not built again.
$(VENV)/installed-%: $(VENV)/installed
	$(BIN)/python -m pip install --quiet 'fastcnn[$*]'
	@touch $@

# A wheel, so that one is built and can be imported; its tests take the sources, and what else they use.
$(OLDEST)/installed: $(BUILD_FILES) tests/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint tests/oldest.txt . hypothesis joblib pandas polars \
		pytest-benchmark pytest-timeout pytest-xdist
	cd / && $(abspath $(OLDEST))/bin/python -c 'from fastcnn import CNNClassifier; CNNClassifier().get_params()'
	@touch $@
