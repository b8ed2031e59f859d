"""What a rank does with a loss inside of torch.func, and with inputs that are subclasses of tensors.

Each returns what a plain call gives, and what the wrapped one gives; gradients that are not there are zeros.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from verified_losses.oracles.complex_step import Array

from .acts import Call, Outcome, backward, run, seen, terms_of, to_array

SCALE = "logit_scale"


def plain(one: Call) -> Outcome:
    """Return what a plain call and its backward give."""
    given = one.given()
    return filled_up(run(one, one.build(), given), given)


def filled_up(outcome: Outcome, given: dict[str, torch.Tensor]) -> Outcome:
    """Return an outcome with zeros for gradients that are not there, as torch.func has them."""
    gradients: dict[str, Array | None] = {
        name: to_array(torch.zeros(given[name].shape)) if value is None else value
        for name, value in outcome.gradients.items()
    }
    return replace(outcome, gradients=gradients)


def derive_functionally(calls: list[Call]) -> list[Outcome]:
    """Derive a call by `torch.func.vjp`, which `torch.func.grad` is with a cotangent of 1."""
    one = calls[0]
    loss, given = one.build(), one.given()
    leaves = {name: value.detach() for name, value in given.items() if value.requires_grad}
    if not leaves:
        return [plain(one)] * 2
    transformed: Any = torch.func.vjp(lambda moved: terms_of(one, loss, {**given, **moved}), leaves)
    terms, derive = transformed
    # made outside of the transform: what is made inside belongs to it
    (derived,) = derive({name: one.cotangent(name, term) for name, term in terms.items()})
    outcome = seen(terms, given)
    outcome.gradients |= {name: to_array(value) for name, value in derived.items()}
    return [plain(one), filled_up(outcome, given)]


def map_over_scales(calls: list[Call]) -> list[Outcome]:
    """Call with three scales at once, by `torch.vmap`; derive the second of them, which is the given one."""
    one = calls[0]
    loss, given = one.build(), one.given()
    own = given[SCALE]
    scales = torch.stack([own / 2, own, own * 0.75]).detach().requires_grad_(own.requires_grad)
    mapped = torch.vmap(lambda scale: terms_of(one, loss, {**given, SCALE: scale}))(scales)
    terms = {name: term[1] for name, term in mapped.items()}
    backward(one, terms)
    outcome = seen(terms, given)
    if scales.grad is not None:
        outcome.gradients[SCALE] = to_array(scales.grad[1])
    return [plain(one), filled_up(outcome, given)]


class Subclass(torch.Tensor):
    """A tensor that functions of torch make others of its kind of."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result: Any = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return result


def run_subclassed(calls: list[Call]) -> list[Outcome]:
    """Call with matrices of a subclass, and with scalars and vectors that are parameters."""
    one = calls[0]
    given: dict[str, torch.Tensor] = one.given()
    for name, value in given.items():
        if value.is_floating_point() and value.ndim < 2:
            given[name] = nn.Parameter(value.detach(), value.requires_grad)
        elif value.is_floating_point():
            given[name] = value.detach().as_subclass(Subclass).requires_grad_(value.requires_grad)
    return [plain(one), filled_up(run(one, one.build(), given), given)]


def run_replicated(calls: list[Call]) -> list[Outcome]:
    """Call with DTensors that are replicated over a mesh of one rank."""
    # a second and more, which nobody else is to wait for
    from torch._C._distributed_c10d import HashStore
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate

    one = calls[0]
    before = plain(one)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        given: dict[str, torch.Tensor] = {
            name: DTensor.from_local(value.detach(), mesh, [Replicate()], run_check=False).requires_grad_(
                value.requires_grad
            )
            for name, value in one.given().items()
        }
        terms = terms_of(one, one.build(), given)
        terms = {name: whole(term) for name, term in terms.items()}
        backward(one, terms)
        floating = {name: value for name, value in given.items() if value.is_floating_point()}
        gradients = {
            name: None if value.grad is None else to_array(whole(value.grad))
            for name, value in floating.items()
        }
        values = {name: to_array(term) for name, term in terms.items()}
        return [before, filled_up(Outcome("", values, {}, gradients), given)]
    finally:
        dist.destroy_process_group()


def whole(value: Any) -> Any:
    """Return a DTensor as a plain tensor."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
