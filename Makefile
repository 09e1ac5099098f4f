# The two commands of a newcomer: make quickstart, make test. Both set up .venv first if it is missing.

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
SOURCES := addp_backbone pretrain experiments tools tests det_configs seg_configs docs setup.py

.PHONY: quickstart miniature gallery benchmark test faults long setup check lint types format doctor docs pins gpu-wheels clean-quickstart

quickstart: $(INSTALLED)
	$(PYTHON) tools/quickstart.py

# The same table for three seeds, from a token predictor and an ADDP that train four times as long.
miniature: $(INSTALLED)
	$(PYTHON) tools/quickstart.py --seeds 0 1 2 --pretraining 4 --work-dir work_dirs/miniature

# docs/gallery.md and its images, from a finished quickstart.
gallery: quickstart
	$(PYTHON) tools/gallery.py

# Two workers with one thread each: the tests are many and small.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile

# Real runs that are signalled, killed and stopped: minutes.
faults: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/faults

# The wheel in a fresh environment, exported models in onnxruntime, leaves on two processes and in stock tools, and
# the suite's slowest tests (marked long): minutes. The extra [export] is needed.
long: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/long
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m long tests

setup: $(INSTALLED)

# A warning, not a refusal: torch without CUDA's libraries, or a rerun, needs less.
$(INSTALLED): requirements.txt pyproject.toml setup.py addp_backbone/mmcv_standin/finder.py
	@free=$$(df -Pk . | awk 'NR == 2 {print int($$4 * 1024 / 1e9)}'); if [ "$$free" -lt 8 ]; then \
	    echo "make setup: $$free GB are free on this disk; a new $(VENV) takes 7.5 GB with torch's CUDA libraries" >&2; fi
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet $$(grep -E '^(pip|setuptools)==' requirements.txt)
	$(PYTHON) -m pip install --quiet -r requirements.txt
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Pins again what requirements.in asks for. Versions that still fit stay; UPGRADE=--upgrade takes the newest of all.
# nvidia, cuda and triton packages are left to torch, which asks for exactly those that it was built with.
pins: $(INSTALLED)
	$(PYTHON) -m uv pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header $(UPGRADE) \
	    requirements.in --output-file requirements.txt
	sed -i -E '/^(nvidia-|cuda-|triton==)/d' requirements.txt

check: lint types test

lint: $(INSTALLED)
	$(PYTHON) -m ruff check $(SOURCES) pretrain/configs
	$(PYTHON) -m ruff format --check $(SOURCES) pretrain/configs

format: $(INSTALLED)
	$(PYTHON) -m ruff format $(SOURCES) pretrain/configs

types: $(INSTALLED)
	$(PYTHON) -m mypy

# About an hour; nothing else should run.
benchmark: $(INSTALLED)
	$(PYTHON) -m tools.benchmark.run_all

# The tests build it too. Strict: a warning, a broken link or an anchor that does not exist is an error. The variable silences a notice of
# mkdocs-material about the successor of mkdocs.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet

# What a machine with torch but without network lacks for tools/gpu_check.py: see docs/gpu.md. PYTHONS="3.10 3.12" for other versions.
gpu-wheels: $(INSTALLED)
	$(PYTHON) -m tools.gpu.wheels $(if $(PYTHONS),--python $(PYTHONS))

doctor: $(INSTALLED)
	$(PYTHON) tools/doctor.py

clean-quickstart:
	rm -rf work_dirs/quickstart
