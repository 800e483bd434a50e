# make demo       a story, every activation compared with Transformers', a broken twin caught
# make test       the tests that need no torch
# make test-hf    the live comparisons with Transformers (installs torch)
# make test-hf-old  a smoke test with older versions of Transformers, each in its own virtual environment
# make test-timm  the same for Gemma 3n with pictures, whose tower in Transformers is timm's
# make test-jax   Gemma 3n once more, against Google's own package in JAX
# make test-merge merges tiny parents with mergekit itself, in a venv of its own
# make notebooks  runs the course and writes its pages, slides and figures to build/course/
# make lite       the course as pages that run in a browser, to build/lite/; WHEELS=folder with Pyodide's wheels
# make test-lite  runs each of those pages in headless Chromium (Debian's package `chromium`)
# make test-notebooks  holds the course's exercises to their solutions
# make check      ruff, ruff format --check, mypy
# make fuzz       twenty thousand mutated files of every kind that enters
# make kills      two hundred kills of every verb that writes; a full disk at every write of each
# make test-hf-random  random configs against Transformers; SEED=n TEXT=n MULTIMODAL=n
# make reference  remakes the stored runs of Transformers; reference-3n those of Gemma 3n

PYTHON ?= python3
PIP = -m pip install --quiet --disable-pip-version-check
VENV = .venv
HF = .venv-hf
OLD = 5.5.4 5.10.4 5.14.1 5.23.0
MERGE = .venv-merge
JAX = .venv-jax
# one thread each: where workers fill the cores, more would fight over them; PyTorch's wait for each other at tiny sizes
FULL = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test test-hf test-hf-old test-timm test-jax test-merge notebooks lite test-lite test-notebooks check fuzz kills test-hf-random reference reference-3n clean

demo: $(VENV)/ready
	$(VENV)/bin/numgemma demo

# what Python compiles is kept, whatever the machine says: the tests start some three hundred processes
unexport PYTHONDONTWRITEBYTECODE

test: $(VENV)/ready
	$(FULL) $(VENV)/bin/python -m pytest -q -n auto -m "not hf and not timm and not jax and not merge and not notebooks and not lite"

test-hf: $(HF)/ready
	$(FULL) $(HF)/bin/python -m pytest -q -n auto -m hf

test-hf-old: $(OLD:%=$(HF)-%/ready)
	for version in $(OLD); do $(HF)-$$version/bin/python -m pytest -q -rA -m hf tests/test_hf_old.py || exit 1; done

test-timm: $(HF)/timm
	PYTHONPATH=$(HF)/timm $(FULL) $(HF)/bin/python -m pytest -q -m timm

test-jax: $(JAX)/ready
	$(JAX)/bin/python -m pytest -q -m jax

test-merge: $(MERGE)/ready
	$(MERGE)/bin/python -m pytest -q -m merge

test-hf-random: $(HF)/ready
	$(HF)/bin/python tests/random_configs.py $(or $(TEXT),1000) $(or $(MULTIMODAL),300) $(SEED)

fuzz: $(VENV)/ready
	$(VENV)/bin/python tests/hostile_input/harness.py 20000

# capture is Transformers', which the first environment has not
kills: $(VENV)/ready $(HF)/ready
	$(VENV)/bin/python tests/hostile_input/kills.py 200
	$(HF)/bin/python tests/hostile_input/kills.py 10 capture
	$(VENV)/bin/python tests/hostile_input/full_disk.py
	$(HF)/bin/python tests/hostile_input/full_disk.py capture

test-notebooks: $(VENV)/ready
	$(FULL) $(VENV)/bin/python -m pytest -q -n auto -m notebooks

notebooks: $(VENV)/notebooks
	$(FULL) $(VENV)/bin/python notebooks/course.py build/course

lite: $(VENV)/notebooks
	$(VENV)/bin/python notebooks/lite.py build/lite $(WHEELS)

test-lite: lite
	$(VENV)/bin/python -m pytest -q -m lite

check: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy numgemma

reference: $(HF)/ready
	$(HF)/bin/python reference_outputs/make_reference.py

reference-3n: $(HF)/timm
	PYTHONPATH=$(HF)/timm $(HF)/bin/python reference_outputs/make_reference_3n.py

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
	$(HF)/bin/python $(PIP) -e '.[test,hf]' transformers==5.24.0
	touch $@

$(MERGE)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(MERGE)
	$(MERGE)/bin/python $(PIP) torch==2.13.0
	$(MERGE)/bin/python $(PIP) -e '.[test,mergekit]'
	touch $@

$(HF)-%/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) torch==2.13.0
	$(@D)/bin/python $(PIP) -e . pytest hypothesis transformers==$*
	touch $@

# in a folder of their own, and without what they ask for: beside a CPU build of torch, torchvision cannot be imported
# as it is (tests/timm_here.py), and Transformers tries to wherever it is found
$(HF)/timm: $(HF)/ready
	$(HF)/bin/python $(PIP) --no-deps --upgrade --target $@ timm==1.0.31 torchvision==0.28.0
	touch $@

# without what `gemma` asks for: its training library brings TensorFlow, and pip does not come to an end with all of it
$(JAX)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(JAX)
	$(JAX)/bin/python $(PIP) -e '.[test,jax]'
	$(JAX)/bin/python $(PIP) --no-deps gemma==3.3.0
	touch $@

clean:
	rm -rf $(VENV) $(HF) $(JAX) $(MERGE) build demo
