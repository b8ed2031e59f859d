"""Cases beyond the sizes of common chunks, and what cases leave out."""

import dataclasses
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings

from verified_losses.oracles.bounds import Bounded, Precision
from verified_losses.oracles.bounds.tape import Part, Tape
from verified_losses.properties.ask import pytest_plugin
from verified_losses.properties.ask.api import certify
from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.laws import Law, laws
from verified_losses.properties.laws.gradients import SUMMED_IN_ITSELF
from verified_losses.properties.laws.large import CHUNKS, LARGE_PAIRS, MOST_BEYOND, PAIRS
from verified_losses.properties.options import CertifyOptions
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify.arguments import ask
from verified_losses.properties.verify.certifier import checks, verify
from verified_losses.properties.verify.plan import not_verified
from verified_losses.properties.worlds.specs import parse

LAWS: dict[str, Law] = {law.name: law for law in laws()}
BATCHES, LOGITS = LAWS["large batches equal the oracle"], LAWS["large logits equal the oracle"]
quickly = settings(
    max_examples=50, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
ANY = Subject("any:Loss")


def _drawn(law: Law, name: str, subject: Subject = ANY) -> list[Case]:
    drawn: list[Case] = []

    @quickly
    @given(law.draw(contracts()[name], subject, 1))
    def collect(example: object) -> None:
        drawn.append(example.case)  # type: ignore[attr-defined]

    collect()
    return drawn


@pytest.mark.parametrize(("large", "beyond"), [(False, PAIRS), (True, LARGE_PAIRS)])
def test_batches_are_just_beyond_chunks(large: bool, beyond: tuple[int, ...]) -> None:
    _, subject = ask("any:Loss", "clip", large=large)
    rows = {case.rows[0] for case in _drawn(BATCHES, "clip", subject)}
    over = {size: {n for n in rows if size < n <= size + MOST_BEYOND} for size in beyond}
    assert all(over.values())
    assert set().union(*over.values()) == rows


@pytest.mark.parametrize(("name", "tokens"), [("coca", "length"), ("cross_entropy", "rows")])
def test_logits_are_just_beyond_chunks_in_one_size(name: str, tokens: str) -> None:
    cases, found = _drawn(LOGITS, name), set()
    for case in cases:
        sizes = {"rows": case.rows[0], "length": case.length, "vocabulary": case.vocabulary}
        (large,) = [one for one, size in sizes.items() if size > CHUNKS[0]]
        found.add((large, max(chunk for chunk in CHUNKS if chunk < sizes[large])))
    assert {field for field, _ in found} == {tokens, "vocabulary"}
    assert {chunk for _, chunk in found} == set(CHUNKS)


@pytest.mark.parametrize(("law", "name"), [(BATCHES, "clip"), (LOGITS, "coca")])
def test_scalars_are_wider_than_half_precision_alone(law: Law, name: str) -> None:
    assert not [case for case in _drawn(law, name) if case.wide_scalars and case.dtype in SUMMED_IN_ITSELF]


def test_large_reaches_the_subject() -> None:
    with pytest.raises(ValueError, match="contract"):
        certify("any:Loss", "none", large=True)
    assert ask("any:Loss", "clip", large=True)[1].large
    assert not ask("any:Loss", "clip")[1].large


def test_pytests_option_reaches_the_subject(pytestconfig: pytest.Config) -> None:
    given_ = {f"certify_{one.name.strip('_')}": None for one in fields(CertifyOptions)}
    option = SimpleNamespace(
        **given_ | {"certify": ["any:Loss"], "certify_as": ["clip"], "certify_large": True}
    )
    place = pytestconfig.invocation_params
    config: Any = SimpleNamespace(option=option, invocation_params=place, getoption=lambda *name: None)
    tokens = pytest_plugin._tokens(config)
    ((target, options),) = pytest_plugin._asked(config, tokens, CertifyOptions())
    assert (target, options.as_, options.large) == ("any:Loss", "clip", True)


@pytest.mark.parametrize("target", ["tests.defects.cosine:CrossEntropy", "tests.defects.coca:CoCa"])
def test_right_losses_of_logits_hold(target: str) -> None:
    name = "cross_entropy" if "Cross" in target else "coca"
    (check,) = [one for one in checks({"it": (name, Subject(target))}, parse("1")) if one.law is not BATCHES
                and one.law.name == LOGITS.name]  # fmt: skip
    finding = verify(check, 50)
    assert (finding.verdict, finding.examples) == ("holds", 50 * LOGITS.share), finding.reason


def test_a_bound_of_very_many_parts_is_no_nan_where_there_is_nothing_to_add() -> None:
    p = Precision.of("bfloat16")
    leaf = Tape(p).node(Bounded(np.zeros(2), np.zeros(2)), None)
    leaf.give(Part(np.array([0.0, 1.0]), np.array([0.0, 1.0]), parts=2000.0, settled=False))
    assert leaf.gradient is not None
    nothing, infinite = leaf.gradient.error
    assert nothing == p.tiny
    assert np.isinf(infinite)


def test_a_certificate_says_that_rows_of_zeros_are_not_drawn() -> None:
    subjects = {"a": ("infonce", ANY), "b": ("clip", ANY), "c": ("ntxent", ANY)}
    lines = [line for line in not_verified(list(checks(subjects, parse("1")))) if "zeros" in line]
    assert lines == ["rows of zeros: a cosine with one is not defined, so none were drawn for a, c"]
    assert not [line for line in not_verified(list(checks(SHIPPED, parse("1")))) if "zeros" in line]


@pytest.mark.parametrize("name", ["infonce", "ntxent"])
def test_no_row_is_of_zeros_where_the_certificate_says_so(name: str) -> None:
    contract = contracts()[name]
    case = find(contract.cases(ANY, 1), lambda case: case.pattern == "zeros", settings=quickly)
    for given_ in contract.inputs(dataclasses.replace(case, rows=(4,), width=3)):
        assert all(array.any(axis=1).all() for array in given_.values())
