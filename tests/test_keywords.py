"""What a function reads of its **kwargs."""

from typing import Any

import pytest

from verified_losses.properties.contracts import accepted
from verified_losses.properties.forms_known import calls, parameters_of
from verified_losses.properties.keywords import keywords_read


class Popped:
    def __init__(self, **kwargs: Any) -> None:
        self.tau = kwargs.pop("tau", 0.1)
        self.rows = kwargs["rows"]
        if "eps" in kwargs:
            self.eps = kwargs["eps"]
        if not kwargs.keys() <= {"rows", "eps"}:
            raise TypeError(f"unexpected {sorted(kwargs)}")


class Derived(Popped):
    """Has the constructor of what it derives from."""


class PassedOn(Popped):
    def __init__(self, width: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Kept:
    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs


def unused(x: Any, **kwargs: Any) -> Any:
    return x


def takes_none(x: Any, **kwargs: Any) -> Any:
    if kwargs:
        raise TypeError(f"unexpected {list(kwargs)}")
    return x


def asserts(x: Any, **kwargs: Any) -> Any:
    assert not kwargs.get("labels"), kwargs
    return x


def plain(x: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (Popped, {"tau": "0.1", "rows": "", "eps": "None"}),
        (Derived, {"tau": "0.1", "rows": "", "eps": "None"}),
        (PassedOn, None),
        (Kept, None),
        (unused, None),
        (takes_none, {}),
        (asserts, {"labels": "None"}),
        (plain, None),
        (sorted, None),
    ],
)
def test_what_is_read_is_found_by_the_source(function: Any, found: Any) -> None:
    assert keywords_read(function) == found


def test_what_is_not_read_is_not_given() -> None:
    given = {"rank": 0, "tau": 1.0, "width": 3, "convention": "exact"}
    assert accepted(Popped, given) == {"tau": 1.0}
    assert accepted(PassedOn, given) == {"tau": 1.0, "width": 3}
    assert accepted(Kept, given) == {"rank": 0, "tau": 1.0, "width": 3}
    assert [(one.name, one.required) for one in parameters_of(Popped)] == [
        ("tau", False), ("rows", True), ("eps", False),
    ]  # fmt: skip


def test_names_that_count_from_zero() -> None:
    def of_views(out0: Any, out1: Any, temperature: float) -> Any: ...

    assert next(calls(of_views, "ntxent")) == "target(out0=first, out1=second, temperature=temperature)"
