"""CoCa-pytorch: the gather below its contrastive term."""

from typing import Any

from peers.load import installed

installed("coca_pytorch")

from coca_pytorch.coca_pytorch import all_gather  # noqa: E402


def gather(image_features: Any, text_features: Any) -> Any:
    return all_gather(image_features), all_gather(text_features)
