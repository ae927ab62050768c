# make setup   a virtual environment with everything pinned; a second call does nothing
# make demo    trains on synthetic shapes, predicts, and leaves output/demo/index.html; goes on where it was
# make test    the test suite
# make lint    formatter, linter, type checker
#
# VENV=.venv and PYTHON=python3 choose where, and with which Python, the environment is made.

VENV ?= .venv
PYTHON ?= python3

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check --quiet
ready := $(VENV)/.ready

.DELETE_ON_ERROR:
.PHONY: setup demo test lint

setup: $(ready)
	@echo "Ready: $$($(python) --version) in $(VENV)"

# Big packages first, so that Detectron2's sdist, whose setup.py imports torch, can be fetched at all.
# Relative paths throughout: a checkout may lie below a folder with a space in its name.
$(ready): constraints.txt setup.py Makefile $(wildcard third_party/*/*.py)
	@test -x $(python) || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch (about 3 GB to download the first time) ..."
	@$(pip) install --constraint constraints.txt torch torchvision setuptools
	@echo "Installing OpenCV, Detectron2 and the project ..."
	@$(python) third_party/opencv/install.py --constraint constraints.txt
	@$(python) third_party/detectron2/install.py --constraint constraints.txt
	@$(pip) install --constraint constraints.txt --no-build-isolation --editable '.[test,bridge,lint]'
	@touch $(ready)

demo: $(ready)
	@$(python) -W ignore::FutureWarning demo/walkthrough.py

test: $(ready)
	$(python) -m pytest --numprocesses auto

lint: $(ready)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
