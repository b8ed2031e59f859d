PYTHON ?= python3
# An unpinned torch takes gigabytes of CUDA; set TORCH to the build you train with.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: verify test lint bench defects nightly clean

verify: .venv/installed
	$(BIN)/verified-losses certify

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python benchmarks/losses.py --json build/benchmarks/losses.json
	$(BIN)/python benchmarks/worlds.py --json build/benchmarks/worlds.json
	$(BIN)/python benchmarks/simulated_world.py --loss verified_losses

# Every planted defect and every right variant, certified as a stranger's loss, with three seeds.
defects: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.defects.report

# Hours, not minutes: many more cases, larger worlds, another seed each night.
nightly: .venv/installed
	$(BIN)/verified-losses certify --max-examples 2000 --world 1,sim:2-64,proc:2-4 \
		--seed $$(date +%Y%m%d) --json build/nightly.json
	HYPOTHESIS_PROFILE=nightly OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/test_simulated_programs.py

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[lint]'
	# the peer that tests and benchmarks compare with: its loss module alone, without what it trains with
	$(BIN)/python -m pip install --quiet --no-deps open_clip_torch==3.3.0
	touch $@
