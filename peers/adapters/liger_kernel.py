"""Liger-Kernel: its cross-entropy, whose Triton kernel is interpreted on the CPU."""

import os

from peers.load import installed

installed("liger_kernel")
os.environ.setdefault("TRITON_INTERPRET", "1")

from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss  # noqa: E402

__all__ = ["LigerCrossEntropyLoss"]
