"""Tensors passed between neighbours in a ring: rank r's left neighbour is r - 1, its right one r + 1."""

from .complex_step import Array


def neighbour_exchange(tensors: list[Array], from_ranks: list[int]) -> list[Array]:
    """Return what each rank receives: the tensor of the rank it receives from."""
    return [tensors[source] for source in from_ranks]


def neighbour_exchange_bidir(
    tensors_to_left: list[Array], tensors_to_right: list[Array]
) -> list[tuple[Array, Array]]:
    """Return what each rank receives from its right and from its left neighbour in the ring."""
    world_size = len(tensors_to_left)
    return [
        (tensors_to_left[(rank + 1) % world_size], tensors_to_right[(rank - 1) % world_size])
        for rank in range(world_size)
    ]
