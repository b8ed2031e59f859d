"""Says in the error of a failed collective which rank is missing, or is in another collective."""

import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from .backends import backend_of

F = TypeVar("F", bound=Callable[..., object])

ROLL_SECONDS = 1.0
"""How long a rank whose collective has failed waits for the others to report the same."""
STORE_SECONDS = 3.0
"""How long it may take to ask the store, which a missing rank may hold."""
POLL_SECONDS = 0.01
_BROKEN = re.compile(
    r"gloo/transport|pair closure|[Tt]imed out|Connection (reset|closed|refused)|Broken pipe"
)


def naming_lost_ranks(collective: F) -> F:
    """Let a collective of a `Transport` say in its error which ranks have died, left or stopped.

    The error keeps its type, and its text at the end.
    """
    step = collective.__name__

    @functools.wraps(collective)
    def call(transport: Any, *args: Any, **kwargs: Any) -> object:
        try:
            return collective(transport, *args, **kwargs)
        except RuntimeError as error:
            is_gloo = type(error) is RuntimeError and _BROKEN.search(str(error))
            if not (is_gloo or isinstance(error, dist.DistError)):
                raise
            why = _why(step, transport, error)
            raise type(error)(f"{step} among {transport.world_size} ranks failed: {why} ({error})") from error

    return cast(F, call)


def _why(step: str, transport: Any, error: RuntimeError) -> str:
    """Return in words what the ranks that have failed too say, where they can be asked."""
    others = [rank for rank in range(transport.world_size) if rank != transport.rank]
    # gloo closes all connections of a rank that has waited too long
    can_tell = backend_of(transport.group, "cpu") == "gloo" and "imed out" not in str(error)
    closed = [rank for rank in others if _is_closed(transport, rank)] if can_tell else []
    said: list[str] = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone, or the group has none
            said.append(_roll_call(step, transport, others, closed))

    # a store may keep a rank waiting for as long as a group does
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * ROLL_SECONDS + STORE_SECONDS)
    if said:
        return said[0]
    which = f", and the connection to {_listed(closed)} is closed" if closed else ""
    return f"a rank has died, left or stopped answering{which}"


def _roll_call(step: str, transport: Any, others: list[int], closed: list[int]) -> str:
    group: Any = transport.group or dist.group.WORLD
    store = group.get_group_store()
    keys = [f"verified_losses/failed/{rank}" for rank in range(transport.world_size)]
    store.set(keys[transport.rank], step)
    # those that have left may have failed too, for a rank whose connection is open
    missing = _unreported(store, keys, closed) or _unreported(store, keys, others)
    if missing:
        return f"{_listed(missing)} died, left or stopped answering"
    steps = {rank: store.get(key).decode() for rank, key in enumerate(keys) if store.check([key])}
    other = next((rank for rank, name in steps.items() if name != step), None)
    if other is not None:
        return f"ranks disagree: rank {transport.rank} calls {step}; rank {other} calls {steps[other]}"
    return "every rank that was waited for has failed too"


def _unreported(store: Any, keys: list[str], ranks: list[int]) -> list[int]:
    """Return those of some ranks that report no failure in a while."""
    deadline = time.monotonic() + ROLL_SECONDS
    while ranks and time.monotonic() < deadline:
        ranks = [rank for rank in ranks if not store.check([keys[rank]])]
        time.sleep(POLL_SECONDS)
    return ranks


def _listed(ranks: list[int]) -> str:
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"


def _is_closed(transport: Any, rank: int) -> bool:
    """Whether the connection to a rank is closed, over gloo."""
    try:
        # nobody receives it: nothing is received any more in a group that has lost a rank
        dist.isend(torch.zeros(1), group=transport.group, group_dst=rank, tag=2**16)
    except RuntimeError:
        return True
    return False
