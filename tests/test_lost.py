"""What a collective that fails says of the ranks, without a process group; test_faults.py has one."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from verified_losses import lost
from verified_losses.lost import naming_lost_ranks

CLOSED = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"
LATE = "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 2000ms for recv operation to complete"


class Store(dict[str, str]):
    """A store that all ranks can reach."""

    def set(self, key: str, value: str) -> None:
        self[key] = value

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key].encode()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(lost, "ROLL_SECONDS", 0.1)
    monkeypatch.setattr(dist, "get_backend", lambda group: _is_own(group) and "gloo")
    return Store()


def _is_own(group: Any) -> bool:
    """Fail where a call is not about the transport's group."""
    assert isinstance(group, SimpleNamespace)
    return True


def _close(monkeypatch: pytest.MonkeyPatch, *ranks: int) -> None:
    def isend(tensor: torch.Tensor, group: Any, group_dst: int, tag: int) -> None:
        assert isinstance(tensor, torch.Tensor)
        assert isinstance(tag, int)
        if _is_own(group) and group_dst in ranks:
            raise RuntimeError(CLOSED)

    monkeypatch.setattr(dist, "isend", isend)


def _said(store: Any, error: Exception, rank: int = 0) -> Exception:
    @naming_lost_ranks
    def gather(transport: Any) -> None:
        raise error

    group = SimpleNamespace(get_group_store=lambda: store)
    with pytest.raises(type(error)) as caught:
        gather(SimpleNamespace(rank=rank, world_size=4, group=group))
    return caught.value


def test_a_rank_whose_connection_is_closed_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _close(monkeypatch, 2)
    said = _said(store, RuntimeError(CLOSED))
    assert str(said) == f"gather among 4 ranks failed: rank 2 died, left or stopped answering ({CLOSED})"
    assert type(said) is RuntimeError
    assert isinstance(said.__cause__, RuntimeError)


def test_connections_are_told_where_gloo_moves_the_hosts_memory_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_backend", lambda group: "undefined")
    monkeypatch.setattr(dist, "get_backend_config", lambda group: _is_own(group) and "cpu:gloo,cuda:nccl")
    _close(monkeypatch, 2)
    assert ": rank 2 died" in str(_said(store, RuntimeError(CLOSED)))


def test_a_rank_that_has_left_as_its_own_collective_failed_is_not_named(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _close(monkeypatch, 2)
    _said(store, RuntimeError(CLOSED), rank=1)
    _close(monkeypatch, 1, 2)
    assert ": rank 2 died" in str(_said(store, RuntimeError(CLOSED)))


def test_a_stopped_rank_is_named_where_a_rank_that_waited_for_it_has_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _close(monkeypatch, 1)
    for rank in (1, 3):
        store.set(f"verified_losses/failed/{rank}", "gather")
    assert ": rank 2 died" in str(_said(store, RuntimeError(CLOSED)))


def test_after_a_timeout_those_are_named_that_do_not_report_one(store: Store) -> None:
    store.set("verified_losses/failed/1", "gather")
    assert ": ranks 2, 3 died, left or stopped answering" in str(_said(store, RuntimeError(LATE)))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("gather", "every rank that was waited for has failed too"),
        ("sum", "ranks disagree: rank 0 calls gather; rank 1 calls sum"),
    ],
)
def test_where_all_ranks_report_what_they_call_is_compared(store: Store, step: str, said: str) -> None:
    for rank in range(1, 4):
        store.set(f"verified_losses/failed/{rank}", step)
    assert str(_said(store, RuntimeError(LATE))).startswith(f"gather among 4 ranks failed: {said} (")


class Gone(Store):
    def set(self, key: str, value: str) -> None:
        raise dist.DistNetworkError("Broken pipe")


class Stopped(Store):
    def set(self, key: str, value: str) -> None:
        time.sleep(5)


def test_without_a_store_the_connections_are_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _close(monkeypatch, 0, 2)
    said = str(_said(Gone(), RuntimeError(CLOSED), rank=1))
    assert (
        ": a rank has died, left or stopped answering, and the connection to ranks 0, 2 is closed (" in said
    )


@pytest.mark.parametrize("kind", [Gone, Stopped])
def test_a_store_that_does_not_answer_is_not_waited_for(
    kind: type[Store], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "STORE_SECONDS", 0.1)
    others = threading.enumerate()
    began = time.monotonic()
    said = _said(kind(), RuntimeError(LATE))
    assert time.monotonic() - began < 4
    assert str(said).startswith("gather among 4 ranks failed: a rank has died, left or stopped answering (")
    # what still waits for the store keeps no process from ending
    assert all(thread.daemon for thread in threading.enumerate() if thread not in others)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), torch.OutOfMemoryError("Timed out"), ValueError(CLOSED)]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert _said(Store(), error) is error


def test_an_error_of_another_backend_keeps_its_type(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_backend", lambda group=None: "nccl")
    said = _said(store, dist.DistBackendError("NCCL error"))
    assert type(said) is dist.DistBackendError
    assert ": ranks 1, 2, 3 died" in str(said)
