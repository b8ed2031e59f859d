"""The kinds of losses beyond open_clip's, as contracts of formulas; `oracles` says where each is from."""

from typing import Any

import numpy as np

from verified_losses.oracles.decoupled import debiased_loss, decoupled_loss
from verified_losses.oracles.hard_negatives import hard_negatives_loss
from verified_losses.oracles.infonce import infonce_loss
from verified_losses.oracles.margin import max_margin_loss, triplet_loss
from verified_losses.oracles.masked import masked_loss
from verified_losses.oracles.matryoshka import matryoshka_loss
from verified_losses.oracles.multi_positive import multi_positive_loss
from verified_losses.oracles.queue import held_queue_loss, queue_loss
from verified_losses.oracles.siglip import sigmoid_mean_loss
from verified_losses.oracles.soft_targets import momentum_loss, smoothed_loss, softened_loss
from verified_losses.oracles.supcon import supcon_loss

from .own.formula import contract, detached
from .own.kinds import choice, ids, matrix, positive, rows, shared

TEMPERATURE = positive(0.01, 1.0)
SHORTEST = 1 / 16
"""Of a row that a loss normalises: in half precision the squares of shorter ones underflow."""
UNIT = rows(unit=True)
MOST_HELD = 160
"""Keys in a queue that a loss holds; in one that is square, which axis is which could not be told."""
MARGIN = choice(0.3, 0.7, 1.1)
"""No difference of numbers of few bits equals one of these: there a hinge has no derivative."""


@contract(
    any_order=True,
    features=UNIT,
    labels=ids(below=4, repeated=True, large=True),
    temperature=TEMPERATURE,
)
def supcon(features: Any, labels: Any, temperature: Any) -> Any:
    """Supervised contrastive loss: the mean over positives outside the logarithm, then over anchors."""
    return supcon_loss(features, labels, temperature)


@contract(
    any_order=True,
    image=UNIT,
    text=rows(unit=True, like="image"),
    labels=ids(below=4, large=True),
    temperature=TEMPERATURE,
)
def multi_positive(image: Any, text: Any, labels: Any, temperature: Any) -> Any:
    """Symmetric cross-entropy of pairs, where all pairs of a label are positives with equal weights."""
    return multi_positive_loss(image, text, labels, temperature)


@contract(
    any_order=True,
    query=UNIT,
    positive=rows(unit=True, like="query"),
    negatives=matrix(("hard", "width"), unit=True),
    temperature=TEMPERATURE,
)
def hard_negatives(query: Any, positive: Any, negatives: Any, temperature: Any) -> Any:
    """InfoNCE over the positives and the hard negatives of all queries."""
    return hard_negatives_loss(query, positive, negatives, temperature)


@contract(
    any_order=True,
    large=True,
    query=UNIT,
    key=rows(unit=True, like="query", constant=True),
    queue=shared("queued", "width", unit=True),
    temperature=TEMPERATURE,
)
def queue(query: Any, key: Any, queue: Any, temperature: Any) -> Any:
    """InfoNCE of each query's key against a queue; keys are constants."""
    return queue_loss(query, key, queue, temperature)


@contract(
    any_order=True,
    holds="queue",
    query=matrix(("calls", "width"), unit=True),
    key=matrix(("calls", "width"), unit=True, detached=True),
    queue=matrix(("batches", "width"), unit=True, constant=True),
    temperature=TEMPERATURE,
)
def held_queue(query: Any, key: Any, queue: Any, temperature: Any) -> Any:
    """The same of several calls, against a queue that the loss holds and puts each call's keys into."""
    size = queue.shape[0] * queue.shape[1]
    if size > MOST_HELD or size == queue.shape[2]:
        raise ValueError(f"expected a queue of {MOST_HELD} keys at most, and not as many as they are wide")
    return held_queue_loss(query, detached(key), queue, temperature)


@contract(
    any_order=True,
    query=UNIT,
    key=rows(unit=True, like="query"),
    temperature=TEMPERATURE,
    chunk_size=choice(1, 2, 5),
)
def cached(query: Any, key: Any, temperature: Any, chunk_size: Any) -> Any:
    """InfoNCE over the whole batch, whose gradient is computed in chunks and kept (GradCache)."""
    del chunk_size  # which must not matter
    return infonce_loss([query], [key], temperature, 0, cosine=False)


