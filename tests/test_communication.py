"""What the losses send, counted in simulated worlds: nothing that their flags say they do not."""

from typing import Any

import pytest
import torch

from verified_losses import ClipLoss, SigLipLoss, siglip
from verified_losses.gather import gather_pair
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.transport import Transport

ROWS, WIDTH, SIZES = 3, 5, (2, 3, 4, 5)
ITEM = torch.float64.itemsize


def _backward(rank: int, size: int, loss_type: type[Any], options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(rank)
    image, text = (
        torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)
    )
    loss_type(rank=rank, world_size=size, **options)(image, text, torch.tensor(2.0)).backward()


def _sent(size: int, loss_type: type[Any], **options: Any) -> dict[tuple[str, str], set[int]]:
    """Return the bytes that the ranks sent, by operation and phase."""
    world = SimulatedWorld(size)
    world.run(_backward, loss_type, options)
    sent: dict[tuple[str, str], set[int]] = {}
    for key, volume in world.traffic.items():
        sent.setdefault((key.operation, key.phase), set()).add(volume.sent)
    return sent


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dist_impl", ["shift", "bidir"])
def test_ring_moves_every_text_once_each_way(size: int, dist_impl: str) -> None:
    sent = _sent(size, SigLipLoss, dist_impl=dist_impl)
    passed = {
        (phase, bytes_) for (name, phase), volumes in sent.items() if "send" in name for bytes_ in volumes
    }
    expected = (size - 1) * ROWS * WIDTH * ITEM
    assert passed == {("forward", expected), ("backward", expected)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dist_impl", ["shift", "bidir"])
def test_texts_come_from_both_sides_at_once(
    size: int, dist_impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for name in ("exchange_with_grad", "exchange_bidir_with_grad"):
        exchange = getattr(siglip, name)
        monkeypatch.setattr(
            siglip, name, lambda *given, call=exchange, name=name: calls.append(name) or call(*given)
        )
    SimulatedWorld(size).run(_backward, SigLipLoss, {"dist_impl": dist_impl})
    both, one = (0, size - 1) if dist_impl == "shift" else divmod(size - 1, 2)
    assert calls.count("exchange_bidir_with_grad") == size * both
    assert calls.count("exchange_with_grad") == size * one


def _forward(rank: int, size: int, dist_impl: str, learns: bool, enabled: bool) -> None:
    image, text = torch.ones(2, ROWS, WIDTH).requires_grad_(learns).unbind()
    with torch.set_grad_enabled(enabled):
        SigLipLoss(rank=rank, world_size=size, dist_impl=dist_impl)(image, text, 2.0)


@pytest.mark.parametrize(("learns", "enabled"), [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("dist_impl", ["shift", "bidir", "reduce"])
def test_texts_travel_with_a_graph_where_they_learn(
    dist_impl: str, learns: bool, enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = []
    for name in ("exchange_with_grad", "exchange_bidir_with_grad", "broadcast_rows"):
        fetch = getattr(siglip, name)
        monkeypatch.setattr(
            siglip, name, lambda *given, call=fetch: recorded.append(torch.is_grad_enabled()) or call(*given)
        )
    SimulatedWorld(3).run(_forward, dist_impl, learns, enabled)
    assert set(recorded) == {learns and enabled}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("convention", ["exact", "open_clip"])
def test_gather_without_gradient_sends_nothing_in_backward(size: int, convention: str) -> None:
    sent = _sent(size, ClipLoss, gather_with_grad=False, convention=convention)
    assert {phase for _, phase in sent} == {"forward"}


@pytest.mark.parametrize("size", SIZES)
def test_gather_with_gradient_sends_in_backward(size: int) -> None:
    sent = _sent(size, ClipLoss, gather_with_grad=True)
    assert {phase for _, phase in sent} == {"forward", "backward"}


@pytest.mark.parametrize(
    ("dist_impl", "expected"),
    [("bidir", "send"), ("shift", "send"), ("reduce", "broadcast"), ("gather", "all_gather_single")],
)
def test_texts_travel_as_asked(dist_impl: str, expected: str) -> None:
    sent = _sent(3, SigLipLoss, dist_impl=dist_impl)
    # the ranks tell one another three numbers besides
    texts = ROWS * WIDTH * ITEM
    assert {name for (name, phase), sizes in sent.items() if phase == "forward" and max(sizes) >= texts} == {
        expected
    }


def _gathered(rank: int, size: int, text_dtype: torch.dtype) -> list[torch.dtype]:
    image = torch.ones(ROWS, WIDTH, dtype=torch.float64)
    transport = Transport(rank, size)
    pair = gather_pair(image, image.to(text_dtype), (ROWS,) * size, False, True, "exact", transport)
    return [features.dtype for features in pair]


@pytest.mark.parametrize(("text_dtype", "messages"), [(torch.float64, 1), (torch.float32, 2)])
def test_features_of_one_dtype_travel_together(text_dtype: torch.dtype, messages: int) -> None:
    world = SimulatedWorld(2)
    assert world.run(_gathered, text_dtype) == [[torch.float64, text_dtype]] * 2
    assert {volume.calls for volume in world.traffic.values()} == {messages}
