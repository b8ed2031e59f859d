"""Checks, each run over drawn cases to a verdict."""
