# Two commands on a fresh machine: `make demo` and `make test`. Needs Python >= 3.11, make and the package index.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
PARITY ?= .venv-parity
RUNS   ?= runs

.PHONY: setup demo parity readers test test-slow test-kernels test-parity check clean

setup: $(VENV)/.gristmill

$(VENV)/.gristmill: pyproject.toml constraints.txt
	@test ! -e tokenize/__init__.py || { echo "tokenize/__init__.py shadows the standard library: remove it"; exit 1; }
	@test -L src/gristmill/core || { echo "src/gristmill/* must be symlinks: clone with git config core.symlinks=true"; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit("gristmill needs Python 3.11 to 3.13, this is " + sys.version) if not (3, 11) <= sys.version_info[:2] <= (3, 13) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m gristmill.curate.language --install
	@touch $@

# The peer that `tests/parity` and the benchmarks compare with, in an environment of its own (550 MB, 2 minutes).
parity: $(PARITY)/.gristmill

$(PARITY)/.gristmill: tests/parity/requirements.txt tests/parity/peer_setup.py | setup
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install -q --disable-pip-version-check -r tests/parity/requirements.txt
	$(PARITY)/bin/python tests/parity/peer_setup.py "$$($(BIN)/python -m gristmill.curate.language)" > $@.tmp
	@mv $@.tmp $@ && cat $@

# megatron-core beside the peer (17 MB, nothing that it depends on): `tests/parity` reads exports with it.
readers: $(PARITY)/readers/.gristmill

$(PARITY)/readers/.gristmill: tests/parity/readers.txt | setup
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(PARITY)/readers -r tests/parity/readers.txt
	@touch $@

demo: setup
	$(BIN)/gristmill sample $(RUNS)/sample
	@test -e $(RUNS)/quality.bin || $(BIN)/gristmill quality train $(RUNS)/sample/quality-labels.jsonl -o $(RUNS)/quality.bin --epochs 25 --lr 0.5
	$(BIN)/gristmill run demo --root $(RUNS)/demo --cluster local:2 \
	  --set input.paths='["$(RUNS)/sample/*.warc.gz"]' --set curate.quality='{model: $(RUNS)/quality.bin, min_score: 0.2}'
	$(BIN)/gristmill report --root $(RUNS)/demo

test: setup
	$(BIN)/python -m pytest -q

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

test-kernels: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/kernels
	$(BIN)/python -m gristmill.trainer.kernels.aot --target sm90 --check

test-parity: parity readers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/parity

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(RUNS) build dist .pytest_cache .mypy_cache .ruff_cache
