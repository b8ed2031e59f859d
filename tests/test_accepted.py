"""Which arguments a target is given, however it names them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import accepted, contracts, entry
from verified_losses.properties.running import read_signature
from verified_losses.properties.subjects import Subject

OFFERED = {"local_loss": True, "rank": 0, "convention": "exact", "slope": 3}


class _Named:
    def __init__(self, local_loss: bool = False, rank: int = 0) -> None: ...

    def __call__(self, image_features: Any, output_dict: bool = False) -> None: ...


class _PassesOn(_Named):
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> None: ...


class _AddsOne(_PassesOn):
    def __init__(self, slope: int, **kwargs: Any) -> None: ...


class _Empty(_AddsOne):
    pass


class _Open(nn.Module):
    def __init__(self, **kwargs: Any) -> None: ...

    def forward(self, image_features: Any, **kwargs: Any) -> None: ...


class _OpenWithConvention(_Open):
    def __init__(self, convention: str, **kwargs: Any) -> None: ...


class _Bare(nn.Module):
    def forward(self) -> None: ...


def _decorated(target: Any) -> Any:
    @functools.wraps(target)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)

    return wrapper


@dataclasses.dataclass
class _Data:
    rank: int = 0
    other: int = 1


def _make(**kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (_Named, ["local_loss", "rank"]),
        (_PassesOn, ["local_loss", "rank"]),
        (_AddsOne, ["local_loss", "rank", "slope"]),
        (_Empty, ["local_loss", "rank", "slope"]),
        (_Open, ["local_loss", "rank", "slope"]),
        (_OpenWithConvention, [*OFFERED]),
        (_Bare, []),
        (_make, ["local_loss", "rank", "slope"]),
        (lambda rank: None, ["rank"]),
        (_decorated(_PassesOn), ["local_loss", "rank"]),
        (_decorated(_Bare), []),
        (functools.partial(_Empty, slope=3), ["local_loss", "rank", "slope"]),
        (functools.partial(_decorated(_PassesOn)), ["local_loss", "rank"]),
        (_Data, ["rank"]),
    ],
)
def test_a_target_is_given_what_it_or_its_bases_name(target: Callable[..., Any], names: list[str]) -> None:
    assert [*accepted(target, OFFERED)] == names


@pytest.mark.parametrize(
    ("loss", "names"),
    [
        (_Named(), ["image_features", "output_dict"]),
        (_PassesOn(), ["image_features", "output_dict"]),
        (_make, ["image_features", "text_features"]),
    ],
)
def test_a_call_is_given_what_the_loss_or_its_bases_name(loss: Any, names: list[str]) -> None:
    offered = dict.fromkeys(("image_features", "text_features", "logit_bias", "output_dict"))
    assert [*accepted(entry(loss), offered, contracts()["clip"].optional)] == names


class _IgnoresTheRest(nn.Module):
    def forward(self, image_features: Any, text_features: Any, logit_scale: Any, **ignored: Any) -> None: ...


def test_what_a_forward_may_ignore_is_not_asked_of_it() -> None:
    subject = Subject("tests.test_accepted:_IgnoresTheRest")
    seen = read_signature(0, 1, subject, contracts()["clip"], Case())
    assert (seen.unusable, seen.bias, seen.output_dict) == ("", False, False)


def test_a_forward_that_names_nothing_does_without_what_is_optional() -> None:
    loss = _Open.__new__(_Open)
    nn.Module.__init__(loss)
    offered = dict.fromkeys(("image_features", "text_features", "logit_bias", "output_dict"))
    for forward in (entry(loss), entry(torch.compile(loss, backend="eager"))):
        assert [*accepted(forward, offered, contracts()["clip"].optional)] == [*offered][:2]
        assert [*accepted(forward, offered, contracts()["siglip"].optional)] == [*offered][:3]
