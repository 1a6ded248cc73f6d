# Two commands do everything on a machine that has Python 3.11 or newer and make:
#   make demo    train, export, prove, serve and call the language identifier
#   make demo-activity, demo-algorithms, demo-digits, demo-pipeline, demo-pronounce, demo-read-aloud, demo-segmentation
#                the same for other tasks; demo-pipeline has no server
#   make test    all checks and tests (the long grids only in `make test-all`)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEXT ?=

.PHONY: demo test test-all check links bench-cells protos clean
.PHONY: demo-activity demo-algorithms demo-digits demo-pipeline demo-pronounce demo-read-aloud demo-segmentation

$(READY): requirements.lock pyproject.toml examples/g2p/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq -r requirements.lock
	$(BIN)/python -m pip install -qq --no-deps -r examples/g2p/requirements.txt
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	touch $(READY)

# Static checkers cannot follow setuptools' package-dir mapping; a tree of links shows them the package as installed.
links:
	mkdir -p .links/cellport
	ln -sfn ../../cells .links/cellport/cells
	ln -sfn ../../export .links/cellport/export
	ln -sfn ../../serve .links/cellport/serve
	ln -sfn ../../protos .links/cellport/protos
	for f in src/cellport/*; do case $$f in *__pycache__) ;; *) ln -sfn ../../$$f .links/cellport/$$(basename $$f) ;; esac; done

check: $(READY) links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p cellport
	cd .links && PYTHONPATH=. ../$(BIN)/lint-imports --config ../pyproject.toml --no-cache

test: $(READY) check
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: $(READY) check
	$(BIN)/python -m pytest -n 2 --dist loadfile

demo: $(READY)
	$(BIN)/python -m examples.language_id.demo $(if $(TEXT),--text "$(TEXT)")

demo-activity demo-algorithms demo-digits demo-pipeline demo-pronounce demo-read-aloud demo-segmentation: $(READY)
	$(BIN)/python -m examples.$(subst -,_,$(patsubst demo-%,%,$@)).demo

bench-cells: $(READY)
	$(BIN)/python benchmarks/cells.py

protos: $(READY)
	$(BIN)/python protos/generate.py

clean:
	rm -rf $(VENV) .links build dist .mypy_cache .ruff_cache .pytest_cache
