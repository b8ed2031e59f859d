"""Input: the command, code, pytest."""

HOLDS, FALSIFIED, USAGE, NOT_RUN, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
"""Exit statuses."""
