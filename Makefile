# make demo       a story, every activation compared with Transformers', a broken twin caught
# make test       the tests that need no torch
# make test-hf    the live comparisons with Transformers (installs torch)
# make notebooks  runs the course and writes its pages to build/course/
# make test-notebooks  holds the course's exercises to their solutions
# make check      ruff, ruff format --check, mypy
# make fuzz       twenty thousand mutated files of every kind that enters
# make test-hf-random  random configs against Transformers; SEED=n TEXT=n MULTIMODAL=n
# make reference  remakes the stored runs of Transformers

PYTHON ?= python3
PIP = -m pip install --quiet --disable-pip-version-check
VENV = .venv
HF = .venv-hf

.PHONY: demo test test-hf notebooks test-notebooks check fuzz test-hf-random reference clean

demo: $(VENV)/ready
	$(VENV)/bin/numgemma demo

# one thread each: the workers already fill the cores, and more would fight over them
test: $(VENV)/ready
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n auto -m "not hf and not notebooks"

test-hf: $(HF)/ready
	$(HF)/bin/python -m pytest -q -m hf

test-hf-random: $(HF)/ready
	$(HF)/bin/python tests/random_configs.py $(or $(TEXT),1000) $(or $(MULTIMODAL),300) $(SEED)

fuzz: $(VENV)/ready
	$(VENV)/bin/python tests/hostile_input/harness.py 20000

test-notebooks: $(VENV)/ready
	$(VENV)/bin/python -m pytest -q -n auto -m notebooks

notebooks: $(VENV)/notebooks
	$(VENV)/bin/python notebooks/course.py build/course

check: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy numgemma

reference: $(HF)/ready
	$(HF)/bin/python reference_outputs/make_reference.py

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) -e '.[test,check]'
	touch $@

$(VENV)/notebooks: $(VENV)/ready
	$(VENV)/bin/python $(PIP) -e '.[notebooks]'
	touch $@

# torch first and alone: the CPU build, before anything else asks for a newer one
$(HF)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(HF)
	$(HF)/bin/python $(PIP) torch==2.13.0
	$(HF)/bin/python $(PIP) -e '.[test,hf]'
	touch $@

clean:
	rm -rf $(VENV) $(HF) build demo
