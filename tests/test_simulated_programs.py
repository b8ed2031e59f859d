"""Drawn correct programs: never accused under any schedule, and bitwise what gloo computes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import _functional_collectives as collectives

from verified_losses import ClipLoss, SigLipLoss
from verified_losses.properties.worlds.processes import ProcessWorld
from verified_losses.properties.worlds.simulated import Fault, SimulatedWorld, SimulationError

EXAMPLES = settings.default.max_examples if settings.default else 100
"""A profile with max_examples=100_000 makes this the nightly run."""

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")


class Step(NamedTuple):
    """One communication. `number` picks a root, a distance, an order, members: whatever the kind needs."""

    kind: str
    number: int
    later: bool
    """Start it asynchronously, and compute something else before the wait."""


class Case(NamedTuple):
    size: int
    dtype: str
    strided: bool
    seed: int
    steps: list[Step]


TORCH_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
REDUCE_OPS = ["SUM", "PRODUCT", "MIN", "MAX"]
PLAIN = [
    "all_reduce",
    "all_gather",
    "all_gather_single",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "broadcast",
    "gather",
    "scatter",
    *["all_to_all"] * (TORCH_VERSION >= (2, 12)),  # gloo of torch 2.11 has none of lists
    "all_to_all_single",
    "barrier",
    "objects",
    "group",
]
MESSAGES = ["ring", "both_ways", "pairs", "any_source", "self_less_batch"]
GRADIENTS = ["grad_gather", "grad_reduce", "grad_broadcast", "grad_reduce_scatter", "grad_exchange"]
FUNCTIONAL = ["functional"]
"""Apart, because its first call imports torch's compiler, for seconds in every process."""


@st.composite
def cases(draw: st.DrawFn, sizes: tuple[int, ...] = (1, 2, 3, 4), functional: bool = True) -> Case:
    """Values stay small integers, so that sums are exact in any order and comparison can be bitwise."""
    size = draw(st.sampled_from(sizes))
    dtype = draw(st.sampled_from(["float32", "float64", "bfloat16", "int64"]))
    kinds = PLAIN + (MESSAGES if size > 1 else [])
    if dtype.startswith("float"):
        kinds = kinds + GRADIENTS + (FUNCTIONAL if functional else [])
    step = st.builds(Step, st.sampled_from(kinds), st.integers(0, 11), st.booleans())
    steps = draw(st.lists(step, min_size=1, max_size=5))
    return Case(size, dtype, draw(st.booleans()), draw(st.integers(0, 99)), steps)


def run_case(rank: int, size: int, case: Case) -> np.ndarray:
    """Run the steps on a tensor that differs by rank; each step makes the next one's input."""
    dtype = getattr(torch, case.dtype)
    tensor = (
        (torch.arange(12 * size) * (rank + 2) + case.seed + rank).remainder(3).reshape(3 * size, 4).to(dtype)
    )
    for index, step in enumerate(case.steps):
        if case.strided:
            tensor = tensor.t().contiguous().t()
        result = globals()[f"_{step.kind}"](tensor, rank, size, step, index)
        assert result.shape == tensor.shape, step
        tensor = result.detach().to(dtype).remainder(3)
    return tensor.double().numpy()


def _finish(step: Step, work: dist.Work | None, tensor: torch.Tensor) -> None:
    if work is not None:
        (tensor * 2).sum()  # The input may be read while it is in flight.
        work.wait()


def _op(step: Step) -> dist.ReduceOp.RedOpType:
    return getattr(dist.ReduceOp, REDUCE_OPS[step.number % 4])


def _like(tensor: torch.Tensor, count: int) -> list[torch.Tensor]:
    return [torch.empty_like(tensor) for _ in range(count)]


def _weighted(parts: list[torch.Tensor]) -> torch.Tensor:
    return sum((part * (place + 1) for place, part in enumerate(parts)), torch.zeros_like(parts[0]))


def _all_reduce(tensor, rank, size, step, index):
    total = tensor.clone()
    work = dist.all_reduce(total, op=_op(step), async_op=step.later)
    _finish(step, work, tensor)
    return total


def _all_gather(tensor, rank, size, step, index):
    parts = _like(tensor, size)
    _finish(step, dist.all_gather(parts, tensor, async_op=step.later), tensor)
    return _weighted(parts)


def _all_gather_single(tensor, rank, size, step, index):
    whole = torch.empty(size * tensor.shape[0], *tensor.shape[1:], dtype=tensor.dtype)
    _finish(step, dist.all_gather_into_tensor(whole, tensor, async_op=step.later), tensor)
    return _weighted(list(whole.chunk(size)))


def _reduce(tensor, rank, size, step, index):
    total, root = tensor.clone(), step.number % size
    _finish(step, dist.reduce(total, root, op=_op(step), async_op=step.later), tensor)
    return total if rank == root else tensor


