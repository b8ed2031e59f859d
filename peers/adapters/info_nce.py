"""info-nce-pytorch: queries among the keys of the batch."""

import peers.load  # noqa: F401
from info_nce import InfoNCE

__all__ = ["InfoNCE"]
