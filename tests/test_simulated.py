"""The simulated world: what it detects, counts, injects and explores."""

import pickle
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import count
from typing import Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from verified_losses.properties.worlds.simulated import (
    CommunicationError,
    Fault,
    Key,
    SimulatedWorld,
    SimulationError,
    Volume,
)

Program = Callable[[int, int, bool], object]

# renamed in torch 2.13
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape or (2,))


# Planted defects: each program is right when `wrong` is False.


def receives_first(rank: int, size: int, wrong: bool) -> None:
    if rank == 0 and not wrong:
        dist.send(ones(), 1)
    dist.recv(ones(), 1 - rank)
    if rank == 1 or wrong:
        dist.send(ones(), 1 - rank)


def sends_first(rank: int, size: int, wrong: bool) -> None:
    if rank == 0 or wrong:
        dist.send(ones(), 1 - rank)
    dist.recv(ones(), 1 - rank)
    if rank == 1 and not wrong:
        dist.send(ones(), 1 - rank)


def other_tag(rank: int, size: int, wrong: bool) -> None:
    if rank == 0:
        dist.isend(ones(), 1, tag=3).wait()
    else:
        dist.recv(ones(), 0, tag=4 if wrong else 3)


def other_operation(rank: int, size: int, wrong: bool) -> None:
    if rank == 0 and wrong:
        dist.broadcast(ones(), 0)
    else:
        dist.all_reduce(ones())


def other_order(rank: int, size: int, wrong: bool) -> None:
    steps = [lambda: dist.all_reduce(ones()), dist.barrier]
    for step in reversed(steps) if rank == 1 and wrong else steps:
        step()


def other_reduce_op(rank: int, size: int, wrong: bool) -> None:
    dist.all_reduce(ones(), op=dist.ReduceOp.MAX if rank == 1 and wrong else dist.ReduceOp.SUM)


def other_shape(rank: int, size: int, wrong: bool) -> None:
    dist.all_reduce(ones(3 if rank == 1 and wrong else 2))


def other_layout(rank: int, size: int, wrong: bool) -> None:
    shape = (2, 3) if rank == 1 and wrong else (3, 2)
    dist.all_gather([ones(*shape) for _ in range(size)], ones(*shape))


def other_rows_exchanged(rank: int, size: int, wrong: bool) -> None:
    sends = [1, 2] if rank == 0 else [3, 4]
    receives = [[1, 3], [2, 4]][rank][:: -1 if wrong and rank == 1 else 1]
    dist.all_to_all_single(ones(sum(receives)), ones(sum(sends)), receives, sends)


def other_dtype(rank: int, size: int, wrong: bool) -> None:
    dist.all_reduce(ones().double() if rank == 1 and wrong else ones())


def other_strides(rank: int, size: int, wrong: bool) -> None:
    dist.all_reduce(ones(2, 3).t() if rank == 1 and wrong else ones(3, 2))


def scatters_into_other_strides(rank: int, size: int, wrong: bool) -> None:
    output = ones(2, 3).t() if wrong else ones(3, 2)
    dist.scatter(output, [ones(3, 2)] * size if rank == 0 else None)


def other_root(rank: int, size: int, wrong: bool) -> None:
    dist.broadcast(ones(), src=rank if wrong else 0)


def other_group(rank: int, size: int, wrong: bool) -> None:
    groups = [dist.new_group([0, 1]), dist.new_group([0, 1])]
    for group in reversed(groups) if rank == 1 and wrong else groups:
        dist.all_reduce(ones(), group=group)


def other_group_made(rank: int, size: int, wrong: bool) -> None:
    dist.new_group([0] if rank == 1 and wrong else [0, 1])


def longer_message(rank: int, size: int, wrong: bool) -> None:
    if rank == 0:
        dist.send(ones(3 if wrong else 2), 1)
    else:
        dist.recv(ones(), 0)


def message_of_other_dtype(rank: int, size: int, wrong: bool) -> None:
    if rank == 0:
        dist.send(ones().int() if wrong else ones(), 1)
    else:
        dist.recv(ones(), 0)


def skips_a_collective(rank: int, size: int, wrong: bool) -> None:
    if rank == 0 or not wrong:
        dist.barrier()


def never_receives(rank: int, size: int, wrong: bool) -> None:
    if rank == 0:
        dist.send(ones(), 1)
    elif not wrong:
        dist.recv(ones(), 0)


