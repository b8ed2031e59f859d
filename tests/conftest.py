"""Hypothesis profiles: "gate" draws the same cases in every run, "nightly" many and new ones."""

import os

from hypothesis import settings

pytest_plugins = ["pytester"]

settings.register_profile("gate", derandomize=True, database=None, deadline=None)
settings.register_profile("nightly", max_examples=100_000, database=None, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))
