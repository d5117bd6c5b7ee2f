# Two commands are the whole set-up on a fresh machine: `make demo` and `make test`.
# Nothing but Python 3.10+ and make is needed; both make .venv once and reuse it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: help demo test test-slow check format demo-seeds proof-distil proof-quantise proof-bench proof-runtime proof-jetson check-sshd check-aarch64 device-wheel clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

demo: $(RUN_STAMP) ## the whole way on real digits: teacher, student, INT8, bundle, bench, report
	$(BIN)/edgebert demo -o runs/demo

test: $(DEV_STAMP) ## the tests
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(DEV_STAMP) ## the long sweeps as well: threads, kills at each stage, the whole recipe
	$(BIN)/python -m pytest

check: $(DEV_STAMP) ## format, lint and types, as CI runs them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright

format: $(DEV_STAMP) ## write the format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo-seeds: $(RUN_STAMP) ## the demo over five seeds, with the medians the README states
	$(BIN)/python benchmarks/demo_seeds.py

proof-distil: $(DEV_STAMP) ## distillation held against its list, docs/proofs/distil.md (an hour; DATA=FOLDER)
	$(BIN)/python benchmarks/proof_distil.py $(or $(DATA),../shared/data)

proof-quantise: $(DEV_STAMP) ## quantisation held against its list, docs/proofs/quantise.md (two hours; DATA=FOLDER)
	$(BIN)/python benchmarks/proof_quantise.py $(or $(DATA),../shared/data)

proof-bench: $(DEV_STAMP) ## the harness held against its list, docs/proofs/bench.md (two hours, a quiet computer; DATA=FOLDER)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[loadgen]"
	$(BIN)/python benchmarks/proof_bench.py $(or $(DATA),../shared/data)

proof-runtime: $(DEV_STAMP) ## the runtime and the bundle held against their list, docs/proofs/runtime.md (three hours; strace, root)
	-$(BIN)/python -m pip install --quiet atheris
	$(BIN)/python benchmarks/proof_runtime.py

proof-jetson: $(DEV_STAMP) ## the Jetson part, held without a Jetson against its list, docs/proofs/jetson.md (two and a half hours; gcc, openssh-server)
	$(BIN)/python benchmarks/proof_jetson.py

check-sshd: $(DEV_STAMP) ## the commands with --host over OpenSSH's sshd (five minutes; Debian or Ubuntu: openssh-server)
	$(BIN)/python benchmarks/remote_sshd.py

check-aarch64: $(DEV_STAMP) ## the device wheel on aarch64, emulated by Debian's qemu-user (five minutes; Debian or Ubuntu)
	$(BIN)/python benchmarks/aarch64_check.py

device-wheel: $(RUN_STAMP) ## the part that runs on a device, as one file in dist/
	$(BIN)/edgebert device-wheel --force -o dist

clean: ## remove .venv and what the demo made
	rm -rf $(VENV) runs

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and f"Python {v.major}.{v.minor} is too old: 3.10 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[openvino,onnxruntime,train,export,recipe,report]"
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@
