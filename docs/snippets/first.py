import torch
import torch.distributed as dist
from torch.nn import functional as F


def gathered(x):
    if not dist.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    parts[dist.get_rank()] = x
    return torch.cat(parts)


def clip_loss(image_features, text_features, logit_scale):
    images, texts = gathered(image_features), gathered(text_features)
    logits = logit_scale * image_features @ texts.T
    labels = torch.arange(len(logits))
    logits_of_texts = logit_scale * text_features @ images.T
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits_of_texts, labels)) / 2
