"""The strategies find what they are for: each region within 200 cases, at the gate's profile."""

import itertools
from collections.abc import Iterator
from functools import cache

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from verified_losses.properties import names
from verified_losses.properties.cases import Case, feature_pair, shapes, share_out, sizes
from verified_losses.properties.contracts import Contract, contracts
from verified_losses.properties.examples import Example
from verified_losses.properties.show.drawn import TILE, added, count, every_region, regions, table
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify.certifier import Finding, checks, examples, without_local_constants
from verified_losses.properties.worlds.specs import parse

WITHIN = 200
LARGEST_WORLD = 8

DTYPES = [f"dtype {name}" for name in names.DTYPES]
SHAPES = [
    f"world of {LARGEST_WORLD}", "one row on a rank", "rows that differ between ranks",
    f"more than {TILE} rows in all", f"more than {TILE} rows on a rank", f"more than {2 * TILE} columns",
    *(f"width of remainder {rest} by 8" for rest in range(8)),
]  # fmt: skip
STRIDED = ("transposed", "sliced", "narrowed", "shortened")
LAYOUTS = [*(f"{strides} inputs" for strides in STRIDED), "drawn cotangents"]
COTANGENTS = [f"{strides} cotangents" for strides in (*STRIDED, "expanded")]
SCALES = [
    "scale above 50", "scale 0", "saturated logits", "duplicate rows", "no bias", "scalars of shape [1]",
    "features of few bits", "wide scalars",
]  # fmt: skip
CAPTIONS = [
    "padding alone", "padding but for one token", "one rank of padding", "padding inside a caption",
    "pad id other than 0",
]  # fmt: skip


def _expected(contract: Contract) -> list[str]:
    """Return the regions that cases of a contract must lie in."""
    expected = [*DTYPES, *SHAPES, *LAYOUTS]
    if "logit_scale" in contract.differentiable:
        expected += SCALES
    if "cotangent_strides" in contract.drawn:
        expected += COTANGENTS
    if "expanded" in contract.drawn.get("strides", ()):
        expected.append("expanded inputs")
    if contract.drawn.get("captions"):
        expected += CAPTIONS
    if contract.is_loss and not contract.in_order:
        expected.append("a dict")
    expected += [f"frozen {name}" for name in contract.drawn.get("freezable", contract.differentiable)]
    flags = [
        name
        for name in ("convention", "local_loss", "gather_with_grad", "dist_impl")
        if name in contract.values
    ]
    combinations = itertools.product(*(contract.values[name] for name in flags))
    expected += [", ".join(map("{}={}".format, flags, values)) for values in combinations if flags]
    return expected