def _reduce_scatter(tensor, rank, size, step, index):
    output = torch.empty_like(tensor)
    inputs = [tensor + place for place in range(size)]
    _finish(step, dist.reduce_scatter(output, inputs, op=_op(step), async_op=step.later), tensor)
    return output


def _reduce_scatter_single(tensor, rank, size, step, index):
    output = torch.empty(3, 4, dtype=tensor.dtype)
    _finish(step, dist.reduce_scatter_tensor(output, tensor, op=_op(step), async_op=step.later), tensor)
    return output.repeat(size, 1)


def _broadcast(tensor, rank, size, step, index):
    copy = tensor.clone()
    _finish(step, dist.broadcast(copy, step.number % size, async_op=step.later), tensor)
    return copy


def _gather(tensor, rank, size, step, index):
    root = step.number % size
    parts = _like(tensor, size) if rank == root else None
    _finish(step, dist.gather(tensor, parts, root, async_op=step.later), tensor)
    return tensor if parts is None else _weighted(parts)


def _scatter(tensor, rank, size, step, index):
    root, output = step.number % size, torch.empty_like(tensor)
    parts = [tensor + place for place in range(size)] if rank == root else None
    _finish(step, dist.scatter(output, parts, root, async_op=step.later), tensor)
    return output


def _all_to_all(tensor, rank, size, step, index):
    parts, inputs = _like(tensor, size), [tensor + place for place in range(size)]
    _finish(step, dist.all_to_all(parts, inputs, async_op=step.later), tensor)
    return _weighted(parts)


def _all_to_all_single(tensor, rank, size, step, index):
    """Rank i sends (i + j + number) % 2 + 1 rows to rank j."""
    sent = [(rank + place + step.number) % 2 + 1 for place in range(size)]
    rows = tensor.repeat(2, 1)[: sum(sent)].contiguous()
    output = torch.empty(sum(sent), 4, dtype=tensor.dtype)
    _finish(step, dist.all_to_all_single(output, rows, sent, sent, async_op=step.later), tensor)
    return tensor + output.sum(0)


def _barrier(tensor, rank, size, step, index):
    _finish(step, dist.barrier(async_op=step.later), tensor)
    return tensor


def _objects(tensor, rank, size, step, index):
    found: list[object] = [None] * size
    dist.all_gather_object(found, {"rank": rank, "text": "x" * (rank * step.number)})
    return tensor + sum(entry["rank"] * len(entry["text"]) for entry in found)


def _group(tensor, rank, size, step, index):
    members = [place for place in range(size) if (step.number + 1) >> place & 1] or [0]
    group, total = dist.new_group(members), tensor.clone()
    if rank in members:
        _finish(step, dist.all_reduce(total, group=group, async_op=step.later), tensor)
    return total


def _batch(operations: list[dist.P2POp], step: Step, tensor: torch.Tensor) -> None:
    if step.number % 2:
        operations.reverse()
    works = dist.batch_isend_irecv(operations)
    (tensor * 2).sum()
    for work in reversed(works) if step.later else works:
        work.wait()


def _ring(tensor, rank, size, step, index):
    distance, tensor = 1 + step.number % (size - 1), tensor.contiguous()
    received = torch.empty_like(tensor)
    send = dist.P2POp(dist.isend, tensor, (rank + distance) % size)
    _batch([send, dist.P2POp(dist.irecv, received, (rank - distance) % size)], step, tensor)
    return received


def _both_ways(tensor, rank, size, step, index):
    tensor, left, right = tensor.contiguous(), (rank - 1) % size, (rank + 1) % size
    from_left, from_right = _like(tensor, 2)
    up = tensor + 1
    operations = [
        dist.P2POp(dist.isend, up, right, tag=1),
        dist.P2POp(dist.isend, tensor, left, tag=2),
        dist.P2POp(dist.irecv, from_left, left, tag=1),
        dist.P2POp(dist.irecv, from_right, right, tag=2),
    ]
    _batch(operations, step, tensor)
    return from_left + 2 * from_right


def _self_less_batch(tensor, rank, size, step, index):
    """Everyone to everyone else, in one batch."""
    tensor, others = tensor.contiguous(), [place for place in range(size) if place != rank]
    received = {place: torch.empty_like(tensor) for place in others}
    operations = [dist.P2POp(dist.isend, tensor, place) for place in others]
    _batch(operations + [dist.P2POp(dist.irecv, received[place], place) for place in others], step, tensor)
    return sum((part * (place + 1) for place, part in received.items()), tensor)


def _pairs(tensor, rank, size, step, index):
    """Blocking: the even rank of a pair sends first, so no send needs a buffer."""
    partner, tensor = rank ^ 1, tensor.contiguous()
    received = torch.empty_like(tensor)
    if partner >= size:
        return tensor
    if rank % 2:
        dist.recv(received, partner)
        dist.send(tensor, partner)
    else:
        dist.send(tensor, partner)
        dist.recv(received, partner)
    return received


