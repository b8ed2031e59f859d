"""inf-cl: CLIP's loss whose blocks of keys travel round a ring."""

import os
from typing import Any

from peers.load import installed

installed("inf_cl")
os.environ.setdefault("TRITON_INTERPRET", "1")

from inf_cl import cal_ring_loss  # noqa: E402


class RingLoss:
    """Both ways, with one head that is as wide as the features."""

    def __call__(
        self, image_features: Any, text_features: Any, logit_scale: Any, output_dict: bool = False
    ) -> Any:
        width = image_features.shape[1]
        pairs = (image_features, text_features), (text_features, image_features)
        term = sum(cal_ring_loss(x, y, scale=logit_scale, head_dim=width) for x, y in pairs) / 2
        return {"contrastive_loss": term} if output_dict else term
