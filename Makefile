# On a machine with Python >= 3.11, git and make: `make demo`, `make test`, `make docs` and `make edge`; with a GPU, `make gpu`.
PYTHON ?= python3
VENV := .venv
PIPELINE := $(VENV)/bin/pipeline

# Named against, never imported: they install without TensorRT's libraries.
TENSORRT := 10.16.1.11 11.4.0.106

.PHONY: demo test edge gpu cluster page lint docs install clean

install: $(VENV)/.installed

# Runs again only when what is to be installed changed.
$(VENV)/.installed: pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "patch-rebirth needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	for version in $(TENSORRT); do \
	  $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	    --target $(VENV)/tensorrt/$${version%%.*} tensorrt-cu13-bindings==$$version \
	    || echo "TensorRT's bindings $$version are not to be had here: the check of names against them is skipped"; \
	done
	touch $@

demo: install
	$(PIPELINE) build --teacher digits_vit --bits w4a8 --effort quick --out runs/demo

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The site, into site/: a dead link or a page without a place in the menu fails.
# The variable silences what mkdocs-material says of its own future.
docs: install
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

test: lint
	$(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/cluster

# What runs on real Ray clusters of this machine, a head and two raylets; minutes.
# $(VENV) gets Ray beside the rest.
cluster: install
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest tests/cluster

# What a browser makes of report.html: Debian's chromium, or Chrome. $(VENV) gets Playwright and axe beside the rest.
page: install
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,browser]'
	$(VENV)/bin/pytest -rs tests/browser

# An edge install in an environment of its own, and its verbs on a run; two minutes, and a record of its size.
edge: demo
	$(VENV)/bin/python benchmarks/edge.py runs/demo

# On a machine with a GPU, 10 minutes: its tests, and records of how fast everything is there.
gpu: install
	$(VENV)/bin/python benchmarks/gpu.py

clean:
	rm -rf $(VENV) runs site build dist *.egg-info