@contract(
    any_order=True,
    large=True,
    logits=matrix("classes"),
    labels=ids(below="classes"),
    label_smoothing=choice(0.1, 0.2, 0.5),
)
def smoothed(logits: Any, labels: Any, label_smoothing: Any) -> Any:
    """Cross-entropy with label smoothing: every class has a share of what the label gives away."""
    return smoothed_loss(logits, labels, label_smoothing)


@contract(
    any_order=True,
    large=True,
    student=matrix("classes"),
    teacher=matrix("classes", constant=True),
    temperature=positive(0.5, 4.0),
)
def softened(student: Any, teacher: Any, temperature: Any) -> Any:
    """Distillation: the divergence at a temperature times its square, the mean over rows."""
    return softened_loss(student, teacher, temperature)


@contract(
    any_order=True,
    image=UNIT,
    text=rows(unit=True, like="image"),
    image_momentum=rows(unit=True, constant=True),
    text_momentum=rows(unit=True, like="image_momentum", constant=True),
    temperature=TEMPERATURE,
    alpha=choice(0.4, 0.25),
)
def momentum(
    image: Any, text: Any, image_momentum: Any, text_momentum: Any, temperature: Any, alpha: Any
) -> Any:
    """Symmetric cross-entropy under labels and a momentum model's softmax, which has the share alpha."""
    return momentum_loss(image, text, image_momentum, text_momentum, temperature, alpha)


@contract(
    any_order=True,
    large=True,
    query=UNIT,
    key=rows(unit=True, like="query"),
    ids=ids(below=4, large=True),
    temperature=TEMPERATURE,
)
def masked(query: Any, key: Any, ids: Any, temperature: Any) -> Any:
    """InfoNCE, where other keys of a query's identity are left out."""
    return masked_loss(query, key, ids, temperature)


@contract(any_order=True, first=UNIT, second=rows(unit=True, like="first"), temperature=TEMPERATURE)
def decoupled(first: Any, second: Any, temperature: Any) -> Any:
    """SimCLR's loss without the positive in the denominator."""
    return decoupled_loss(first, second, temperature)


@contract(
    any_order=True,
    first=UNIT,
    second=rows(unit=True, like="first"),
    temperature=positive(0.3, 1.0),
    tau_plus=choice(0.1, 0.01, 0.5),
)
def debiased(first: Any, second: Any, temperature: Any, tau_plus: Any) -> Any:
    """SimCLR's loss with an estimate of the negatives from which the positives' share is taken."""
    return debiased_loss(first, second, temperature, tau_plus)


@contract(
    any_order=True,
    query=rows(),
    key=rows(like="query"),
    temperature=TEMPERATURE,
    dims=choice((1, 2), (2, 4), (2, 5, 33), (64,)),
)
def matryoshka(query: Any, key: Any, temperature: Any, dims: Any) -> Any:
    """The sum of InfoNCE over prefixes, each normalised anew; too short ones are not drawn."""
    for side in (query, key):
        if any(np.any(np.sum(np.real(side[:, :dim]) ** 2, axis=1) < SHORTEST**2) for dim in dims):
            raise ValueError(f"expected prefixes of length {SHORTEST} or more")
    return matryoshka_loss(query, key, temperature, dims)


@contract(any_order=True, anchor=UNIT, positive=rows(unit=True, like="anchor"), negative=UNIT, margin=MARGIN)
def triplet(anchor: Any, positive: Any, negative: Any, margin: Any) -> Any:
    """The mean hinge of squared distances."""
    return triplet_loss(anchor, positive, negative, margin)


@contract(any_order=True, image=UNIT, text=rows(unit=True, like="image"), margin=MARGIN)
def max_margin(image: Any, text: Any, margin: Any) -> Any:
    """The mean over pairs of the hinges of all others, in both directions."""
    return max_margin_loss(image, text, margin)


@contract(
    any_order=True,
    large=True,
    image=UNIT,
    text=rows(unit=True, like="image"),
    scale=positive(0.5, 20.0, learned=True),
    bias=positive(0.5, 10.0, learned=True),
)
def sigmoid_mean(image: Any, text: Any, scale: Any, bias: Any) -> Any:
    """The sigmoid loss as a mean over all pairs."""
    return sigmoid_mean_loss(image, text, scale, bias)
