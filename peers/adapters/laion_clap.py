"""laion-clap: CLIP's loss between audio and text."""

from typing import Any

from peers.load import bare

bare("laion_clap", "laion_clap.clap_module")

from laion_clap.clap_module import loss  # noqa: E402


class ClipLoss(loss.ClipLoss):
    """Audio features in the place of image features."""

    def forward(
        self, image_features: Any, text_features: Any, logit_scale: Any, output_dict: bool = False
    ) -> Any:
        term = super().forward(image_features, text_features, logit_scale)
        return {"contrastive_loss": term} if output_dict else term


def gather_features(image_features: Any, text_features: Any, **flags: Any) -> Any:
    return loss.gather_features(image_features, text_features, **flags)
