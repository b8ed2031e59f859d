"""Hypothesis profiles: "gate" draws the same cases in every run, "nightly" many and new ones."""

import os

from hypothesis import settings

for name in [*os.environ]:  # a test is of the whole, wherever the suite runs
    if name.startswith("SLURM_ARRAY_") or name == "VERIFIED_LOSSES_SHARD":
        del os.environ[name]

pytest_plugins = ["pytester"]

settings.register_profile("gate", derandomize=True, database=None, deadline=None)
settings.register_profile("nightly", max_examples=100_000, database=None, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))
