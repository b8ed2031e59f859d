"""sentence-transformers: ranking among the documents of the batch, on embeddings."""

from typing import Any

import torch

from peers.load import installed

installed("sentence_transformers")

from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss  # noqa: E402
from sentence_transformers.util import all_gather, all_gather_with_grad, dot_score  # noqa: E402


class InfoNCE:
    """From queries to documents, by cosine."""

    def __init__(self, temperature: float, world_size: int) -> None:
        self.loss = MultipleNegativesRankingLoss(
            torch.nn.Identity(), 1 / temperature, gather_across_devices=world_size > 1
        )

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.loss.compute_loss_from_embeddings([first, second], None)


class Symmetric:
    """Both ways, by dot product: the loss of CLIP."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size

    def __call__(
        self, image_features: Any, text_features: Any, logit_scale: Any, output_dict: bool = False
    ) -> Any:
        loss = MultipleNegativesRankingLoss(
            torch.nn.Identity(),
            logit_scale,
            dot_score,
            self.world_size > 1,
            ("query_to_doc", "doc_to_query"),
            "per_direction",
        )
        term = loss.compute_loss_from_embeddings([image_features, text_features], None)
        return {"contrastive_loss": term} if output_dict else term


def gather(image_features: Any, text_features: Any, gather_with_grad: bool) -> Any:
    one = all_gather_with_grad if gather_with_grad else all_gather
    return one(image_features), one(text_features)
