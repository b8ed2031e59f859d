PYTHON ?= python3
# An unpinned torch takes gigabytes of CUDA; set TORCH to the build you train with.
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Where the tensors are: cpu, cuda, cuda:1 or all.
DEVICE ?= cpu
# Numbers of pairs.
SIZES ?= 256,1024,4096,12288,24576

.PHONY: verify test gpu gpu-packages horovod-wheel horovod horovod-test horovod-certify lint bench bench-sizes defects mutants mutants-quick soak
.PHONY: fuzz-test faults inductor nightly cluster peers trainers strangers certificate packages matrix docs pages
.PHONY: picture clean

verify: .venv/installed
	$(BIN)/verified-losses certify --device $(DEVICE)

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --durations=20

# On a machine with a GPU, with the torch that $(PYTHON) has: under eight minutes, written to build/gpu/. What else it
# needs is installed into build/gpu/packages; `make gpu-packages` does that alone, for a machine without a network.
gpu:
	$(PYTHON) tools/gpu.py

GPU_PYTHON ?= 3.12
gpu-packages:
	$(PYTHON) tools/gpu.py --packages $(GPU_PYTHON)

# Ranks of Horovod mostly wait for one another: with --jobs=2 both take little longer than one.
horovod: horovod-test horovod-certify

horovod-test: .venv/horovod
	HOROVOD=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/test_horovod.py

horovod-certify: .venv/horovod
	$(BIN)/verified-losses certify --world hvd:2,hvd:3 --max-examples 5 --json build/horovod.json

# Builds Horovod at the first call, for two minutes; tools/horovod_wheel.py says where the wheel is kept.
horovod-wheel: .venv/installed
	$(BIN)/python tools/horovod_wheel.py

.venv/horovod: .venv/installed
	wheel=$$($(BIN)/python tools/horovod_wheel.py) && $(BIN)/python -m pip install --quiet "$$wheel"
	touch $@

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python benchmarks/losses.py --json build/benchmarks/losses.json
	$(BIN)/python benchmarks/worlds.py --json build/benchmarks/worlds.json
	$(BIN)/python benchmarks/simulated_world.py --loss verified_losses
	$(BIN)/python benchmarks/fuzz.py --json build/benchmarks/fuzz.json

# ClipLoss and SigLipLoss by the number of pairs: one thread, then two, which need an idle machine; about an hour.
bench-sizes: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/losses.py --sizes $(SIZES) --json build/benchmarks/sizes-1.json \
		--plot build/benchmarks/sizes-1.svg
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/losses.py --sizes $(SIZES) --json build/benchmarks/sizes-2.json \
		--plot build/benchmarks/sizes-2.svg --threads 2

# Every planted defect and every right variant, certified as a stranger's loss, with three seeds; then training steps.
defects: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.defects.report
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.defects.steps.report

# Certifies training steps of released trainers: see peers/trainers/; needs the network once.
trainers: .venv/installed build/trainers/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m peers.trainers.certify

build/trainers/installed: peers/trainers/requirements.txt
	rm -rf build/trainers
	# without dependencies: they would bring another torch
	$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: --target build/trainers -r $<
	touch $@

# Changes one thing at a time in losses and oracles, and lists what no test notices: hours, or MAX_TIME=90m of them at a time.
# tests/mutants.json keeps what is known; ONLY='verified_losses.clip.*' tries what is known again.
mutants: .venv/mutants
	$(BIN)/python -m tests.mutants $(if $(ONLY),--only $(ONLY)) $(if $(MAX_TIME),--max-time $(MAX_TIME))

# The same for the functions that have changed since a commit alone: minutes.
SINCE ?= HEAD~1
mutants-quick: .venv/mutants
	$(BIN)/python -m tests.mutants --since $(SINCE)

# Eighty losses as strangers write them, half of them defective, in the forms that they chose: minutes.
strangers: .venv/installed
	STRANGERS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_strangers.py

# What is right, certified with one seed after another: nothing may be accused.
MINUTES ?= 30
soak: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.defects.soak --minutes $(MINUTES)

# Runs the fuzz command itself, with planted defects, and kills it in several ways: minutes.
fuzz-test: .venv/installed
	FUZZ_TESTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_fuzz.py

# What takes several machines, here as several processes of this one: workflow, Slurm, Redis, torchrun between
# network namespaces. Needs Debian's slurmctld slurmd slurm-client munge redis-server iproute2; skips what is not there.
cluster: .venv/installed
	CLUSTER=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_nightly.py tests/test_database.py tests/test_torchrun.py

# What every other rank gets when one is killed, stopped, raises, exits, or makes another call: twenty minutes.
FAULTS ?= 500
SEED ?= 0
faults: .venv/installed
	$(BIN)/verified-losses certify --faults $(FAULTS) --seed $(SEED)

# Compiles the losses by torch.compile's inductor, with fixed and dynamic shapes: ten minutes, and a C++ compiler.
inductor: .venv/installed
	$(BIN)/verified-losses certify --inductor --only "inductor*" --world 1,proc:2 --seed $(SEED)
	INDUCTOR=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_inductor.py

# Hours, not minutes: larger worlds, another seed each night; finds stay in build/nightly, and are run again first.
TIME ?= 8h
nightly: .venv/installed
	$(BIN)/verified-losses fuzz --world 1,sim:2-64,proc:2-4 --max-time $(TIME) \
		--seed $$(date +%Y%m%d) --folder build/nightly
	HYPOTHESIS_PROFILE=nightly OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/test_simulated_programs.py
	STRANGERS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/test_strangers.py
	$(MAKE) faults SEED=$$(date +%Y%m%d)
	$(MAKE) inductor SEED=$$(date +%Y%m%d)

# Certifies released losses of other packages, and writes peers/FINDINGS.md; needs the network once.
peers: .venv/installed build/peers/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m peers.certify

build/peers/installed: peers/requirements.txt
	rm -rf build/peers
	# without dependencies: they would bring another torch
	$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: --target build/peers -r $<
	touch $@

# Makes verified_losses/certificate.json of the records in build/: see tools/certificate.py. KEY signs it.
certificate: .venv/installed
	$(BIN)/python tools/certificate.py $(if $(KEY),--key $(KEY))

# Builds wheel and sdist, and installs each into empty environments: some minutes, and the network.
packages: .venv/packages
	PACKAGES=1 TORCH='$(TORCH)' $(BIN)/python -m pytest tests/test_packages.py tests/test_action.py

# Every Python that is here with every torch: see noxfile.py, also for where builds of torch come from.
matrix: .venv/packages
	$(BIN)/python -m nox

# The site, into build/docs/; a link or a reference that leads nowhere fails.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# Draws the finding of README.md and of the documentation.
picture: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python tools/picture.py

# Looks at the site in a headless Chromium: Debian's chromium, say.
pages: docs
	$(BIN)/python tools/pages.py

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

.venv/packages: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[build]'
	touch $@

.venv/mutants: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[mutants]'
	touch $@

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	@echo 'installing $(TORCH) into .venv, about a minute'
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	@echo 'installing the project, and what tests it, into .venv, about half a minute'
	$(BIN)/python -m pip install --quiet --editable '.[lint]'
	# the peer that tests and benchmarks compare with: its loss module alone, without what it trains with
	$(BIN)/python -m pip install --quiet --no-deps open_clip_torch==3.3.0
	touch $@
