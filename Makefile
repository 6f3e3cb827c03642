# Each target is complete in itself: it makes the environment it needs.
PYTHON ?= python3
VENV ?= .venv
# On the CPU a second OpenMP thread gains little for models this small, and threads without a free core make all crawl.
export OMP_NUM_THREADS ?= 1
# More arguments for pytest.
PYTEST ?=
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo docs test test-newest test-fast lint clean

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[compare]"
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/.demo

$(VENV)/.docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

demo: $(VENV)/.demo
	$(VENV)/bin/muscle-hf demo

# One thread per test process: two processes on two cores.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 $(PYTEST)

# Beyond the caps of pyproject.toml, in an environment of its own: whether they can be raised.
test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(VENV)-newest/bin/python -m pip install --upgrade transformers peft accelerate trl datasets huggingface-hub
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/python -m pytest -n 2 $(PYTEST)

test-fast: $(VENV)/.test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m "not slow"

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache --no-logo
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

# The site, in build/site; a broken link or reference is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(VENV)-newest
