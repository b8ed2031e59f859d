"""CoCa-pytorch: the gather below its contrastive term."""

from typing import Any

import peers.load  # noqa: F401
from coca_pytorch.coca_pytorch import all_gather


def gather(image_features: Any, text_features: Any) -> Any:
    return all_gather(image_features), all_gather(text_features)
