"""Contracts of one's own, and right and wrong losses that are held to them."""
