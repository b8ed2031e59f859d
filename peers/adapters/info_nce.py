"""info-nce-pytorch: queries among the keys of the batch."""

from peers.load import installed

installed("info_nce")

from info_nce import InfoNCE  # noqa: E402

__all__ = ["InfoNCE"]
