"""Contrastive image-text losses whose distributed forms equal their single-process forms.

Drop-in for `open_clip.loss`: the same names, arguments and defaults. Keyword arguments are new: `group` (a
process group; ranks are then ranks within it), `implementation`, `tile_size` and `agree` of the losses over
pairs, and `convention` ("exact", or "open_clip" for upstream's gradients) of these but `SigLipLoss`;
`gather_features` has `convention` and `group` alone. The neighbour exchanges have no new ones.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accumulation import accumulate
    from .captions import fused_linear_cross_entropy
    from .certified import certificate
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
    from .genlip import GenLipLoss
    from .siglip import SigLipLoss

__version__ = "0.1.0"

__all__ = [
    "ClipLoss",
    "CoCaLoss",
    "DistillClipLoss",
    "GenLipLoss",
    "SigLipLoss",
    "accumulate",
    "certificate",
    "fused_linear_cross_entropy",
    "gather_features",
    "neighbour_exchange",
    "neighbour_exchange_bidir",
    "neighbour_exchange_bidir_with_grad",
    "neighbour_exchange_with_grad",
]

_FILES = {
    "ClipLoss": "clip",
    "CoCaLoss": "coca",
    "DistillClipLoss": "distill",
    "GenLipLoss": "genlip",
    "SigLipLoss": "siglip",
    "accumulate": "accumulation",
    "certificate": "certified",
    "fused_linear_cross_entropy": "captions",
    "gather_features": "gather",
    "neighbour_exchange": "exchange",
    "neighbour_exchange_bidir": "exchange",
    "neighbour_exchange_bidir_with_grad": "exchange",
    "neighbour_exchange_with_grad": "exchange",
}


def __getattr__(name: str) -> Any:
    # Imported at first use: the oracles need NumPy alone, and the command answers before torch is imported.
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
