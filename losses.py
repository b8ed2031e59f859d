import torch
import torch.distributed as dist
from torch.nn import functional as F

from verified_losses import gather_features


def clip_loss(image_features, text_features, logit_scale):
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    images, texts = image_features, text_features
    if world_size > 1:
        options = {"gather_with_grad": True, "rank": rank, "world_size": world_size}
        images, texts = gather_features(image_features, text_features, **options)
    logits = logit_scale * image_features @ texts.T
    labels = rank * len(image_features) + torch.arange(len(logits))
    logits_of_texts = logit_scale * text_features @ images.T
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits_of_texts, labels)) / 2
