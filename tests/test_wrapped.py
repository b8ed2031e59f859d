"""Losses inside of torch.func, and with inputs that are subclasses of tensors."""

import pytest
import torch
from torch.distributed.tensor import DTensor

from verified_losses import ClipLoss, SigLipLoss, checks, fused_linear_cross_entropy
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify import certifier, limits
from verified_losses.properties.verify.certifier import Finding, judged, verify
from verified_losses.properties.worlds.specs import parse

from .defects.index import MAPPED, REPLICATED, SUBCLASSED
from .test_losses import KINDS, batch, make

X = torch.eye(2)


def found(target: str, law: str, **settings: bool) -> Finding:
    contract, subject = SHIPPED.get(target, ("clip", Subject(f"tests.defects.{target}", **settings)))
    planned = certifier.checks({target: (contract, subject)}, parse("1"))
    (check,) = [one for one in planned if one.law.name == law]
    return judged(verify(check, 10), 10)


def test_what_raises_is_a_limit_and_says_why() -> None:
    finding = found("wrapped:ReadsItsScale", MAPPED)
    assert (finding.verdict, finding.limit) == ("limit", limits.RAISING_TRANSFORMS)
    assert finding.reason.startswith("RuntimeError: vmap: ")
    finding = found("wrapped:TakesPlainTensorsAlone", SUBCLASSED)
    assert (finding.verdict, finding.limit) == ("limit", limits.RAISING_SUBCLASSES)
    assert finding.reason == "TypeError: features: expected a plain tensor, got Subclass"
    assert finding.counterexample
    assert limits.dtypes_of(finding.limit) == ()


def test_what_raises_is_no_defect_of_those_that_are_judged_strictly_either() -> None:
    finding = found("wrapped:TakesPlainTensorsAlone", SUBCLASSED, strict=True)
    assert (finding.verdict, finding.limit) == ("skipped", "")
    assert finding.reason == "TypeError: features: expected a plain tensor, got Subclass"


def test_a_refusal_must_name_what_is_refused() -> None:
    stated = {"strict": True, "stated": True}
    assert found("wrapped:TakesPlainTensorsAlone", SUBCLASSED, **stated).verdict == "falsified"
    assert found("wrapped:TakesPlainTensorsAlone", REPLICATED, **stated).verdict == "holds"


@pytest.mark.parametrize("kind", KINDS)
def test_dtensors_are_named(kind: str) -> None:
    # no group of ranks is needed for one that is but named so
    for name, value in batch(kind).items():
        if torch.is_tensor(value):
            named = value.detach().as_subclass(type("DTensor", (torch.Tensor,), {}))
            with pytest.raises(TypeError, match=f"^{name}: expected a plain tensor, got a DTensor: give its"):
                make(kind)(**batch(kind) | {name: named})


def test_the_name_of_dtensors_is_that_of_torch() -> None:
    assert DTensor.__name__ == "DTensor"
    assert hasattr(DTensor, "full_tensor")


def test_tiles_are_not_for_torch_func() -> None:
    for loss in (ClipLoss, SigLipLoss):
        with pytest.raises(TypeError, match=r"^implementation: 'streamed' is not for torch\.func: use"):
            torch.func.grad(lambda x, loss=loss: loss(implementation="streamed")(x, X, 1.0))(X)
    assert not checks.is_in_func()


def test_tokens_are_dense_inside_of_torch_func() -> None:
    labels = torch.tensor([0, 1])
    torch.func.grad(lambda x: fused_linear_cross_entropy(x, X, labels))(X)
