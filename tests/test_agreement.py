"""How often ranks talk about arguments, and over what."""

import copy

import pytest
import torch
import torch.distributed as dist

from tests.test_losses import KINDS, batch, make
from tests.test_transport import over_nccl
from verified_losses import ClipLoss, CoCaLoss
from verified_losses.checks import AGREE
from verified_losses.properties.worlds.processes import shared_world
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.transport import Transport


def forwards(rank, size, kind, options, shapes):
    loss = make(kind, rank, size, **options)
    with torch.no_grad():
        return [float(sum(loss(**batch(kind, rank, rows), output_dict=True).values())) for rows in shapes]


def calls(kind, agree, shapes, **options):
    """Return each rank's number of collectives, and the losses."""
    world = SimulatedWorld(3)
    values = world.run(forwards, kind, {"agree": agree, **options}, shapes)
    return sum(volume.calls for volume in world.traffic.values()) / 3, values


@pytest.mark.parametrize("kind", KINDS)
def test_once_is_once_for_each_shape(kind):
    for shapes, more in (([2], 0), ([2, 2, 2, 2], 3), ([2, 3, 2, 3], 2)):
        (always, expected), (once, found) = (calls(kind, agree, shapes) for agree in ("always", "once"))
        # the numbers of tokens differ from batch to batch
        assert always - once == (0 if kind == "coca" else more)
        assert found == expected


def uneven(rank, size, agree, calls):
    loss = make("clip", rank, size, agree=agree)
    return [loss(**batch("clip", rank, rows[rank])).item() for rows in calls]


def test_once_takes_the_other_ranks_to_have_what_they_had():
    # the documented rule, kept, and broken at the third call as the page of the loss says
    for calls, wrong in (([(3, 2), (5, 5), (3, 2), (5, 5)], []), ([(3, 2), (2, 3), (3, 3)], [2])):
        for expected, found in zip(
            *(SimulatedWorld(2).run(uneven, agree, calls) for agree in AGREE), strict=True
        ):
            assert [k for k in range(len(calls)) if found[k] != expected[k]] == wrong


def test_captions_of_weight_zero_are_agreed_on_once():
    def program(rank, size, agree):
        loss = CoCaLoss(0.0, 1.0, rank=rank, world_size=size, agree=agree)
        return [loss(**batch("coca", rank))[0].item() for _ in range(3)]

    worlds = {agree: SimulatedWorld(2) for agree in ("always", "once")}
    values = [world.run(program, agree) for agree, world in worlds.items()]
    always, once = (sum(volume.calls for volume in world.traffic.values()) for world in worlds.values())
    assert always - once == 2 * 2
    assert values[0] == values[1]


def count_tokens_anew(rank, size):
    loss = CoCaLoss(1.0, 0.0, rank=rank, world_size=size, agree="once")
    inputs = batch("coca", rank)
    values = []
    for pads in (0, 1):
        labels = torch.ones_like(inputs["labels"])
        labels[:, :pads] = 0
        values.append(
            (loss(**inputs | {"labels": labels})[1].item(), make_caption(inputs, labels, size, pads))
        )
    return values


def make_caption(inputs, labels, size, pads):
    logits = inputs["logits"].detach().flatten(0, 1)
    total = torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=0, reduction="sum")
    return (size * total / (size * labels.shape[0] * (labels.shape[1] - pads))).item()


def test_tokens_are_counted_at_each_call():
    for values in SimulatedWorld(2).run(count_tokens_anew):
        assert all(value == expected for value, expected in values)
        assert values[0] != values[1]


def wrong_at_first(rank, size):
    loss = ClipLoss(rank=rank, world_size=size, agree="once")
    inputs = batch("clip", rank)
    with pytest.raises(
        TypeError, match=r"(rank 1 raised TypeError: )?text_features: expected a torch.Tensor"
    ):
        loss(**inputs | ({"text_features": None} if rank == 1 else {}))
    return loss(**inputs).item()


def test_what_is_wrong_in_a_first_call_raises_everywhere():
    assert len(SimulatedWorld(2).run(wrong_at_first)) == 2


def wrong_later(rank, size):
    loss = ClipLoss(rank=rank, world_size=size, agree="once")
    inputs = batch("clip", rank)
    loss(**inputs)
    with pytest.raises(TypeError, match=r"^text_features: expected a torch.Tensor"):
        loss(**inputs | {"text_features": None})
    return loss(**inputs).item()


def test_what_is_wrong_in_a_later_call_is_not_talked_about():
    world = SimulatedWorld(2)
    world.run(wrong_later)
    # an agreement, and the features twice
    assert {volume.calls for volume in world.traffic.values()} == {3}


def test_unknown_ways_to_agree_are_named():
    for kind in KINDS:
        with pytest.raises(ValueError, match="agree: expected one of 'always', 'once', got 'never'"):
            make(kind, agree="never")
        assert "agree='once'" in repr(make(kind, agree="once"))


def agree_beside(rank, size, kind, options):
    loss = make(kind, rank, size, **options)
    first = loss(**batch(kind, rank))
    again = copy.deepcopy(loss)(**batch(kind, rank))  # agrees over a group of its own
    return type(first) is type(again)


@pytest.mark.parametrize("agree", ["always", "once"])
@pytest.mark.parametrize("kind", KINDS)
def test_over_nccl_ranks_agree_on_the_host(kind, agree, monkeypatch):
    devices = over_nccl(monkeypatch)
    monkeypatch.setattr(dist, "get_backend", lambda group=None: "nccl" if group is None else "gloo")
    assert all(SimulatedWorld(3).run(agree_beside, kind, {"agree": agree}))
    assert "cuda" not in devices


def talk_beside(rank, size):
    get_backend = dist.get_backend
    dist.get_backend = lambda group=None: "nccl" if group is None else get_backend(group)
    try:
        host = Transport(rank, size).on_host()
    finally:
        dist.get_backend = get_backend
    found = host.all_gather_numbers([rank]), dist.get_backend(host.group), host.place()
    dist.destroy_process_group(host.group)
    return found


def test_a_group_beside_another_in_processes():
    for rank, found in enumerate(shared_world(2).run(talk_beside)):
        assert found == ([[0], [1]], "gloo", (rank, 2))


def agree_in_groups(rank, size, members):
    groups = [dist.new_group(ranks) for ranks in members]
    for ranks, group in zip(members, groups, strict=True):
        if rank in ranks:
            place = dist.get_rank(group)
            loss = make("clip", place, len(ranks), group=group)
            return [loss(**batch("clip", rank)).item() for _ in range(2)]
    return []


def test_over_nccl_the_ranks_of_a_group_agree_by_themselves(monkeypatch):
    devices = over_nccl(monkeypatch)
    backends = {}
    new_group = dist.new_group

    def made(*given, **options):
        group = new_group(*given, **options)
        backends[id(group)] = options.get("backend", "nccl")
        return group

    monkeypatch.setattr(dist, "new_group", made)
    monkeypatch.setattr(dist, "get_backend", lambda group=None: backends.get(id(group), "nccl"))
    one, _, *others = SimulatedWorld(4).run(agree_in_groups, [[0, 2], [3]])
    assert len(one) == 2
    assert one == others[0]
    assert "cuda" not in devices


def test_without_gloo_ranks_agree_on_the_gpu(monkeypatch):
    devices = over_nccl(monkeypatch)
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    SimulatedWorld(2).run(forwards, "clip", {}, [2])
    assert "cuda" in devices
