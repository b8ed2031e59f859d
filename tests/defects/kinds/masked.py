"""InfoNCE without false negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .ranks import gather, own


def masked(query: Tensor, key: Tensor, ids: Tensor, temperature: float) -> Tensor:
    places = torch.arange(len(query), device=query.device)
    false = (ids[:, None] == ids) & (places[:, None] != places)
    logits = (query @ key.T / temperature).masked_fill(false, -torch.inf)
    return F.cross_entropy(logits, places)


def by_weights(query: Tensor, key: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Exponentials of false negatives are multiplied with 0."""
    logits = query @ key.T / temperature
    itself = torch.eye(len(query), dtype=torch.bool, device=query.device)
    false = (ids[:, None] == ids) & ~itself
    logits = logits - logits.detach().masked_fill(false, -torch.inf).amax(1, keepdim=True)
    total = (logits.clamp(max=0).exp() * ~false).sum(1)
    return (total.log() - logits.diagonal()).mean()


def gathered(query: Tensor, key: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Own queries look among the keys of all ranks."""
    keys, every_id = gather(key), gather(ids)
    places = torch.arange(len(keys), device=query.device)
    labels = places[own(len(keys), len(query))]
    false = (ids[:, None] == every_id) & (labels[:, None] != places)
    return F.cross_entropy((query @ keys.T / temperature).masked_fill(false, -torch.inf), labels)


def keys_beyond_a_chunk_left_out(query: Tensor, key: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Keys come in chunks of 1,024, and a last one that is not whole is left out."""
    places = torch.arange(len(query))
    whole = len(key) // 1024 * 1024 or len(key)
    false = ((ids[:, None] == ids) | (places >= whole)) & (places[:, None] != places)
    return F.cross_entropy((query @ key.T / temperature).masked_fill(false, -torch.inf), places)


def gradient_of_false_negatives(query: Tensor, key: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """The value is right; the backward pushes false negatives away."""
    places = torch.arange(len(query))
    false = (ids[:, None] == ids) & (places[:, None] != places)
    pushed = (query @ key.T / temperature * false).sum() / len(query)
    return masked(query, key, ids, temperature) + pushed - pushed.detach()


def not_masked(query: Tensor, key: Tensor, ids: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(query @ key.T / temperature, torch.arange(len(query)))


def logit_of_zero(query: Tensor, key: Tensor, ids: Tensor, temperature: float) -> Tensor:
    places = torch.arange(len(query))
    false = (ids[:, None] == ids) & (places[:, None] != places)
    return F.cross_entropy(query @ key.T / temperature * ~false, places)


def masks_later_ones(query: Tensor, key: Tensor, ids: Tensor, temperature: float) -> Tensor:
    false = torch.triu(ids[:, None] == ids, 1)
    logits = (query @ key.T / temperature).masked_fill(false, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(query)))


def after_the_softmax(query: Tensor, key: Tensor, ids: Tensor, temperature: float) -> Tensor:
    false = (ids[:, None] == ids) & ~torch.eye(len(query), dtype=torch.bool)
    log = torch.log_softmax(query @ key.T / temperature, 1).masked_fill(false, 0)
    return -log.diagonal().mean()


def positives_too(query: Tensor, key: Tensor, ids: Tensor, temperature: float) -> Tensor:
    logits = query @ key.T / temperature
    own = logits.diagonal()
    negative = logits.masked_fill(ids[:, None] == ids, -1e4).logsumexp(1)
    return (torch.maximum(negative, own) - own).mean()


def drops_masked_rows(query: Tensor, key: Tensor, ids: Tensor, temperature: float) -> Tensor:
    first = torch.tensor([place for place, one in enumerate(ids.tolist()) if one not in ids.tolist()[:place]])
    return F.cross_entropy(query[first] @ key[first].T / temperature, torch.arange(len(first)))