def forgets_a_send(rank: int, size: int, wrong: bool) -> None:
    if rank == 0:
        work = dist.isend(ones(), 1)
        if not wrong:
            work.wait()
    else:
        dist.recv(ones(), 0)


def forgets_a_collective(rank: int, size: int, wrong: bool) -> None:
    work = dist.all_reduce(ones(), async_op=True)
    if rank == 0 or not wrong:
        work.wait()


def writes_what_it_sends(rank: int, size: int, wrong: bool) -> None:
    buffer = ones()
    if rank == 0:
        work = dist.isend(buffer, 1)
        buffer.view(-1)[0].add_(1) if wrong else buffer + 1
        work.wait()
    else:
        dist.recv(buffer, 0)


def writes_through_numpy(rank: int, size: int, wrong: bool) -> None:
    buffer = ones()
    if rank == 0:
        work = dist.isend(buffer, 1)
        if wrong:
            buffer.numpy()[0] = 7
        work.wait()
    else:
        dist.recv(buffer, 0)


def writes_where_it_receives(rank: int, size: int, wrong: bool) -> None:
    parts = [ones() for _ in range(size)]
    work = dist.all_gather(parts, ones(), async_op=True)
    if wrong:
        parts[0].zero_()
    work.wait()


def reads_before_it_waits(rank: int, size: int, wrong: bool) -> None:
    buffer = ones()
    if rank == 0:
        dist.send(buffer, 1)
    else:
        work = dist.irecv(buffer, 0)
        if wrong:
            buffer.sum()
        work.wait()
        buffer.sum()


def forwards_before_it_waits(rank: int, size: int, wrong: bool) -> None:
    buffer = ones()
    if rank == 0:
        dist.send(buffer, 1)
        dist.recv(ones(), 1)
    else:
        work = dist.irecv(buffer, 0)
        if not wrong:
            work.wait()
        dist.send(buffer, 0)
        work.wait()


def lists_before_it_waits(rank: int, size: int, wrong: bool) -> None:
    buffer = ones()
    if rank == 0:
        dist.send(buffer, 1)
    else:
        work = dist.irecv(buffer, 0)
        if wrong:
            buffer.tolist()
        work.wait()
        buffer.tolist()


def reads_an_all_reduce(rank: int, size: int, wrong: bool) -> None:
    buffer = ones()
    work = dist.all_reduce(buffer, async_op=True)
    if not wrong:
        work.wait()
    buffer * 2
    work.wait()


def one_buffer_for_all(rank: int, size: int, wrong: bool) -> None:
    parts = [ones()] * size if wrong else [ones() for _ in range(size)]
    dist.all_gather(parts, ones())


def one_buffer_for_two_receives(rank: int, size: int, wrong: bool) -> None:
    buffer = ones(2, 2)
    if rank == 0:
        dist.send(ones(), 1)
        dist.send(ones(), 1)
    else:
        works = [dist.irecv(buffer[0], 0), dist.irecv(buffer[0 if wrong else 1], 0)]
        for work in works:
            work.wait()


def gathers_onto_its_input(rank: int, size: int, wrong: bool) -> None:
    whole = ones(size, 2)
    dist.all_gather_into_tensor(whole, whole[0 if wrong else rank])


