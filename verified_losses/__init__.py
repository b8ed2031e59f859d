"""Contrastive image-text losses whose distributed forms equal their single-process forms.

Drop-in for `open_clip.loss`: the same names, arguments and defaults. Two keyword arguments are new
wherever ranks talk: `convention` ("exact", or "open_clip" for upstream's gradients) and `group` (a
process group; ranks are then ranks within it).
"""

from .clip import ClipLoss
from .coca import CoCaLoss
from .distill import DistillClipLoss
from .exchange import (
    neighbour_exchange,
    neighbour_exchange_bidir,
    neighbour_exchange_bidir_with_grad,
    neighbour_exchange_with_grad,
)
from .gather import gather_features
from .siglip import SigLipLoss

__all__ = [
    "ClipLoss",
    "CoCaLoss",
    "DistillClipLoss",
    "SigLipLoss",
    "gather_features",
    "neighbour_exchange",
    "neighbour_exchange_bidir",
    "neighbour_exchange_bidir_with_grad",
    "neighbour_exchange_with_grad",
]