def _any_source(tensor, rank, size, step, index):
    """What arrives is summed, so the order cannot tell; the tag keeps later steps out."""
    root, tensor = step.number % size, tensor.contiguous()
    if rank != root:
        dist.send(tensor, root, tag=100 + index)
        return tensor
    total, received = tensor.clone(), torch.empty_like(tensor)
    for _ in range(size - 1):
        dist.recv(received, tag=100 + index)
        total += received
    return total


def _gradient(tensor, step, outputs):
    leaf = tensor.detach().clone().requires_grad_()
    parts = outputs(leaf)
    sum((part * (place + step.number) * part).sum() for place, part in enumerate(parts)).backward()
    return leaf.grad


def _grad_gather(tensor, rank, size, step, index):
    return _gradient(tensor, step, functional.all_gather)


def _grad_reduce(tensor, rank, size, step, index):
    return _gradient(tensor, step, lambda leaf: [functional.all_reduce(leaf)])


def _grad_broadcast(tensor, rank, size, step, index):
    return _gradient(tensor, step, lambda leaf: [functional.broadcast(leaf, step.number % size)])


def _grad_reduce_scatter(tensor, rank, size, step, index):
    def outputs(leaf):
        inputs = [leaf * place for place in range(1, size + 1)]
        return [functional.reduce_scatter(torch.empty_like(leaf), inputs)]

    return _gradient(tensor, step, outputs)


def _grad_exchange(tensor, rank, size, step, index):
    def outputs(leaf):
        received = _like(tensor.contiguous(), size)
        return functional.all_to_all(received, [leaf * place for place in range(1, size + 1)])

    return _gradient(tensor, step, outputs)


def _functional(tensor, rank, size, step, index):
    def outputs(leaf):
        whole = collectives.all_gather_tensor_autograd(leaf.contiguous(), 0, dist.group.WORLD)
        mine = collectives.reduce_scatter_tensor_autograd(whole, "sum", 0, dist.group.WORLD)
        return [mine, collectives.all_reduce(tensor, "sum", dist.group.WORLD)]

    return _gradient(tensor, step, outputs)


def expected(case: Case) -> list[np.ndarray]:
    return SimulatedWorld(case.size, sends="buffered").run(run_case, case)


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=EXAMPLES, deadline=None)
@given(cases(), st.integers(0, 2**32), st.sampled_from(["rendezvous", "buffered", "drawn"]))
def test_a_correct_program_is_never_accused(case: Case, seed: int, sends: str) -> None:
    assert_same(SimulatedWorld(case.size, seed, sends=sends).run(run_case, case), expected(case))