DEFECTS: list[tuple[Program, str, str]] = [
    (receives_first, "deadlock", "rank 0 waits in recv"),
    (other_tag, "deadlock", "tag 4"),
    (sends_first, "needs_buffering", "rank 1 waits in send"),
    (other_operation, "mismatch", "different operation"),
    (other_order, "mismatch", "different operation"),
    (other_reduce_op, "mismatch", "different reduce_op"),
    (other_shape, "mismatch", "different shape"),
    (other_layout, "mismatch", "different shape"),
    (other_rows_exchanged, "mismatch", "different shape"),
    (other_dtype, "mismatch", "different dtype"),
    (other_strides, "mismatch", "different stride"),
    (scatters_into_other_strides, "mismatch", "different stride"),
    (other_root, "mismatch", "different root"),
    (other_group, "mismatch", "order of groups"),
    (other_group_made, "mismatch", "different detail"),
    (longer_message, "mismatch", "different shape"),
    (message_of_other_dtype, "mismatch", "different dtype"),
    (skips_a_collective, "early_exit", "rank 1 returned; rank 0 waits in barrier"),
    (never_receives, "early_exit", "rank 1 returned; rank 0 waits in send"),
    (forgets_a_send, "unwaited", "rank 0 returned without waiting for send"),
    (forgets_a_collective, "unwaited", "rank 1 returned without waiting for all_reduce"),
    (writes_what_it_sends, "written_in_flight", "rank 0 writes"),
    (writes_through_numpy, "written_in_flight", "rank 0 wrote"),
    (writes_where_it_receives, "written_in_flight", "writes"),
    (reads_before_it_waits, "read_in_flight", "rank 1 reads"),
    (lists_before_it_waits, "read_in_flight", "rank 1 reads"),
    (forwards_before_it_waits, "read_in_flight", "rank 1: send"),
    (reads_an_all_reduce, "read_in_flight", "reads"),
    (one_buffer_for_all, "aliasing", "outputs 0 and 1"),
    (one_buffer_for_two_receives, "aliasing", "rank 1: recv"),
    (gathers_onto_its_input, "aliasing", "input 0 and output 0"),
]
SCHEDULES = [None, 0, 1, 2]

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("program", "finding", "words"), DEFECTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_planted_defect_is_found_by_name(
    program: Program, finding: str, words: str, schedule: int | None
) -> None:
    with pytest.raises(SimulationError) as caught:
        SimulatedWorld(2, schedule).run(program, True)
    assert caught.value.finding == finding
    assert words in caught.value.message
    assert [state.rank for state in caught.value.ranks] == [0, 1]
    if not all(state.state == "returned" for state in caught.value.ranks):
        assert f"in {program.__name__}" in str(caught.value)


