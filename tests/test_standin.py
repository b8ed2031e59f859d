"""The stand-in for a GPU behaves as one where tests rely on it."""

import copy

import pytest
import torch

from . import standin

standin.load()
HERE, THERE = "standin:0", "standin:1"


def test_tensors_know_where_they_are() -> None:
    assert str(torch.ones(2, device=HERE).device) == HERE
    assert str(torch.tensor([1.0], device=THERE).exp().device) == THERE
    assert str(torch.ones(2, device="standin").device) == HERE
    torch.accelerator.set_device_index(1)
    try:
        assert str(torch.ones(2, device="standin").device) == THERE
    finally:
        torch.accelerator.set_device_index(0)
    with pytest.raises(RuntimeError, match="no device"):
        torch.ones(2, device="standin:2")


def test_views_share_memory() -> None:
    whole = torch.zeros(3, 4, device=HERE)
    part = whole.t()[1:]
    part.add_(1)
    assert part.stride() == (1, 4)
    assert part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert whole.sum(1).tolist() == [3.0] * 3
    assert str(copy.deepcopy(whole).device) == HERE


def test_derivatives_are_those_of_the_cpu() -> None:
    on_cpu = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    here = on_cpu.detach().to(HERE).requires_grad_()
    for one in (on_cpu, here):
        (gradient,) = torch.autograd.grad((one @ one.T).logsumexp(1).sum(), one, create_graph=True)
        (gradient**2).sum().backward()
    assert here.grad is not None
    assert str(here.grad.device) == HERE
    assert torch.equal(here.grad.cpu(), on_cpu.grad)


@pytest.mark.parametrize("other", ["cpu", THERE])
def test_devices_do_not_mix(other: str) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, 2, device=HERE) @ torch.ones(2, 2, device=other)


def test_a_number_of_the_cpu_is_taken_as_it_is() -> None:
    scale = torch.tensor(3.0, requires_grad=True)
    product = scale * torch.ones(2, device=HERE)
    product.sum().backward()
    assert (str(product.device), scale.grad) == (HERE, torch.tensor(2.0))
