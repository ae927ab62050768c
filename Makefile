# make setup   a virtual environment with everything pinned; a second call does nothing
# make demo    trains on synthetic shapes, predicts, and leaves output/demo/index.html; goes on where it was
# make test    the test suite
# make lint    formatter, linter, type checker
# make test-lowest   a few minutes of tests with the lowest versions that setup.py allows, in .venv-lowest
#
# VENV=.venv and PYTHON=python3 choose where, and with which Python, the environment is made,
# CONSTRAINTS=constraints.txt the versions in it, and EXTRAS the optional parts.

VENV ?= .venv
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
EXTRAS ?= test,bridge,export,lint

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check --quiet
ready := $(VENV)/.ready

.DELETE_ON_ERROR:
.PHONY: setup demo test test-lowest lint

setup: $(ready)
	@echo "Ready: $$($(python) --version) in $(VENV)"

# Big packages first, so that Detectron2's sdist, whose setup.py imports torch, can be fetched at all.
# Relative paths throughout: a checkout may lie below a folder with a space in its name.
$(ready): $(CONSTRAINTS) setup.py Makefile $(wildcard third_party/*/*.py)
	@test -x $(python) || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch (about 3 GB to download the first time) ..."
	@$(pip) install --constraint $(CONSTRAINTS) torch torchvision setuptools
	@echo "Installing OpenCV, Detectron2 and the project ..."
	@$(python) third_party/opencv/install.py --constraint $(CONSTRAINTS)
	@$(python) third_party/detectron2/install.py --constraint $(CONSTRAINTS)
	@$(pip) install --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $(ready)

demo: $(ready)
	@$(python) -W ignore::FutureWarning demo/walkthrough.py

test: $(ready)
	$(python) -m pytest --numprocesses auto

# Python 3.10 where there is one; pyenv, if in use, has to be told.
LOWEST_PYTHON ?= $(or $(shell PYENV_VERSION=3.10 python3.10 -c 'import sys; print(sys.executable)' \
    2>/dev/null),$(PYTHON))

LOWEST_TESTS := checkpoint criterion detectron2_edits engine_launch engine_step evaluation_semantic head losses mapper \
    mask_former matcher per_pixel safe_reading tta

test-lowest:
	@$(MAKE) --no-print-directory setup VENV=.venv-lowest PYTHON=$(LOWEST_PYTHON) \
	    CONSTRAINTS=constraints-lowest.txt EXTRAS=test
	.venv-lowest/bin/python -m pytest --numprocesses auto $(LOWEST_TESTS:%=tests/test_%.py)

lint: $(ready)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
