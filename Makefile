# `make demo` and `make test` set themselves up in .venv, once; no ROS installation is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
IMAGES ?=
OUT ?= out
KERNELS := $(wildcard sparserefine_ros/kernels/*.h sparserefine_ros/kernels/*.cpp)

# A sourced ROS installation would shadow the wheels in the virtual environment.
unexport PYTHONPATH AMENT_PREFIX_PATH LD_LIBRARY_PATH

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/sparserefine demo --out $(OUT) $(if $(IMAGES),"$(IMAGES)")

test: lint
	$(BIN)/python -m pytest test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): setup.py requirements.txt Makefile $(KERNELS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "expected Python 3.10 or newer, got $$($(PYTHON) --version); set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "expected Python's venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --editable '.[ros,test]'
	@touch $@

clean:
	rm -rf $(VENV) build install log out *.egg-info
