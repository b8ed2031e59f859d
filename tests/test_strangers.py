"""Losses as strangers write them: no right one is accused, and the defective ones are caught.

Every sixteenth is asked here, over few cases; `make strangers` asks all, over as many as the command does.
"""

import os
from collections.abc import Iterator

import pytest

from verified_losses.properties.ask.plans import Verifier
from verified_losses.properties.options import MAX_EXAMPLES
from verified_losses.properties.show.defects import AnyFinding
from verified_losses.properties.subjects import Subject
from verified_losses.properties.verify import limits
from verified_losses.properties.verify.arguments import ask
from verified_losses.properties.verify.plan import inspection, plan

from .strangers.index import RIGHT, WRONG, Stranger

pytestmark = pytest.mark.usefixtures("in_this_process")

ALL = "STRANGERS" in os.environ
CASES = MAX_EXAMPLES if ALL else 8
EVERY = 1 if ALL else 16
SLOW = "large"
"""Properties of batches that take seconds each; `certify` asks them."""


@pytest.fixture(autouse=True)
def _few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVEN_SECONDS", limits.EVEN_SECONDS if ALL else 1.0)


def found(stranger: Stranger) -> Subject:
    """Return a loss in the form that an inspection finds, which must be one whose values are right."""
    place = f"{stranger.target.__module__}:{stranger.target.__qualname__}"
    subject, matches = inspection(ask(place, stranger.contract, **stranger.options)[1], stranger.contract)
    assert matches or stranger.wrong or stranger.contract == "gather"
    return subject


def findings(stranger: Stranger, subject: Subject) -> Iterator[AnyFinding]:
    planned = plan({"it": (stranger.contract, subject)}, "1,sim:2-4", CASES)
    yield from Verifier(CASES).verify_all([one for one in planned if not one.law.name.startswith(SLOW)])


def names(strangers: list[Stranger]) -> list[str]:
    return [stranger.target.__name__ for stranger in strangers]


def test_there_are_forty_of_each() -> None:
    assert len(set(names(RIGHT))) == len(set(names(WRONG))) == 40
    assert not any(one.wrong for one in RIGHT)
    assert all(one.wrong for one in WRONG)


@pytest.mark.parametrize("stranger", RIGHT[::EVERY], ids=names(RIGHT[::EVERY]))
def test_a_right_loss_is_not_accused(stranger: Stranger) -> None:
    seen = list(findings(stranger, found(stranger)))
    accused = [one for one in seen if one.verdict == "falsified"]
    assert not accused, "\n".join(f"{one.law}: {one.reason}\n{one.counterexample}" for one in accused)
    assert any(one.verdict == "holds" for one in seen)


@pytest.mark.parametrize("stranger", WRONG[::EVERY], ids=names(WRONG[::EVERY]))
def test_a_defective_loss_is_caught(stranger: Stranger) -> None:
    # torch.compile comes early in one process, and shows what is wrong without it too
    seen = list(findings(stranger, found(stranger)))
    if stranger.limit:
        assert stranger.limit in {one.limit for one in seen}
        return
    caught = [one for one in seen if one.verdict == "falsified"]
    first = next((one for one in caught if not one.law.startswith("compiled")), None)
    assert first is not None, stranger.wrong
    assert first.law == stranger.caught_by, first.reason
