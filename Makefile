# `make help` lists what can be made. Everything installs into .venv, which is made once and reused.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
NOTEBOOKS := $(sort $(wildcard chapters/*.ipynb))
export OMP_NUM_THREADS := 1

.PHONY: help book test notebooks $(NOTEBOOKS) teachers reproduce-quick gpu clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

book: $(READY)  ## build the book into _build/html, from the outputs stored in the notebooks
	@rm -rf _build
	@$(BIN)/jupyter-book build . --all -W -n --keep-going -q
	@$(BIN)/python -c 'import pathlib as p; print("The book is ready. Open it:", p.Path("_build/html/index.html").resolve().as_uri())'

test: $(READY)  ## lint, types, unit tests, every notebook re-executed, the book built and opened in a browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --nbval --nbval-current-env tests chapters

notebooks: $(NOTEBOOKS)  ## execute all chapters in place and store their outputs (-j2: two at a time)

$(NOTEBOOKS): $(READY)
	RCMHA_LITE_STATIC=1 PYTHONPATH="$(CURDIR)" $(BIN)/python tools/execute.py $@

teachers: $(READY)  ## write the notebooks without solutions into _build/teachers (OPTIONS="--no-stubs --no-outputs")
	@$(BIN)/python -m tools.teachers $(OPTIONS)

reproduce-quick: $(READY)  ## train pairs of the experiments again, in about ten minutes, and compare their differences with the committed ones
	$(BIN)/python -m experiments.reproduce

gpu: $(READY)  ## for whoever has a GPU: its tests, timings and the full-size run; again, what is missing (DRY=1: small, no GPU)
	$(BIN)/python -m benchmarks.gpu $(if $(DRY),--dry)

clean:  ## remove what was built; .venv stays
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp is written last: an install that was cut short starts again. Python compiles what it imports, when
# it does, so pip need not compile everything.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, \
	$(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" % v[:2])'
	@echo "Installing into .venv, once; this takes minutes ..."
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "No venv module: install it (Debian, Ubuntu: apt install python3-venv)."; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "No .venv was made here, for the reason above; remove what is left of it, and try again."; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -r requirements.txt
	@touch $@
