"""Losses that normalise rows, or hold a scale in another form: cases, oracles and bounds."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.helpers import close
from verified_losses.oracles import held
from verified_losses.oracles.bounds import Precision
from verified_losses.oracles.bounds.scalars import SLOPES, holding
from verified_losses.oracles.bounds.unit import normalization, renormalization
from verified_losses.oracles.clip import clip_loss
from verified_losses.oracles.complex_step import gradient
from verified_losses.oracles.infonce import infonce_loss, normalize
from verified_losses.oracles.ntxent import ntxent_loss
from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import Contract, contracts
from verified_losses.properties.examples import Example
from verified_losses.properties.laws import Bench, Falsified, laws
from verified_losses.properties.laws.gradients import compare_gradients, weighted
from verified_losses.properties.laws.values import compare_terms
from verified_losses.properties.names import DTYPES, Features, Held
from verified_losses.properties.reference import Reference
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify.certifier import without_local_constants
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.properties.worlds.single import SingleWorld

EXP: Held = (("logit_scale", "exp"),)
INVERSE: Held = (("logit_scale", "inverse"),)
NEGATIVE: Held = (("logit_scale", "exp_negative"),)
RIGHT: list[tuple[str, str, Features, Held]] = [
    ("clip", "NormalizesFirst", "normalized", ()),
    ("clip", "NormalizesFirst", "unit", ()),
    ("clip", "DividesByLength", "normalized", ()),
    ("clip", "DividesByRoot", "normalized", ()),
    ("clip", "TimesReciprocalRoot", "normalized", ()),
    ("clip", "NormalizesInSingle", "normalized", ()),
    ("clip", "NormalizesGathered", "normalized", ()),
    ("clip", "NormalizesTwice", "unit", ()),
    ("clip", "CosineSimilarity", "normalized", ()),
    ("clip", "CosineSimilarityOfUnit", "unit", ()),
    ("clip", "DividesByLengths", "normalized", ()),
    ("siglip", "SigLipNormalizes", "normalized", ()),
    ("siglip", "SigLipNormalizes", "unit", ()),
    ("coca", "CoCaNormalizes", "normalized", ()),
    ("distill", "DistillNormalizes", "normalized", ()),
    ("infonce", "InfoNCEOfDots", "raw", ()),
    ("infonce", "InfoNCETakesUnit", "unit", ()),
    ("infonce", "InfoNCENormalizesAgain", "unit", ()),
    ("infonce", "InfoNCENormalizes", "normalized", ()),
    ("ntxent", "NTXentOfDots", "raw", ()),
    ("ntxent", "NTXentNormalizesAgain", "unit", ()),
    ("clip", "HoldsLogarithm", "", EXP),
    ("clip", "HoldsLogarithmNormalizes", "normalized", EXP),
    ("clip", "DividesByTemperature", "raw", INVERSE),
    ("clip", "TemperatureFirst", "", INVERSE),
    ("clip", "DividesByExponential", "", NEGATIVE),
    ("clip", "HoldsNegativeLogarithm", "", NEGATIVE),
    ("siglip", "SigLipHoldsLogarithm", "normalized", EXP),
    ("siglip", "SigLipBiasByLogarithm", "", (("logit_bias", "exp"),)),
    ("distill", "DistillHoldsLogarithms", "", (*EXP, ("dist_logit_scale", "exp"))),
]
DEFECTS: list[tuple[str, str, Features, Held]] = [
    ("clip", "TakesRowsAsTheyAre", "normalized", ()),
    ("clip", "LengthDetached", "normalized", ()),
    ("clip", "LengthPlusEpsilon", "normalized", ()),
    ("clip", "NormalizesInBFloat16", "normalized", ()),
    ("clip", "NormalizesInBFloat16", "unit", ()),
    ("infonce", "InfoNCENormalizes", "raw", ()),
    ("infonce", "InfoNCEOfDots", "", ()),
    ("clip", "ForgetsExponential", "", EXP),
    ("clip", "SlopeOfScale", "", EXP),
    ("clip", "ScaleInBFloat16", "", EXP),
    ("clip", "DividesByTemperature", "", EXP),
    ("clip", "HoldsLogarithm", "", NEGATIVE),
]
CASES, OF_DEFECTS, OF_SEVERAL = 8, 40, 2
LAWS = {law.name: law for law in laws()}
quickly = settings(
    max_examples=CASES,
    phases=[Phase.generate],
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def subject_of(name: str, features: Features, holds: Held, **fields: Any) -> Subject:
    return Subject(f"tests.defects.forms:{name}", features=features, held=holds, **fields)


def drawn(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], count: int = CASES) -> None:
    """Draw the same cases each time, and check them."""

    @seed(0)
    @settings(quickly, max_examples=count)
    @given(strategy)
    def run(example: Any) -> None:
        check(example)

    with without_local_constants():
        run()


def ratios(contract: Contract, subject: Subject, count: int) -> list[float]:
    """Return the worst error over bound of the terms and gradients of each of some cases."""
    bench = Bench(contract, subject, SingleWorld(), SingleWorld())
    found: list[float] = []

    def check(case: Case) -> None:
        reference = Reference(contract, Example(weighted(case)))
        (outcomes,) = bench.observe([reference.case])
        found.append(max(compare_terms(reference, {"": outcomes}), compare_gradients(reference, outcomes)))

    drawn(contract.cases(subject, 1), check, count)
    return found


@pytest.mark.parametrize(("contract", "name", "features", "holds"), RIGHT)
def test_right_losses_stay_well_below_their_bounds(
    contract: str, name: str, features: Features, holds: Held
) -> None:
    found = ratios(contracts()[contract], subject_of(name, features, holds), CASES)
    assert len(found) >= CASES // 2
    assert 0 < max(found) < 0.5


@pytest.mark.parametrize(("contract", "name", "features", "holds"), DEFECTS)
def test_defects_are_past_their_bounds(contract: str, name: str, features: Features, holds: Held) -> None:
    with pytest.raises(Falsified):
        ratios(contracts()[contract], subject_of(name, features, holds), OF_DEFECTS)


@pytest.mark.parametrize(
    ("contract", "name", "features", "holds"),
    [
        ("clip", "NormalizesTwice", "unit", ()),
        ("clip", "HoldsLogarithmNormalizes", "normalized", EXP),
        ("clip", "DividesByExponential", "", NEGATIVE),
        ("clip", "DividesByTemperature", "", INVERSE),
        ("ntxent", "NTXentOfDots", "raw", ()),
    ],
)
def test_laws_of_several_ranks_and_of_second_derivatives_hold(
    contract: str, name: str, features: Features, holds: Held
) -> None:
    kind, subject = contracts()[contract], subject_of(name, features, holds, even=True)
    world = SimulatedWorld(3, timeout=20)
    bench = Bench(kind, subject, world, SingleWorld())

    def check(examples: tuple[Example, Example]) -> None:
        mean, twice = examples
        if kind.obeys_mean(mean.case):
            LAWS["mean over ranks equals single process"].check(bench, Reference(kind, mean))
        if twice.case.option("gather_with_grad"):
            LAWS["twice differentiable"].check(bench, Reference(kind, twice))

    strategies = [
        LAWS[law].draw(kind, subject, 3)
        for law in ("mean over ranks equals single process", "twice differentiable")
    ]
    drawn(st.tuples(*strategies), check, OF_SEVERAL)
    world.close()


# What is right.


ROWS = np.array([[3.0, 4.0], [0.0, -2.0]])
UNIT = np.array([[0.6, 0.8], [0.0, -1.0]])


@pytest.mark.parametrize(
    ("contract", "features", "expected"),
    [
        ("clip", "", ROWS), ("clip", "raw", ROWS), ("clip", "normalized", UNIT), ("clip", "unit", UNIT),
        ("infonce", "", ROWS), ("infonce", "raw", ROWS), ("infonce", "normalized", ROWS),
        ("infonce", "unit", UNIT),
    ],
)  # fmt: skip
def test_rows_are_prepared_by_hand(contract: str, features: Features, expected: Any) -> None:
    # the oracles of cosines normalise rows themselves
    kind = contracts()[contract]
    name = kind.rows[0]
    (ready,) = kind.prepared(Case(features=features), [{name: ROWS, "other": ROWS}])
    close(ready[name], expected, 1, 6)
    assert ready["other"] is ROWS


SLOPES_AT_3 = {
    "exp": 3.0,
    "inverse": -9.0,
    "exp_negative": -3.0,
    "softplus": 1 - math.exp(-3),  # e^t is e^3 - 1, and the slope e^t / (1 + e^t)
    "inverse_softplus": -9 * (1 - math.exp(-1 / 3)),
}


@pytest.mark.parametrize(("kind", "slope"), SLOPES_AT_3.items())
def test_a_scale_follows_from_what_is_held_by_hand(kind: Any, slope: float) -> None:
    t = held.OF_SCALE[kind](3.0)
    (ready,) = contracts()["clip"].prepared(Case(held=(("logit_scale", kind),)), [{"logit_scale": t}])
    close(ready["logit_scale"], 3, 3 * 2, 4)
    close(gradient(held.HELD[kind], np.asarray(t)), slope, 2 * abs(slope) * 2, 8)
    close(SLOPES[kind](3.0), abs(slope), abs(slope), 4)


def test_similarities_of_dots_by_hand() -> None:
    # logits (4, 0) and (0, 4) at temperature 1 / 2: rows of length 2 and 1
    first, second = [2 * np.eye(2)], [np.eye(2)]
    expected = np.log(1 + np.exp(-4))
    close(infonce_loss(first, second, 0.5, 0, cosine=False), expected, 8, 16)
    # each view has its partner at 4, one other at 0, and the third at 0
    expected = np.log(1 + 2 * np.exp(-4))
    close(ntxent_loss(first, second, 0.5, 0, cosine=False), expected, 12, 20)
    # of rows of length 1 both are one
    unit = [np.eye(2)]
    close(infonce_loss(unit, second, 0.5, 0, cosine=False), infonce_loss(unit, second, 0.5, 0), 8, 16)


@pytest.mark.parametrize("kind", [None, *held.HELD])
@pytest.mark.parametrize("features", ["normalized", "unit"])
def test_gradients_equal_those_of_a_formula_in_mpmath(kind: Any, features: Features) -> None:
    """CLIP's loss of cosines, with a loop for every sum, derived by differences of 50 digits."""
    holds = () if kind is None else (("logit_scale", kind),)
    scales = {
        None: lambda t: t,
        "exp": mpmath.exp,
        "inverse": lambda t: 1 / t,
        "exp_negative": lambda t: mpmath.exp(-t),
        "softplus": lambda t: mpmath.log(1 + mpmath.exp(t)),
        "inverse_softplus": lambda t: 1 / mpmath.log(1 + mpmath.exp(t)),
    }
    scale_of = scales[kind]
    image, text = np.random.default_rng(0).standard_normal((2, 3, 2)) * 1.5
    point = np.concatenate([image.ravel(), text.ravel(), [3.0 if kind is None else held.OF_SCALE[kind](3.0)]])

    def formula(flat: Any) -> Any:
        rows = [list(flat[k : k + 2]) for k in range(0, 12, 2)]
        rows = [[x / mpmath.sqrt(sum(y * y for y in row)) for x in row] for row in rows]
        scale, total = scale_of(flat[-1]), mpmath.mpf(0)
        for anchors, gallery in ((rows[:3], rows[3:]), (rows[3:], rows[:3])):
            for k, anchor in enumerate(anchors):
                z = [scale * sum(a * b for a, b in zip(anchor, other, strict=True)) for other in gallery]
                total += mpmath.log(sum(map(mpmath.exp, z))) - z[k]
        return total / 6

    case = Case(rows=(3,), width=2, features=features, held=holds)
    contract = contracts()["clip"]

    def oracle(flat: Any) -> Any:
        given = {
            "image_features": flat[:6].reshape(3, 2),
            "text_features": flat[6:12].reshape(3, 2),
            "logit_scale": flat[12],
        }
        (terms,) = contract.oracle(case, contract.prepared(case, [given]))
        return terms["contrastive_loss"]

    with mpmath.workdps(50):
        exact = [mpmath.mpf(x) for x in point]
        close(oracle(point), float(formula(exact)), 12, 80)
        slopes = [
            float(mpmath.diff(lambda x, k=k: formula([*exact[:k], x, *exact[k + 1 :]]), exact[k]))
            for k in range(len(point))
        ]
    # a scale of 3 is differentiated to at most 9, and a row of length 0.2 or more to 5
    close(gradient(oracle, point), slopes, 12 * 9 * 5, 80)


