# The only two commands a fresh machine needs are `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTEST := $(BIN)/python -m pytest -n $(or $(WORKERS),2) --dist loadfile

.PHONY: demo test test-fast test-long crash-test lint lock clean

$(STAMP): constraints.txt pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)  ## a verifier in three chunks, then a solver by SFT and GRPO; no GPU, network or token
	$(BIN)/mathtune run recipes/demo.yaml
	$(BIN)/mathtune run recipes/demo_solver.yaml

test: $(STAMP)  ## everything but what is marked long; WORKERS=1 for one test at a time, as plain pytest does
	$(PYTEST) -m "not long"

test-fast: $(STAMP)  ## under three minutes
	$(PYTEST) -m "not slow and not long"

test-long: $(STAMP)  ## learning and crash rounds
	$(BIN)/python -m pytest -m long

crash-test: $(STAMP)  ## a hundred kills, about half an hour; KILLS=10 for fewer
	$(BIN)/python benchmarks/crash_test.py --kills $(or $(KILLS),100)

lint: $(STAMP)
	$(BIN)/ruff check .

lock:  ## write constraints.txt anew: the newest versions that pyproject.toml admits
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/pip install --quiet "torch==2.13.0"
	.lock/bin/pip install --quiet -e ".[dev,kubernetes]"
	{ echo "# Exact versions for Python 3.11 and 3.12, written by 'make lock'."; \
	  echo "# torch's CUDA packages are pinned by torch itself, where its build has any."; \
	  .lock/bin/pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.txt
	rm -rf .lock

clean:
	rm -rf .mathtune runs
