# Every target creates .venv and installs into it on first use. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Two processes share small machines: one thread each is faster than fighting for cores.
export OMP_NUM_THREADS ?= 1
# Ranks that test-faults kills at random moments, after the tests.
SOAK_KILLS ?= 10

.PHONY: help demo bench test test-quick test-faults test-cluster lint install clean

help:
	@echo "make demo        generate data, train all three stages, evaluate, predict   (10 minutes on 2 cores)"
	@echo "make bench       measure decoding, loader, training step, prediction, checkpoints   (10 minutes on 2 cores)"
	@echo "make test        all tests but the long ones with real faults               (30 minutes on 2 cores)"
	@echo "make test-quick  tests that neither train nor start processes               (2 minutes)"
	@echo "make test-faults every fault at every moment, in real runs of two processes (30 minutes on 2 cores)"
	@echo "make test-cluster real jobs on a SLURM of two nodes that it starts; needs root  (20 minutes on 2 cores)"
	@echo "make lint        ruff and mypy"
	@echo "make install     create $(VENV) and install avff with the versions of constraints.txt"

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "avff needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version); run: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "Installing avff into $(VENV) (about 6 GB, a few minutes on first use) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip wheel -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,launch,dev]'
	$(BIN)/python -m pip install --quiet --no-deps facenet-pytorch==2.6.0
	@touch $@

demo: $(INSTALLED)
	$(BIN)/avff demo

# docs/performance.md names these; AVFF_REAL_CLIPS, a folder of video, takes the place of generated media.
bench: $(INSTALLED)
	$(BIN)/python tools/bench.py media --rounds 3 $(if $(AVFF_REAL_CLIPS),--input $(AVFF_REAL_CLIPS))
	$(BIN)/python tools/bench.py loader $(if $(AVFF_REAL_CLIPS),--input $(AVFF_REAL_CLIPS))
	$(BIN)/python tools/bench.py step --size base --against eager --rounds 1
	$(BIN)/python tools/bench.py predict --seconds 10
	$(BIN)/python tools/bench.py checkpoint
	$(BIN)/python tools/bench.py seek

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not faults and not cluster"

test-quick: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow"

test-faults: $(INSTALLED)
	$(BIN)/python -m pytest -m faults
	$(BIN)/python tests/faults/soak.py --kills $(SOAK_KILLS)

test-cluster: $(INSTALLED)
	AVFF_REQUIRE_CLUSTER=1 $(BIN)/python -m pytest -m cluster

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
