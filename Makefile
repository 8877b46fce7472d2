# Two commands on a fresh machine: `make train` and `make test`. Each makes .venv when it is missing or out of date.
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin

.PHONY: train test test-all test-browser fuzz quality lint bench bench-peers notebook docs serve-demo lock setup clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt constraints-torchrec.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "dlen needs Python 3.11 or newer: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-torchrec.txt
	@touch $@

train: setup
	$(BIN)/python train.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd bench && ../$(BIN)/mypy --config-file ../pyproject.toml *.py

# Lint, types and every test of less than a few seconds, in JOBS processes: about 5 minutes.
test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not browser"

# The rest: whole commands, several processes, kills and full disks.
test-all: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "slow and not browser"

# The report in a real browser: Debian's package chromium, or CHROMIUM=/path.
test-browser: setup
	$(BIN)/python -m pytest -m browser

# A hundred thousand damaged files and wrong settings, in about 15 minutes; CI takes four thousand.
fuzz: setup
	FUZZ=27 $(BIN)/python -m pytest -q tests/data/sources/test_fuzz.py tests/commands/test_fuzz_config.py

# Are the shipped experiments better, worse or even to what bench/quality.yaml remembers? About 15 minutes.
quality: setup
	$(BIN)/python bench/quality.py

# The notebooks of examples/ from their scripts, with the outputs of a run.
notebook: setup
	cd examples && ../$(BIN)/jupytext --quiet --to ipynb --set-kernel python3 quickstart.py own_parts.py
	cd examples && ../$(BIN)/jupyter-execute --inplace quickstart.ipynb own_parts.ipynb
	rm -rf examples/data

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Site: site/index.html; $(BIN)/mkdocs serve shows it while you write"

# A small DLEN behind the example server, at http://127.0.0.1:8000/docs.
serve-demo: setup
	test -f runs/serve-demo/metrics.json || $(BIN)/python train.py run_dir=runs/serve-demo data.rows=100000 trainer.max_epochs=1
	$(BIN)/python export.py run=runs/serve-demo
	EXPORT=runs/serve-demo/export $(BIN)/uvicorn --app-dir examples serve:app

BENCHES = train load shards evaluate prepare rates sequences id_dropout memory balancing scaling sweep serve predict \
	processes operators busy sharding start kill

bench: setup
	for name in $(BENCHES); do $(BIN)/python bench/$$name.py || exit 1; done

# The libraries that bench/train.py measures beside ours, in an environment of their own.
bench-peers: bench/peers/.venv/.ready

bench/peers/.venv/.ready: bench/peers/requirements.txt constraints.txt
	$(PYTHON) -m venv bench/peers/.venv
	bench/peers/.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	bench/peers/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r bench/peers/requirements.txt
	@touch $@

# The same versions as constraints.txt with hashes, for this platform.
lock: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --report .lock.json -c constraints.txt torch -e '.[dev]'
	$(BIN)/python .ci/lock.py < .lock.json > requirements-linux-py311.lock
	rm .lock.json

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
