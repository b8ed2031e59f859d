"""Contracts as a user writes them."""

import numpy as np

from verified_losses.properties import contract, detached, ids, mask, matrix, positive, rows, shared


def log_softmax(z):
    z = z - np.max(np.real(z), axis=-1, keepdims=True)
    return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))


@contract(features=rows(unit=True), labels=ids(below=8), temperature=positive(0.02, 1.0), any_order=True)
def supcon(features, labels, temperature):
    """Khosla et al. 2020, equation 2: the whole batch."""
    others = ~np.eye(len(labels), dtype=bool)
    logits = np.where(others, features @ features.T / temperature, -1e4)
    positives = (labels[:, None] == labels) & others
    of_positives = np.sum(np.where(positives, log_softmax(logits), 0), axis=1)
    return -np.mean(of_positives / np.maximum(positives.sum(1), 1))


@contract(anchor=rows(), positive=rows(like="anchor"), negative=rows(like="anchor"), margin=positive(0.1, 2))
def triplet(anchor, positive, negative, margin):
    """Schroff et al. 2015, equation 3, of squared distances."""
    near = np.sum((anchor - positive) ** 2, axis=1)
    far = np.sum((anchor - negative) ** 2, axis=1)
    return np.mean(np.maximum(near - far + margin, 0))


@contract(
    query=rows(unit=True),
    key=rows(unit=True, like="query"),
    negatives=matrix(("negatives", "width"), unit=True),
    temperature=positive(0.05, 1.0, learned=True),
)
def hard_negatives(query, key, negatives, temperature):
    """Karpukhin et al. 2020, equation 2: other rows' keys, and each row's own negatives."""
    logits = np.concatenate([query @ key.T, np.einsum("id,ikd->ik", query, negatives)], axis=1)
    own = np.arange(len(query))
    return -np.mean(log_softmax(logits / temperature)[own, own])


@contract(
    query=rows(unit=True),
    key=rows(unit=True, like="query", constant=True),
    queue=shared("queue", "width", unit=True),
    temperature=positive(0.05, 1.0),
)
def moco(query, key, queue, temperature):
    """He et al. 2020, equation 1."""
    positive = np.sum(query * key, axis=1, keepdims=True)
    logits = np.concatenate([positive, query @ queue.T], axis=1) / temperature
    return -np.mean(log_softmax(logits)[:, 0])


@contract(
    logits=matrix("classes"), targets=matrix("classes", values="probabilities"), smoothing=positive(0.01, 0.5)
)
def soft_targets(logits, targets, smoothing):
    """Szegedy et al. 2016, section 7, of soft targets."""
    smoothed = (1 - smoothing) * targets + smoothing / targets.shape[1]
    return -np.mean(np.sum(smoothed * log_softmax(logits), axis=1))


@contract(first=rows(unit=True), second=rows(unit=True), pairs=mask(reflexive=True), scale=positive(1, 20))
def multi_positive(first, second, pairs, scale):
    """Every pair of the mask is a positive."""
    return -np.sum(np.where(pairs, log_softmax(scale * first @ second.T), 0) / pairs.sum(1)[:, None]) / len(
        first
    )


@contract(
    query=rows(unit=True), key=rows(unit=True, like="query"), temperature=positive(0.05, 1.0), any_order=True
)
def focal(query, key, temperature):
    """InfoNCE, where rows weigh (1 - p)^2, which carries no gradient, as in Lin et al. 2017, equation 4."""
    own = np.arange(len(query))
    log_p = log_softmax(query @ key.T / temperature)[own, own]
    return -np.mean(detached(1 - np.exp(log_p)) ** 2 * log_p)
