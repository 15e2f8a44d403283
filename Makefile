# Targets: demo, demo-anyres, demo-audio, demo-timeseries, demo-finetune, test, check, docs, test-floor. Each needs only
# python3: it installs into .venv (or .venv-floor), and again only if a pyproject.toml or a constraints file has changed.

PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
EXAMPLE := examples/cornstarch-timeseries  # a third-party plugin
PROJECTS := pyproject.toml $(PLUGINS:%=%/pyproject.toml) examples/cornstarch-timeseries/pyproject.toml
EDITABLE_PLUGINS := $(patsubst %,-e %,$(PLUGINS:%-audio=%-audio[io]) $(EXAMPLE))  # with the libraries that its tests read files with
# ARGS="-k projector" is passed to pytest. One thread for each worker: two workers with two threads each slow each other down.
PYTEST := -m pytest -n 2 -q $(ARGS)
ONE_THREAD := OMP_NUM_THREADS=1

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo demo-anyres demo-audio demo-timeseries demo-finetune test check docs test-floor clean

demo: .venv/installed
	$(BIN)/python examples/digits.py

demo-anyres: .venv/installed
	$(BIN)/python examples/read_canvas.py

demo-audio: .venv/installed
	$(BIN)/python examples/keypad.py

demo-timeseries: .venv/installed
	$(BIN)/python examples/timeseries.py

demo-finetune: .venv/installed
	$(BIN)/python examples/finetune_llava.py --tiny

test: .venv/installed
	$(ONE_THREAD) $(BIN)/python $(PYTEST)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy cornstarch_core $(PLUGINS:%=%/src) examples/cornstarch-timeseries/src

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The pages are in site/index.html."

test-floor: .venv-floor/installed
	$(ONE_THREAD) .venv-floor/bin/python $(PYTEST)

clean:
	rm -rf .venv .venv-floor site dist runs

.venv/installed: $(PROJECTS) constraints.txt
	@echo "Installing into .venv; this takes some minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .[dev,demo,train] $(EDITABLE_PLUGINS)
	@touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .[docs]
	@touch $@

.venv-floor/installed: $(PROJECTS) constraints-floor.txt
	@echo "Installing into .venv-floor; this takes some minutes the first time."
	$(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet -c constraints-floor.txt -e .[test,train] $(EDITABLE_PLUGINS)
	@touch $@
