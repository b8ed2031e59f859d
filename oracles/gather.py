"""Every rank's rows on every rank: their values, and how often each occurrence carries gradient."""

import numpy as np

from .bounds import gathering, step
from .complex_step import Array


@step(gathering.carry)
def carry(value: Array, times: float) -> Array:
    """Return `value`, whose derivative counts `times`."""
    return value if times == 1 else np.real(value) + 1j * times * np.imag(value)


def occurrences(
    rank: int, world_size: int, local_loss: bool, gather_with_grad: bool, convention: str
) -> list[float]:
    """Return how often the gathered rows of each rank carry gradient on `rank`."""
    if gather_with_grad or world_size == 1:
        return [1.0] * world_size
    own = 0.0 if local_loss else float(world_size) if convention == "exact" else 1.0
    return [own if other == rank else 0.0 for other in range(world_size)]


def gather_features(
    features: list[Array],
    rank: int,
    local_loss: bool,
    gather_with_grad: bool,
    convention: str,
) -> Array:
    """Return the rows of all ranks, in rank order, as `rank` sees them.

    Args:
        features: [n_r, d] of each rank r.
        rank: the rank that gathers.
        local_loss: as for the loss.
        gather_with_grad: whether the gathered rows carry gradient.
        convention: "exact" or "open_clip".
    """
    times = occurrences(rank, len(features), local_loss, gather_with_grad, convention)
    return np.concatenate([carry(rows, count) for rows, count in zip(features, times, strict=True)])