quickly = settings(max_examples=WITHIN, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
few = settings(quickly, max_examples=40)


@pytest.fixture(autouse=True)
def _whatever_is_imported() -> Iterator[None]:
    """Draw the same cases whichever modules other tests have imported."""
    with without_local_constants():
        yield


@cache
def _drawn(label: str) -> dict[str, int]:
    name, subject = SHIPPED[label]
    contract = contracts()[name]
    worlds = st.sampled_from(range(max(contract.smallest_world, 1), LARGEST_WORLD + 1))
    drawn: list[Case] = []

    @quickly
    @given(worlds.flatmap(lambda world_size: contract.cases(subject, world_size)))
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    assert len(drawn) <= WITHIN
    return table(drawn)


@pytest.mark.parametrize("label", SHIPPED)
def test_every_region_is_found(label: str) -> None:
    found, contract = _drawn(label), contracts()[SHIPPED[label][0]]
    assert [region for region in _expected(contract) if not found.get(region)] == []


@pytest.mark.parametrize("label", SHIPPED)
def test_cases_lie_in_regions_that_are_listed(label: str) -> None:
    name, subject = SHIPPED[label]
    contract = contracts()[name]
    listed = every_region(contract, subject, range(contract.smallest_world, LARGEST_WORLD + 1))
    assert set(_drawn(label)) <= listed
    assert set(_expected(contract)) <= listed
    assert len(listed) - len(_drawn(label)) <= 3, "regions are listed in which no case lies"


def test_what_a_subject_pins_leaves_regions_out() -> None:
    contract, pinned = contracts()["clip"], (("local_loss", True), ("gather_with_grad", True))
    narrow = Subject(
        "any:Loss", even=True, dtypes=("float32",), strides=("contiguous",), options=pinned, output_dict=False
    )
    listed = every_region(contract, narrow, [1, 2])
    drawn = set(regions(find(contract.cases(narrow, 2), lambda case: True, settings=few)))
    assert drawn <= listed
    assert not listed & {
        "rows that differ between ranks",
        "dtype float64",
        "a dict",
        "wide scalars",
        "world of 3",
    }
    assert [name for name in listed if "inputs" in name] == ["contiguous inputs"]
    flags = "convention=exact, local_loss=True, gather_with_grad=True"
    assert [name for name in listed if "local_loss" in name] == [flags]


def test_counts_of_what_was_drawn_are_added_up() -> None:
    (check, *_) = checks({"clip": SHIPPED["clip"]}, parse("1"))
    cases = tuple(Case(rows=(1 + number,), dtype=names.DTYPES[number % 4]) for number in range(9))
    findings = [Finding(check, 0, "holds", (0.0,) * 3, cases[at : at + 3]) for at in (0, 3, 6)]
    whole, parts = count(findings), [count([one]) for one in findings]
    assert added(parts) == whole
    assert [list(values) for values in added(parts).values()] == [list(values) for values in whole.values()]


@pytest.mark.parametrize("name", contracts())
def test_a_case_has_a_convention_where_its_contract_has(name: str) -> None:
    contract = contracts()[name]
    drawn = contract.cases(Subject("any:Loss"), contract.smallest_world)
    case = find(drawn, lambda case: True, settings=few)
    assert ("convention" in dict(case.options)) == ("convention" in contract.values)


def test_one_process_meets_large_batches_and_single_pairs() -> None:
    name, subject = SHIPPED["clip"]
    drawn: list[Case] = []

    @quickly
    @given(contracts()[name].cases(subject, 1))
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    found = table(drawn)
    assert found["one row in all"]
    assert found[f"more than {TILE} rows in all"]
    assert max(sum(case.rows) for case in drawn) > 128


@pytest.mark.parametrize("threshold", [1, 5, 40, 50, 64, 128, 200])
def test_sizes_shrink_to_the_smallest_that_fails(threshold: int) -> None:
    found = find(sizes((9, 40, 257)), lambda size: size > threshold, settings=settings(max_examples=1000))
    assert found == threshold + 1


@pytest.mark.parametrize("multiple", [8, 16, 32, 64, 128])
def test_sizes_find_full_tiles(multiple: int) -> None:
    assert (
        find(sizes((9, 40, 257)), lambda n: n % multiple == 0, settings=settings(max_examples=WITHIN))
        == multiple
    )


@pytest.mark.parametrize("rest", [1, 2, 3, 5])
def test_sizes_past_full_tiles_shrink_to_the_first(rest: int) -> None:
    found = find(
        sizes((9, 40, 257)),
        lambda n: n > 64 and n % 64 <= rest and n % 64,
        settings=settings(max_examples=1000),
    )
    assert found == 65


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("threshold", [32, 64])
def test_rows_of_all_ranks_shrink_to_the_fewest_that_fail(threshold: int, even: bool) -> None:
    worlds = st.integers(2, LARGEST_WORLD).flatmap(lambda world_size: shapes(world_size, even))
    found = find(worlds, lambda shape: sum(shape["rows"]) > threshold, settings=settings(max_examples=1000))
    assert len(found["rows"]) == 2
    assert sum(found["rows"]) == threshold + 1 + even


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 65])
def test_rows_are_shared_out(rows: int) -> None:
    assert share_out(rows, 1, even=False) == (rows,)
    shared = share_out(rows, 3, even=False)
    assert sum(shared) == max(rows, 3)
    assert max(shared) - min(shared) <= 1
    assert sum(share_out(rows, 3, even=True)) - rows in range(3)


@pytest.mark.parametrize("width", [1, 2, 5, 129])
def test_one_hot_features_use_the_columns_of_both_ends_first(width: int) -> None:
    case = Case(rows=(width + 1,), width=width)
    for features in feature_pair(case, width, 1):
        assert (features.sum(1) == 1).all()
        assert features.any(0).all()
    image, text = feature_pair(Case(rows=(2,), width=width), width, 1)
    used = {0, width - 1}
    assert {*image.argmax(1)} == {*text.argmax(1)} == used


def test_regions_of_the_simplest_case() -> None:
    assert regions(Case()) == {
        "world of 1", "dtype float64", "width of remainder 1 by 8", "one row in all", "one row on a rank",
        "contiguous inputs", "contiguous cotangents", "no bias", "a dict",
    }  # fmt: skip


def test_padding_is_named_by_where_it_is() -> None:
    captions = {"vocabulary": 5, "length": 6, "rows": (2, 2)}
    assert "one rank of padding" in regions(Case(**captions, pad_rows=2))
    assert "padding alone" in regions(Case(**captions, pads="all", pad_id=-100))
    assert "pad id other than 0" in regions(Case(**captions, pads="all", pad_id=-100))
    assert "padding inside a caption" in regions(Case(**captions, pads="inside"))
    assert "padding but for one token" in regions(Case(**captions, pads="all but one"))
    assert not any("pad" in name for name in regions(Case(**captions, pad_id=-100)))


def test_the_rarest_regions_come_first() -> None:
    cases = [Case(), Case(dtype="float32"), Case(dtype="float32")]
    counts = table(cases)
    assert counts["dtype float64"] == 1
    assert counts["dtype float32"] == 2
    assert list(counts.values()) == sorted(counts.values())


@pytest.mark.parametrize("label", SHIPPED)
def test_an_example_is_read_as_it_was_written(label: str) -> None:
    planned = checks({label: SHIPPED[label]}, parse("sim:2-8"))
    used = [check for check in planned if check.law.name in ("terms equal the oracle", "used equals fresh")]

    @few
    @given(st.sampled_from(used).flatmap(examples))
    def read(example: Example) -> None:
        assert repr(Example.from_json(example.to_json())) == repr(example)

    read()


def test_what_is_no_example_names_the_field() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"got `str` - at `\$\.case\.rows\[0\]`"):
        Example.from_json('{"case": {"rows": ["2"]}}')