def test_normalising_is_clips_loss_of_rows_of_length_1() -> None:
    contract, case = contracts()["clip"], Case(rows=(5,), width=4, scale=3.0, features="normalized")
    inputs = contract.inputs(case)
    (terms,) = Reference(contract, Example(case)).terms
    unit = [normalize(inputs[0][name]) for name in contract.rows]
    zero = np.zeros(())
    assert terms["contrastive_loss"] == clip_loss([unit[0]], [unit[1]], [np.array(3.0)], [zero], 0)


# How near it is.


def test_rows_err_by_hand() -> None:
    p = Precision(2.0**-8, 2.0**-24, 0.0)
    # the sum of 4 squares, the root and the quotient in float32; both of the latter and the sum are stored
    close(normalization(4, p), 4 / (2**24 - 4) + 3 / (2**8 - 3), 1, 8)
    first = 2 / (2**8 - 2)
    close(renormalization(4, p), first + (1 + first) * normalization(4, p), 1, 12)


def test_scales_err_by_hand() -> None:
    u = 2.0**-10
    p = Precision(u, u, 0.0)
    for kind in ("exp", "inverse", "exp_negative"):
        assert holding(kind, 1.0, p) == 0
    assert holding("", 3.0, p) == 0
    assert holding("inverse", 4.0, p) == 0
    close(holding("inverse", 3.0, p), u / (1 - u), 1, 4)
    for kind in ("exp", "exp_negative"):
        # five roundings, and 1.25 of the exponent
        close(holding(kind, np.e, p), np.expm1(1.25 * u) + 5 * u / (1 - 5 * u), 1, 12)
    # the softplus of 0 is log 2: no exponent, and nine roundings, of 1 / log 2 times as much too
    nine = 9 * u / (1 - 9 * u) * (1 + 1 / np.log(2))
    close(holding("softplus", np.log(2), p), nine, 3, 12)
    close(holding("inverse_softplus", 1 / np.log(2), p), nine + u / (1 - u), 3, 12)
    # beyond 20 it may be its argument; in half precision it is stored
    straight = np.expm1(1.25 * u * np.log(np.expm1(21.0))) + 9 * u / (1 - 9 * u) * (1 + 1 / 21) + np.exp(-20)
    close(holding("softplus", 21.0, p), straight, 1, 12)
    half = Precision(2.0**-8, u, 0.0)
    stored = 2.0**-8 / (1 - 2.0**-8)
    close(holding("softplus", np.log(2), half), nine + stored, 3, 12)
    close(holding("inverse_softplus", 1 / np.log(2), half), nine + u / (1 - u) + 2 * stored, 3, 12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_grow_with_what_may_be_rounded(dtype: str) -> None:
    """Rows as they are, normalised ones, and those that may be normalised twice: each may err more."""
    contract = contracts()["clip"]
    bounds = []
    for features in ("raw", "normalized", "unit"):
        case = Case(rows=(4,), width=5, dtype=dtype, pattern="unit", scale=10.0, features=features)  # type: ignore[arg-type]
        found = Reference(contract, Example(case)).bounds
        bounds.append((found.terms[0]["contrastive_loss"], found.gradients[0]["image_features"].min()))
    for less, more in itertools.pairwise(bounds):
        assert less[0] < more[0] < 8 * less[0]
        assert less[1] < more[1] < 32 * less[1]


@pytest.mark.parametrize("name", ["clip", "coca", "distill", "infonce", "ntxent"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_torchs_cross_entropy_of_half_precision_is_within_the_bound_of_exact_logits(
    name: str, dtype: str
) -> None:
    """1 + e^-10 is 1 in half precision, so it computes 0 for each row's log(1 + e^-10)."""
    options = (("clip_loss_weight", 1.0), ("caption_loss_weight", 1.0))
    cases = [Case((2,), 7, dtype, "basis", 10.0, options=options, seed=one) for one in range(4)]
    references = [Reference(contracts()[name], Example(case)) for case in cases]
    nearest = min(references, key=lambda one: one.terms[0]["contrastive_loss"])
    (terms,) = nearest.terms
    assert 0 < terms["contrastive_loss"] < 1e-4
    assert terms["contrastive_loss"] < nearest.bounds.terms[0]["contrastive_loss"] < 1


# What is drawn.


def test_scales_are_positive_unless_stated_otherwise() -> None:
    contract = contracts()["clip"]
    seen: dict[str, list[Case]] = {"positive": [], "any": []}
    for scales, cases in seen.items():
        subject = Subject("any:Loss", scales=scales)  # type: ignore[arg-type]
        drawn(contract.cases(subject, 1), cases.append, 120)
    assert all(case.scale > 0 for case in seen["positive"])
    assert any(case.scale == 0 for case in seen["any"])
    signs = [np.signbit(case.bias) for case in seen["positive"] if case.bias == 0]
    assert signs
    assert not any(signs)
    assert {subject.scales for _, subject in SHIPPED.values()} == {"any"}


@pytest.mark.parametrize("law", ["used equals fresh", "twice differentiable", "deterministic"])
def test_no_law_reaches_a_scale_of_0(law: str) -> None:
    contract, scales = contracts()["clip"], set()

    def check(example: Example) -> None:
        scales.update(one.case.scale for one in (example, *example.steps))

    drawn(LAWS[law].draw(contract, Subject("any:Loss"), 2), check, 25)
    assert min(scales) > 0


@pytest.mark.parametrize("kind", held.HELD)
def test_scales_that_are_held_are_sensible(kind: Any) -> None:
    contract = contracts()["clip"]
    subject = subject_of("any", "", (("logit_scale", kind), ("logit_bias", kind)))

    def check(case: Case) -> None:
        (given,) = contract.inputs(case)
        (ready,) = contract.prepared(case, [given])
        scale = float(ready["logit_scale"].reshape(()))
        assert 0.5 < scale < 100
        near = 8 * Precision.of(case.scalar_dtype).stored
        assert abs(scale - case.scale) <= near * case.scale
        if case.bias is not None:
            assert case.bias > 0
            assert abs(float(ready["logit_bias"].reshape(())) - case.bias) <= 2 * near * case.bias

    drawn(contract.cases(subject, 1), check, 40)


@pytest.mark.parametrize(
    ("contract", "features"), [("clip", "normalized"), ("infonce", "unit"), ("coca", "unit")]
)
def test_no_row_of_zeros_is_normalised(contract: str, features: Features) -> None:
    kind = contracts()[contract]

    def check(case: Case) -> None:
        for inputs in kind.inputs(case):
            assert all(inputs[name].any(axis=1).all() for name in kind.rows)

    drawn(kind.cases(subject_of("any", features, ()), 2), check, 30)


def test_constants_are_frozen_in_every_case() -> None:
    contract = contracts()["clip"]
    subject = Subject("any:Loss", constants=("logit_scale",))
    for law in ("terms equal the oracle", "twice differentiable"):

        def check(example: Example) -> None:
            assert "logit_scale" in example.case.frozen
            assert not contract.gradient_expected(example.case)["logit_scale"]

        drawn(LAWS[law].draw(contract, subject, 1), check, 20)


@pytest.mark.parametrize(
    ("contract", "fields", "message"),
    [
        ("gather", {"features": "raw"}, "features: the contract gather has no rows of features, got 'raw'"),
        ("clip", {"features": "rows"}, "features: expected one of .*'unit'.*, got 'rows'"),
        ("cross_entropy", {"features": "unit"}, "features: the contract cross_entropy has no rows"),
        ("clip", {"held": (("scale", "exp"),)}, "held: .*expects of .*logit_scale.* got scale=exp"),
        ("clip", {"held": (("logit_scale", "log"),)}, "one of .*'exp_negative'.*, got logit_scale=log"),
        ("infonce", {"held": EXP}, "held: the contract infonce expects of .* got logit_scale=exp"),
        ("clip", {"held": EXP, "scales": "any"}, 'scales: expected "positive" where'),
    ],
)
def test_what_a_contract_has_not_is_refused(contract: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contracts()[contract].cases(Subject("any:Loss", **fields), 1)


def test_an_example_of_what_the_contract_says_reads_as_before() -> None:
    plain = Example(Case())
    assert "features" not in plain.to_json()
    assert "held" not in plain.to_json()
    other = Example(Case(features="unit", held=EXP))
    assert Example.from_json(other.to_json()) == other
    assert Example.from_json(plain.to_json()) == plain
