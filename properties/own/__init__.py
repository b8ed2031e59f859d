"""Contracts of one's own: a formula in NumPy, the kinds of its inputs, and all that follows from both."""
