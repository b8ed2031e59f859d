"""Input: the command, code, pytest."""

HOLDS, FALSIFIED, USAGE, NOT_RUN, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses."""
