# Every target sets up .venv first (a moment when it is up to date). `make help` lists them.

EXTRA ?= cpu
BIN := .venv/bin
# Without these instructions bfloat16 products are slower than float32 ones; then fewer steps, so that it ends in time.
FLOAT32 := dtype=float32 steps=6 rollout.prompts_per_step=32 actor.optimizer.learning_rate=6.0e-5
SMOKE := $(shell grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null || echo "$(FLOAT32)")

# With it every process compiles again whatever it imports, which takes longer than the rest of its start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup lock smoke pipeline test test-slow anchors architectures mutants chaos soak remedies pictures test-gpu bench-gpu lint check format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

setup: ## make .venv from requirements.lock (EXTRA=gpu: the CUDA builds; PYTHON=...: which Python, 3.11 or 3.12)
	@.ci/setup $(EXTRA)

smoke: setup ## train a reward model and then SmolLM2-135M with PPO on this machine; results in runs/smoke (ARGS="steps=5": other settings)
	@echo "smoke: removing the results of an earlier one (runs/smoke, runs/smoke-reward)"
	@rm -rf runs/smoke runs/smoke-reward
	$(BIN)/python configs/smoke/inputs.py
	$(BIN)/tetrarch reward configs/smoke.yaml $(SMOKE) $(ARGS)
	$(BIN)/tetrarch train configs/smoke.yaml $(SMOKE) $(ARGS)

pipeline: setup ## SFT, best-of-N, DPO and PPO of SmolLM2-135M, and the report that compares them, in runs/pipeline-smoke (half an hour; ARGS as above)
	$(BIN)/python configs/smoke/inputs.py
	$(BIN)/tetrarch pipeline configs/pipeline-smoke.yaml $(filter dtype=%,$(SMOKE)) $(ARGS)

test: setup ## the tests: unit (two at a time), then integration
	$(BIN)/pytest -q -n 2 tests/unit
	$(BIN)/pytest -q tests/integration tests/anchors

test-slow: setup ## the tests that `make test` leaves out because they take long
	$(BIN)/pytest -q -m slow

anchors: setup ## tasks with known optima through the whole system, and the table of what is reached (half an hour)
	$(BIN)/pytest -q -m "" tests/anchors

architectures: setup ## train tiny models of many architectures beside transformers and vLLM; tables in roles/README.md (ARGS="Llama": some)
	$(BIN)/python -m tests.integration.architecture_table $(ARGS)

mutants: setup ## plant faults in the maths and the wiring, one by one: do the tests notice? (half an hour)
	$(BIN)/python -m tests.mutants.run

chaos: setup ## kill ranks, engines, driver and Ray at random points of a small run, resume, compare bit for bit (ARGS="--seed 2")
	$(BIN)/python configs/tiny/inputs.py
	$(BIN)/tetrarch verify-resume configs/tiny.yaml --steps 60 --kills 50 $(ARGS)

soak: setup ## 2,000 steps of a small run, unbroken and with 20 kills: does memory grow, are the bits the same? (ARGS="--seed 2")
	$(BIN)/python configs/tiny/inputs.py
	$(BIN)/python -m tests.benchmarks.soak $(ARGS)

remedies: setup ## over-optimisation with each remedy over five seeds, and the table of what each changes (three hours; what is recorded is kept)
	$(BIN)/python configs/smoke/inputs.py
	$(BIN)/python -m tests.benchmarks.remedies $(ARGS)

pictures: setup ## train what the pictures of the READMEs show, as far as it is not there yet, and draw them (a quarter of an hour)
	$(BIN)/python configs/illness/pictures.py
	$(BIN)/python -m tests.pictures

test-gpu: setup ## what needs a GPU (EXTRA=gpu): kernels, every ZeRO stage, sleeping, offloading, the PPO loop on one card
	$(BIN)/pytest -q -rA -m gpu tests/gpu

bench-gpu: setup ## what a GPU reaches (EXTRA=gpu): generation beside plain vLLM, the update beside plain PyTorch
	$(BIN)/python -m tests.benchmarks.gpu generate
	$(BIN)/python -m tests.benchmarks.gpu update

lint: setup ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy -n 2

check: lint test ## ruff, mypy and the tests: what .ci/run runs

format: setup ## let ruff fix and format the sources
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup ## seconds a PPO step, by phase, beside the arithmetic's floor (PEER=1: beside TRL's, in turns)
	$(BIN)/python -m tests.benchmarks.ppo_step $(if $(PEER),--peer) $(ARGS)

lock: ## resolve requirements.lock afresh from pyproject.toml
	@.ci/setup lock

clean: ## remove .venv, .uv and caches (runs/ stays)
	rm -rf .venv .uv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find orchestrator roles cluster configs tests -name __pycache__ -type d -prune -exec rm -rf {} +
