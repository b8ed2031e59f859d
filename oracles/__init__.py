"""The losses in straightforward NumPy: forward only, float64, one file each.

Inputs may be complex, for `complex_step`. Where several ranks share a batch, an oracle takes every
rank's inputs and returns every rank's loss.
"""
