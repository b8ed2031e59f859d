"""The normalised temperature-scaled cross-entropy loss of SimCLR.

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, equation 1 and
algorithm 1, https://arxiv.org/abs/2002.05709: of 2N views, each looks for its partner among the 2N - 1
others; the loss is the mean over all 2N.
"""

import numpy as np

from .clip import add_up, cross_entropy, row_weight
from .complex_step import Array
from .gather import gather_features
from .infonce import compared, normalize


def places(rows: list[int], rank: int, local_loss: bool) -> tuple[Array, Array]:
    """Return where the anchors of `rank` stand in the concatenation of both views, and their partners."""
    total = sum(rows)
    start, count = (sum(rows[:rank]), rows[rank]) if local_loss else (0, total)
    first = np.arange(start, start + count)
    return np.concatenate([first, total + first]), np.concatenate([total + first, first])


def ntxent_loss(
    first: list[Array],
    second: list[Array],
    temperature: float | list[Array],
    rank: int,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    convention: str = "exact",
    cosine: bool = True,
) -> complex:
    """Return the loss of `rank`, given both views of every rank, [n_r, d].

    Args:
        first: the first views of each rank.
        second: the second views of each rank.
        temperature: what similarities are divided by; or of each rank its inverse, which is learned.
        rank: whose loss.
        local_loss: as for CLIP, and so are the flags that follow.
        gather_with_grad: whether gathered rows carry gradient.
        convention: "exact" or "open_clip".
        cosine: the similarity is the cosine; else it is the dot product.
    """
    rows = [len(features) for features in first]
    flags = (local_loss, gather_with_grad, convention)
    views = np.concatenate([gather_features(view, rank, *flags) for view in (first, second)])
    own, partner = places(rows, rank, local_loss)
    anchors = np.concatenate([first[rank], second[rank]]) if local_loss else views
    if cosine:
        anchors, views = normalize(anchors), normalize(views)
    logits = compared(anchors, views, temperature, rank)
    # a view is not looked for by itself: its column is left out, and those behind it move up
    others = np.arange(len(views)) != own[:, None]
    kept = logits[others].reshape(len(own), len(views) - 1)
    labels = partner - (partner > own)
    loss: complex = add_up([cross_entropy(kept, labels)], rows) * row_weight(rows, local_loss) / 2
    return loss