@settings(max_examples=max(1, EXAMPLES // 4), deadline=None)
@given(cases(), st.data())
def test_no_schedule_that_hypothesis_draws_accuses_it(case: Case, data: st.DataObject) -> None:
    world = SimulatedWorld(case.size, lambda options: data.draw(st.integers(0, options - 1)), sends="drawn")
    assert_same(world.run(run_case, case), expected(case))


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    cases(sizes=(2, 3, 4)),
    st.integers(0, 2**32),
    st.builds(
        Fault,
        st.integers(0, 3),
        st.integers(0, 9),
        st.sampled_from(["raise", "vanish", "delay", "flip", "reshape"]),
        st.integers(0, 999),
    ),
)
def test_a_fault_is_reported_or_changes_nothing(case: Case, seed: int, fault: Fault) -> None:
    world = SimulatedWorld(case.size, seed, faults=[fault])
    outcome = outcome_of(world, case)
    if isinstance(outcome, SimulationError):
        # A flipped size of a pickled object makes the object unreadable.
        findings = {"raise": "raised", "vanish": "vanished", "reshape": "mismatch", "flip": "raised"}
        assert world.fired == [fault]
        assert outcome.finding == findings.get(fault.kind)
        assert all(state.detail or state.state == "returned" for state in outcome.ranks)
    else:
        assert not (world.fired and fault.kind in ("raise", "vanish"))
        same = all(
            one.tobytes() == other.tobytes() for one, other in zip(outcome, expected(case), strict=True)
        )
        assert same == (world.unobserved == world.fired or fault.kind == "delay")


def outcome_of(world: SimulatedWorld, case: Case) -> list[np.ndarray] | SimulationError:
    try:
        return world.run(run_case, case)
    except SimulationError as error:
        return error


POOLS = (2, 3, 4)


@pytest.fixture(scope="module", params=POOLS)
def processes(request: pytest.FixtureRequest) -> Iterator[ProcessWorld]:
    world = ProcessWorld(request.param)
    yield world
    world.close()


def test_drawn_programs_compute_what_gloo_computes(processes: ProcessWorld) -> None:
    @settings(max_examples=max(1, EXAMPLES // 4), deadline=None)
    @given(cases(sizes=(processes.size,), functional=processes.size == 2), st.integers(0, 2**32))
    def compare(case: Case, seed: int) -> None:
        simulated = SimulatedWorld(case.size, seed, backend="gloo").run(run_case, case)
        assert_same(simulated, processes.run(run_case, case))

    compare()


@pytest.mark.parametrize(
    ("processes", "kind"),
    [
        (size, kind)
        for size in POOLS
        # functional collectives are compared at 2 ranks
        for kind in PLAIN + MESSAGES + GRADIENTS + (FUNCTIONAL if size == 2 else [])
    ],
    indirect=["processes"],
)
def test_every_operation_computes_what_gloo_computes(processes: ProcessWorld, kind: str) -> None:
    for dtype in ("float32",) if kind in GRADIENTS + FUNCTIONAL else ("float32", "bfloat16", "int64"):
        for strided, later, number in (
            (False, False, 0),
            (True, True, 1),
            (True, False, 2),
            (False, True, 3),
        ):
            case = Case(processes.size, dtype, strided, 7 * number, [Step(kind, number, later)])
            simulated = SimulatedWorld(case.size, number, backend="gloo").run(run_case, case)
            assert_same(simulated, processes.run(run_case, case))


def real_sums(rank: int, size: int, seed: int) -> list[np.ndarray]:
    """Sums of two arbitrary floats have one rounding, so one value."""
    tensor = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed + rank))
    total, mine = tensor.clone(), torch.empty(3)
    dist.all_reduce(total)
    dist.reduce_scatter_tensor(mine, tensor[:size].reshape(-1).contiguous())
    leaf = tensor.clone().requires_grad_()
    torch.cat(functional.all_gather(leaf)).pow(2).sum().backward()
    return [total.numpy(), mine.numpy(), leaf.grad.numpy()]


# the order of a longer sum is the backend's
@pytest.mark.parametrize("processes", [2], indirect=True)
def test_sums_of_two_floats_are_bitwise_those_of_gloo(processes: ProcessWorld) -> None:
    for seed in range(0, 40, 2):
        simulated = SimulatedWorld(2, backend="gloo").run(real_sums, seed)
        for one, other in zip(simulated, processes.run(real_sums, seed), strict=True):
            assert_same(one, other)


def loss_and_gradients(
    rank: int, size: int, kind: str, options: dict[str, object], rows: list[int]
) -> list[np.ndarray]:
    """A loss of this repository on rows[rank] pairs of random features."""
    generator = torch.Generator().manual_seed(rank)
    drawn = torch.randn(2, rows[rank], 8, generator=generator)
    image, text = (part.clone().requires_grad_() for part in torch.nn.functional.normalize(drawn, dim=-1))
    scale = torch.tensor(10.0, requires_grad=True)
    if kind == "clip":
        value = ClipLoss(rank=rank, world_size=size, **options)(image, text, scale)
    else:
        bias = torch.tensor(-3.0, requires_grad=True)
        value = SigLipLoss(rank=rank, world_size=size, **options)(image, text, scale, bias)
    value.backward()
    return [tensor.detach().numpy() for tensor in (value, image.grad, text.grad, scale.grad)]


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("clip", {}),
        ("clip", {"gather_with_grad": True}),
        ("clip", {"local_loss": True, "gather_with_grad": True}),
        *(("siglip", {"dist_impl": name}) for name in ("bidir", "shift", "reduce", "gather")),
    ],
)
def test_the_losses_are_those_of_gloo(
    processes: ProcessWorld, kind: str, options: dict[str, object], even: bool
) -> None:
    """Bitwise, unless a sum of three or more parts has been taken in gloo's order."""
    size = processes.size
    rows = [3] * size if even else [1 + 2 * (rank % 2) for rank in range(size)]
    found = processes.run(loss_and_gradients, kind, options, rows)
    for schedule in (None, 0, 1):
        simulated = SimulatedWorld(size, schedule, backend="gloo")
        wanted = simulated.run(loss_and_gradients, kind, options, rows)
        reduced = any("reduce" in key.operation for key in simulated.traffic)
        # Rows have unit length; each of at most sum(rows) pairs pulls on a row with at most the scale, from
        # each rank and in both directions. Two orders of a sum of `size` parts differ by 2 gamma of them.
        unit = np.finfo(np.float32).eps / 2
        gamma = (size - 1) * unit / (1 - (size - 1) * unit)
        bound = 2 * gamma * 2 * 10.0 * sum(rows) * size if reduced and size > 2 else 0.0
        for one, other in zip(flattened(wanted), flattened(found), strict=True):
            assert np.abs(one - other).max() <= bound


def flattened(ranks: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [array for arrays in ranks for array in arrays]