@pytest.mark.parametrize("sends", ["rendezvous", "buffered", "drawn"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("program", [program for program, _, _ in DEFECTS])
def test_its_correct_twin_is_not_accused(program: Program, schedule: int | None, sends: str) -> None:
    SimulatedWorld(2, schedule, sends=sends).run(program, False)


def test_a_message_that_was_sent_into_a_buffer_is_missed() -> None:
    with pytest.raises(SimulationError, match="unreceived: never received: rank 0's send") as caught:
        SimulatedWorld(2, sends="buffered").run(never_receives, True)
    assert [state.state for state in caught.value.ranks] == ["returned", "returned"]


def test_sends_that_need_a_buffer_are_right_in_a_world_that_has_one() -> None:
    SimulatedWorld(2, sends="buffered").run(sends_first, True)


def test_a_deadlock_shows_where_each_rank_waits() -> None:
    with pytest.raises(SimulationError) as caught:
        SimulatedWorld(2).run(receives_first, True)
    for state in caught.value.ranks:
        assert state.state == "hung"
        assert "dist.recv(ones(), 1 - rank)" in state.detail


def test_a_rank_that_raises_reaches_the_caller_and_its_peers() -> None:
    peers = []

    def program(rank: int, size: int) -> None:
        if rank == 1:
            raise KeyError("planted")
        try:
            dist.barrier()
        except CommunicationError as error:
            peers.append(error)
            raise

    world = SimulatedWorld(3, copies=False)
    with pytest.raises(SimulationError, match="rank 1 raised KeyError") as caught:
        world.run(program)
    assert isinstance(caught.value.__cause__, KeyError)
    assert [str(error) for error in peers] == ["raised: rank 1 raised KeyError: 'planted'"] * 2
    assert world.run(lambda rank, size: rank) == [0, 1, 2]


@pytest.mark.parametrize(
    "stuck", [lambda: [None for _ in count()], lambda: time.sleep(3)], ids=["loop", "native"]
)
def test_a_rank_that_computes_for_ever_does_not_hang_the_caller(stuck: Callable[[], object]) -> None:
    def program(rank: int, size: int) -> None:
        dist.barrier()
        if rank == 1:
            stuck()
        dist.barrier()

    world = SimulatedWorld(2, timeout=0.3)
    started = time.monotonic()
    with pytest.raises(SimulationError, match="rank 1 ran, at") as caught:
        world.run(program)
    assert caught.value.finding == "hung"
    assert time.monotonic() - started < 5
    assert world.run(lambda rank, size: rank) == [0, 1]


def test_polling_for_ever_is_a_deadlock() -> None:
    def program(rank: int, size: int) -> None:
        if rank == 0:
            work = dist.irecv(ones(), 1)
            while not work.is_completed():
                pass

    with pytest.raises(SimulationError, match="polls for ever") as caught:
        SimulatedWorld(2).run(program)
    assert caught.value.finding == "deadlock"


def test_a_polled_communication_needs_no_wait() -> None:
    def program(rank: int, size: int) -> float:
        total = ones() * (rank + 1)
        work = dist.all_reduce(total, async_op=True)
        while not work.is_completed():
            pass
        return total[0].item()

    for schedule in (None, 0, 1):
        assert SimulatedWorld(3, schedule).run(program) == [6.0] * 3


# What a rank sees


def test_ranks_see_torch_distributed_as_processes_do() -> None:
    def program(rank: int, size: int) -> tuple[object, ...]:
        group = dist.new_group([0, 2])
        inside = rank != 1
        return (
            dist.is_initialized(),
            dist.get_rank(),
            dist.get_world_size(),
            str(dist.get_backend()),
            dist.get_rank(group),
            dist.get_world_size(group) if inside else None,
            dist.get_global_rank(group, 1) if inside else None,
            dist.get_process_group_ranks(group) if inside else None,
        )

    assert SimulatedWorld(3, backend="gloo").run(program) == [
        (True, 0, 3, "gloo", 0, 2, 2, [0, 2]),
        (True, 1, 3, "gloo", -1, None, None, None),
        (True, 2, 3, "gloo", 1, 2, 2, [0, 2]),
    ]
    assert not dist.is_initialized()


def test_what_is_not_implemented_says_so() -> None:
    with pytest.raises(SimulationError, match=r"NotImplementedError: simulated world: Work\.get_future"):
        SimulatedWorld(2).run(lambda rank, size: dist.barrier(async_op=True).get_future())
    with pytest.raises(SimulationError, match="NotImplementedError: simulated world: monitored_barrier"):
        SimulatedWorld(2, backend="gloo").run(lambda rank, size: dist.group.WORLD.monitored_barrier())
    with pytest.raises(SimulationError, match="simulated world: tensors that are not dense"):
        SimulatedWorld(2).run(lambda rank, size: dist.all_reduce(torch.eye(2).to_sparse()))
    with pytest.raises(SimulationError, match="simulated world: destroy_process_group of the whole world"):
        SimulatedWorld(2).run(lambda rank, size: dist.destroy_process_group())


def test_a_group_can_be_destroyed_and_is_gone_then() -> None:
    def program(rank: int, size: int, again: bool) -> float:
        group = dist.new_group([0, 1])
        ones = torch.ones(1)
        dist.all_reduce(ones, group=group)
        dist.destroy_process_group(group)
        if again:
            dist.all_reduce(ones, group=group)
        dist.all_reduce(ones)
        return ones.item()

    assert SimulatedWorld(2).run(program, False) == [4, 4]
    with pytest.raises(SimulationError, match="communication after destroy_process_group"):
        SimulatedWorld(2).run(program, True)


def test_gloo_gathers_no_stack() -> None:
    def program(rank: int, size: int) -> torch.Tensor:
        whole = torch.empty(size, 3)
        all_gather_single(whole, torch.full((3,), float(rank)))
        return whole

    for whole in SimulatedWorld(2).run(program):
        assert torch.equal(whole, torch.tensor([[0.0] * 3, [1.0] * 3]))
    with pytest.raises(SimulationError, match=r"all_gather_single: \(2, 3\) is not 2 times \(3,\)"):
        SimulatedWorld(2, backend="gloo").run(program)


def test_ranks_share_neither_arguments_nor_random_state_nor_warning_filters() -> None:
    def program(rank: int, size: int, shared: torch.Tensor) -> tuple[float, float]:
        torch.manual_seed(rank)
        shared.add_(rank)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dist.barrier()
            warnings.warn(f"rank {rank}", stacklevel=1)
            dist.barrier()
        assert [str(warning.message) for warning in caught] == [f"rank {rank}"]
        return torch.rand(()).item(), shared.sum().item()

    def drawn_alone(rank: int) -> float:
        return torch.rand((), generator=torch.Generator().manual_seed(rank)).item()

    shared, state, filters = torch.zeros(2), torch.get_rng_state(), list(warnings.filters)
    for schedule in SCHEDULES:
        results = SimulatedWorld(3, schedule).run(program, shared)
        assert results == [(drawn_alone(rank), 2.0 * rank) for rank in range(3)]
    assert torch.equal(shared, torch.zeros(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(warnings.filters) == filters


def test_one_element_of_any_stride_travels() -> None:
    def program(rank: int, size: int) -> float:
        # contiguous, as every single element is, though its stride is 2
        sent, received = torch.full((1, 1, 2), float(rank))[..., 0], torch.zeros(1, 1)
        send, receive = dist.isend(sent, 1 - rank), dist.irecv(received, 1 - rank)
        assert send is not None
        assert receive is not None
        receive.wait()
        send.wait()
        return float(received)

    assert SimulatedWorld(2).run(program) == [1.0, 0.0]


def test_an_unwaited_receive_buffer_holds_nan() -> None:
    def program(rank: int, size: int) -> list[float]:
        buffer = ones()
        if rank == 0:
            dist.send(buffer, 1)
            return []
        work = dist.irecv(buffer, 0)
        view = buffer.numpy()  # Taking a view reads nothing, and no operator shows when NumPy does.
        early = view.tolist()
        work.wait()
        return early

    assert np.isnan(SimulatedWorld(2).run(program)[1]).all()


def test_ranks_that_wait_together_may_be_in_different_modes() -> None:
    def program(rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode(rank == 0):
            total, parts = torch.full((2,), rank + 1.0), [torch.empty(2) for _ in range(size)]
            dist.all_gather(parts, total)
            dist.all_reduce(total)
            return torch.stack(parts), total

    for parts, total in SimulatedWorld(3).run(program):
        assert torch.equal(parts, torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
        assert torch.equal(total, torch.full((2,), 6.0))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_rank_may_wait_at_once_where_another_waits_later(schedule: int | None) -> None:
    def program(rank: int, size: int) -> torch.Tensor:
        tensor = torch.full((2,), rank + 1.0)
        parts = [torch.empty(2) for _ in range(size)]
        work = dist.all_gather(parts, tensor, async_op=rank == 0)
        if rank == 0:
            dist.barrier()
            work.wait()
        else:
            tensor.zero_()  # what rank 0 still waits for was given before
            dist.barrier()
        return torch.stack(parts)

    for parts in SimulatedWorld(3, schedule).run(program):
        assert torch.equal(parts, torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))


def test_an_output_that_cannot_be_written_is_an_error_of_its_rank_alone() -> None:
    def program(rank: int, size: int) -> object:
        tensor = torch.full((2,), rank + 1.0)
        parts = [torch.empty(2) for _ in range(size)]
        if rank == 1:
            parts[0] = torch.empty(1).expand(2)
        try:
            dist.all_gather(parts, tensor)
        except RuntimeError as error:
            return str(error)
        return torch.stack(parts)

    first, second, third = SimulatedWorld(3).run(program)
    expected = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert "single memory location" in str(second)
    assert torch.equal(first, expected)  # type: ignore[arg-type]
    assert torch.equal(third, expected)  # type: ignore[arg-type]


def test_a_collective_into_what_backward_needs_is_noticed() -> None:
    def program(rank: int, size: int) -> None:
        weight = torch.ones(2, requires_grad=True)
        saved = torch.ones(2)
        product = (weight * saved).sum()
        dist.all_reduce(saved)
        product.backward()

    with pytest.raises(SimulationError, match="modified by an inplace operation"):
        SimulatedWorld(2).run(program)


def test_threads_are_reused() -> None:
    SimulatedWorld(5).run(receives_nothing)
    before = threading.active_count()
    for seed in range(5):
        SimulatedWorld(5, seed).run(receives_nothing)
    assert threading.active_count() == before


def receives_nothing(rank: int, size: int) -> None:
    dist.barrier()


# Counting


def gathers_with_gradient(rank: int, size: int) -> None:
    from torch.distributed.nn.functional import all_gather

    features = torch.ones(4, 16, requires_grad=True)
    torch.cat(all_gather(features)).sum().backward()


def test_messages_and_bytes_are_counted_by_rank_operation_and_phase() -> None:
    world = SimulatedWorld(4)
    world.run(gathers_with_gradient)
    part = 4 * 16 * 4
    for rank in range(4):
        assert world.traffic[Key(rank, "all_gather", "forward")] == Volume(1, 3, 3 * part, 3 * part)
        assert world.traffic[Key(rank, "all_to_all", "backward")] == Volume(1, 3, 3 * part, 3 * part)
    assert len(world.traffic) == 8


def test_code_that_asks_for_the_backend_takes_that_path() -> None:
    world = SimulatedWorld(2, backend="nccl")
    world.run(gathers_with_gradient)
    assert {key.operation for key in world.traffic} == {"all_gather", "reduce_scatter"}
    world = SimulatedWorld(2, backend="gloo")
    world.run(gathers_with_gradient)
    assert {key.operation for key in world.traffic} == {"all_gather", "scatter"}


def test_a_failure_can_be_sent_to_another_process() -> None:
    with pytest.raises(SimulationError) as caught:
        SimulatedWorld(2, 1).run(other_shape, True)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert str(copied) == str(caught.value)
    assert copied.schedule == caught.value.schedule


def test_a_group_kept_from_another_rank_is_refused() -> None:
    kept: list[dist.ProcessGroup] = []

    def program(rank: int, size: int) -> None:
        group = dist.new_group()
        kept.append(group)
        dist.barrier(group=kept[0])

    with pytest.raises(SimulationError, match="was kept from another rank"):
        SimulatedWorld(2).run(program)


def test_a_ring_moves_what_its_neighbours_need() -> None:
    def program(rank: int, size: int) -> None:
        buffer = ones(4, 16)
        for _ in range(size - 1):
            received = torch.empty_like(buffer)
            operations = [
                dist.P2POp(dist.isend, buffer, (rank + 1) % size),
                dist.P2POp(dist.irecv, received, (rank - 1) % size),
            ]
            for work in dist.batch_isend_irecv(operations):
                work.wait()
            buffer = received

    world = SimulatedWorld(5)
    world.run(program)
    moved = 4 * 4 * 16 * 4
    assert world.traffic[Key(2, "send", "forward")] == Volume(4, 4, moved, 0)
    assert world.traffic[Key(2, "recv", "forward")] == Volume(4, 0, 0, moved)


# Faults


def sums(rank: int, size: int) -> float:
    total = ones() * (rank + 1)
    for _ in range(3):
        dist.all_reduce(total)
    return total[0].item()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize(
    ("kind", "finding"), [("raise", "raised"), ("vanish", "vanished"), ("reshape", "mismatch")]
)
def test_a_fault_reaches_every_surviving_rank(kind: str, finding: str, at: int, schedule: int | None) -> None:
    fault = Fault(1, at, kind)
    world = SimulatedWorld(3, schedule, faults=[fault])
    with pytest.raises(SimulationError) as caught:
        world.run(sums)
    assert caught.value.finding == finding
    assert world.fired == [fault]
    assert str(fault) in caught.value.message
    for state in caught.value.ranks:
        if state.rank != 1:
            assert f"CommunicationError: {finding}" in state.detail


def test_a_delay_changes_nothing() -> None:
    world = SimulatedWorld(3, faults=[Fault(0, 1, "delay")])
    assert world.run(sums) == SimulatedWorld(3).run(sums)
    assert world.fired


def test_a_flipped_bit_shows() -> None:
    world = SimulatedWorld(3, faults=[Fault(0, 1, "flip", bit=31)])
    assert world.run(sums)[1] == 18.0
    assert world.unobserved == []
    assert SimulatedWorld(3).run(sums)[1] == 54.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_flipped_bit_that_nobody_looks_at_is_reported(schedule: int | None) -> None:
    def program(rank: int, size: int) -> list[torch.Tensor]:
        parts = [ones() for _ in range(size)]
        dist.all_gather(parts, ones())
        dist.all_reduce(parts[2])
        return parts[1:]

    unseen, seen = Fault(0, 0, "flip", bit=3), Fault(2, 1, "flip", bit=3)
    world = SimulatedWorld(3, schedule, faults=[unseen, seen])
    world.run(program)
    assert set(world.fired) == {unseen, seen}
    assert world.unobserved == [unseen]


# Schedules


def takes_what_comes(rank: int, size: int) -> list[int]:
    if rank == 0:
        return [dist.recv(ones()) for _ in range(size - 1)]
    dist.send(ones(), 0)
    return []


def assumes_an_order(rank: int, size: int) -> None:
    senders = takes_what_comes(rank, size)
    assert senders == sorted(senders)


def test_a_seed_and_a_record_replay_the_run() -> None:
    seen = set()
    for seed in range(20):
        world = SimulatedWorld(4, seed)
        result = world.run(takes_what_comes)[0]
        seen.add(tuple(result))
        assert SimulatedWorld(4, seed).run(takes_what_comes)[0] == result
        assert SimulatedWorld(4, world.schedule_taken).run(takes_what_comes)[0] == result
    assert len(seen) > 3


def test_hypothesis_drives_and_shrinks_the_schedule() -> None:
    failures: list[SimulationError] = []

    @settings(max_examples=200, database=None, deadline=None, phases=[Phase.generate, Phase.shrink])
    @given(st.data())
    def always_in_order(data: st.DataObject) -> None:
        world = SimulatedWorld(3, lambda options: data.draw(st.integers(0, options - 1)))
        try:
            world.run(assumes_an_order)
        except SimulationError as error:
            failures.append(error)
            raise

    with pytest.raises(SimulationError, match="rank 0 raised AssertionError"):
        always_in_order()
    schedules = [failure.schedule for failure in failures]
    assert schedules[-1] == min(schedules, key=lambda schedule: (len(schedule), schedule))
    assert len(schedules[-1]) <= 12
    with pytest.raises(SimulationError, match="AssertionError"):
        SimulatedWorld(3, failures[-1].schedule).run(assumes_an_order)


def test_an_error_of_the_schedule_itself_reaches_the_caller() -> None:
    def refuse(options: int) -> int:
        raise LookupError

    with pytest.raises(LookupError):
        SimulatedWorld(3, refuse).run(receives_nothing)
    assert SimulatedWorld(3).run(lambda rank, size: rank) == [0, 1, 2]


def two_receivers(rank: int, size: int) -> list[int]:
    if rank == 2:
        for target in (0, 1):
            dist.send(ones(), target, tag=1)
        return []
    work = dist.isend(ones(), 1 - rank, tag=1)
    senders = [dist.recv(ones(), tag=1) for _ in range(2)]
    work.wait()
    return senders


@pytest.mark.parametrize(
    ("program", "size", "schedules"),
    [
        (sums, 3, 1),
        (takes_what_comes, 2, 1),
        (takes_what_comes, 3, 2),
        (takes_what_comes, 4, 6),
        (two_receivers, 3, 4),
    ],
)
def test_every_distinct_schedule_is_run_once(
    program: Callable[..., object], size: int, schedules: int
) -> None:
    exploration = SimulatedWorld(size).explore(program)
    assert exploration.schedules == schedules
    assert not exploration.failures


def distinct(outcomes: Sequence[object]) -> set[str]:
    return set(map(repr, outcomes))


@pytest.mark.parametrize("sends", ["rendezvous", "buffered"])
@pytest.mark.parametrize(("program", "size"), [(takes_what_comes, 4), (two_receivers, 3)])
def test_the_distinct_schedules_have_every_outcome_that_interleaving_has(
    program: Callable[..., object], size: int, sends: Literal["rendezvous", "buffered"]
) -> None:
    interleaved = [SimulatedWorld(size, seed, sends=sends).run(program) for seed in range(300)]
    assert distinct(SimulatedWorld(size).explore(program, sends=sends).outcomes) == distinct(interleaved)


def overtakes(rank: int, size: int) -> list[int] | None:
    """Rank 1's message to rank 0 may be overtaken by rank 2's, which was sent because of it."""
    if rank == 0:
        return [dist.recv(ones()) for _ in range(2)]
    if rank == 1:
        dist.send(ones(), 0)
        dist.send(ones(), 2)
    else:
        dist.recv(ones(), 1)
        dist.send(ones(), 0)
    return None


def test_exploring_with_buffered_sends_finds_the_message_that_overtakes() -> None:
    rendezvous = SimulatedWorld(3).explore(overtakes)
    buffered = SimulatedWorld(3).explore(overtakes, sends="buffered")
    assert [outcome[0] for outcome in rendezvous.outcomes] == [[1, 2]]
    assert sorted(outcome[0] for outcome in buffered.outcomes) == [[1, 2], [2, 1]]


def test_exploring_finds_the_one_bad_order() -> None:
    exploration = SimulatedWorld(3).explore(assumes_an_order)
    assert [len(exploration.failures), exploration.schedules] == [1, 2]


def test_exploring_tries_both_answers_to_a_poll() -> None:
    def program(rank: int, size: int) -> bool:
        work = dist.barrier(async_op=True)
        seen = work.is_completed()
        work.wait()
        return seen

    exploration = SimulatedWorld(2).explore(program)
    assert distinct(exploration.outcomes) == distinct([[a, b] for a in (True, False) for b in (True, False)])
