# make demo: train, evaluate and predict on embedded data.  make test: the test suite.  Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TAG = $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
READY := $(VENV)/.ready
DEMO := runs/demo
BUILT_IN := instancevg_jax/assets/demo_checkpoint
# glibc on Linux: large pages, and freed memory kept. Training on a CPU spends a third of its time in the kernel otherwise.
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8000000000:glibc.malloc.trim_threshold=8000000000:glibc.malloc.top_pad=268435456

# XLA on a CPU: operations side by side, and sums compiled with what is around them. Not for several virtual devices: these must meet in one
# order, and it was not tried.
XLA_CPU := --xla_cpu_enable_concurrency_optimized_scheduler=true \
	--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION

.PHONY: setup demo long test test-training test-slow check bench docs lock clean

setup: $(READY)

$(READY): pyproject.toml $(wildcard requirements/*.txt)
	@test -f requirements/$(TAG).txt || { echo "error: $(PYTHON) is $(TAG); expected one of: $(notdir $(basename $(wildcard requirements/*.txt)))" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$(TAG).txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: export XLA_FLAGS := $(XLA_CPU)
demo: setup
	$(BIN)/python -m instancevg_jax.train --config configs/shapes.py --workdir $(DEMO)
	$(BIN)/python -m instancevg_jax.evaluate --config configs/shapes.py --checkpoint $(DEMO)/checkpoint --compare $(BUILT_IN) \
		--output $(DEMO)/report
	$(BIN)/python -m data_pipelines.draw_shapes --split test --index 7 --output $(DEMO)/scene.png > $(DEMO)/sentence.txt
	$(BIN)/python -m instancevg_jax.predict --checkpoint $(DEMO)/checkpoint --image $(DEMO)/scene.png \
		--expression "$$(cat $(DEMO)/sentence.txt)" --output $(DEMO)/answer.png
	$(BIN)/python -m instancevg_jax.predict --checkpoint $(BUILT_IN) --image $(DEMO)/scene.png \
		--expression "$$(cat $(DEMO)/sentence.txt)" --output $(DEMO)/answer_built_in.png
	@echo
	@echo "The new model next to the built-in one, which was trained for an hour: $(DEMO)/report/report.html"
	@echo "A picture answered by each: $(DEMO)/answer.png $(DEMO)/answer_built_in.png"

# What made the checkpoint that comes with the package: an hour.
long: export XLA_FLAGS := $(XLA_CPU)
long: setup
	$(BIN)/python -m instancevg_jax.train --config configs/shapes.py:long --workdir runs/long

# The parity tests by themselves, compiled as users' programs are (see tests/quickly.py); those of a file share compiled programs.
test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile tests/parity
	$(BIN)/python -m pytest -n auto --dist worksteal --ignore=tests/parity

# Twenty kills at random moments; meshes of several devices and processes, and a signal to one of them.
test-training: setup
	$(BIN)/python -m pytest -n auto -m slow tests/training/test_never_lose_work.py tests/training/test_train_state.py \
		tests/runtime/test_sharding.py

test-slow: setup
	$(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# benchmarks.data measures on your own annotations and pictures: see benchmarks/README.md
bench: setup
	$(BIN)/python -m benchmarks.flops

# The documentation site, in build/site.
docs:
	$(PYTHON) -m venv build/docs
	build/docs/bin/python -m pip install --quiet --disable-pip-version-check "mkdocs-material==9.*"
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --strict --site-dir build/site

# Needs uv on the PATH. Writes names, versions and hashes only.
lock:
	for version in 3.11 3.12 3.13; do \
		uv pip compile pyproject.toml --extra test --generate-hashes --no-header --no-annotate --quiet \
			--python-version $$version --output-file requirements/py$$(echo $$version | tr -d .).txt; \
	done
	uv pip compile pyproject.toml --extra train --extra web --extra cuda --generate-hashes --no-header --no-annotate --quiet \
		--python-version 3.12 --python-platform linux --output-file requirements/py312-cuda.txt

clean:
	rm -rf $(VENV) runs build *.egg-info
