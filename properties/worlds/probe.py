"""What devices are, and whether they work: looked at in a process of their own, for a limited time."""

from functools import cache

from .. import devices
from . import WorldError
from .processes import ProcessWorld, join_nothing

SECONDS = 60.0


@cache
def look(device: str) -> devices.Facts:
    """Return what a device is.

    Raises:
        ValueError: it does not work; the message says what its driver or torch said.
    """
    return devices.facts(device) if device == devices.CPU else _ask(device)


def trouble(device: str) -> str | None:
    """Return why a device, or one of several that ranks have in turn, does not work now, if so."""
    for one in dict.fromkeys(device.split("/")):
        if one != devices.CPU:
            try:
                _ask(one)
            except ValueError as error:
                return str(error)
    return None


def _ask(device: str) -> devices.Facts:
    world = ProcessWorld(1, SECONDS, SECONDS, join=join_nothing, device=device)
    try:
        (found,) = world.run(_use, device)
    except WorldError as error:
        raise ValueError(f"{device} does not work: {error.ranks[0].said}") from error
    finally:
        world.close()
    return found


def _use(rank: int, size: int, device: str) -> devices.Facts:
    import torch

    total = torch.arange(4.0, device=device).sum().item()
    if total != 6:
        raise ArithmeticError(f"0 + 1 + 2 + 3 is {total} on {device}")
    return devices.facts(device)
