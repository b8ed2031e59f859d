"""Steps and their tape: roundings counted by a machine, whole chains in few bits, and what is no step.

The constants of steps are compared with the plain evaluation of each formula on numbers that count their own
roundings. They say what the counting gives, and know nothing of the constants.
"""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.helpers import close
from tests.test_rounding import Machine, computed_softmax
from verified_losses.oracles import bounds, clip, held, siglip
from verified_losses.oracles.bounds import (
    ELEMENTARY,
    FLOAT64,
    WEIGHING,
    Blocks,
    NotSteps,
    Precision,
    product,
    scalars,
    softmax,
    step,
    sums,
    tape,
    trace,
    unit,
)
from verified_losses.oracles.complex_step import Array
from verified_losses.oracles.infonce import divided_product, normalize
from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.subjects import Subject

SINGLE = Precision.of("float32")


# A machine that counts.


class Counted(NamedTuple):
    """A positive number as the roundings that it was made with, in the wide precision and in the stored one.

    It is of factors (1 + d) or 1 / (1 + d), so many that its relative error is at most gamma of each count. A
    difference counts as a sum: relative to the magnitudes that it is taken of.
    """

    wide: Fraction = Fraction(0)
    stored: Fraction = Fraction(0)

    def __mul__(self, other: Any) -> "Counted":
        return Counted(self.wide + other.wide + 1, self.stored + other.stored)

    __truediv__ = __mul__

    def __add__(self, other: Any) -> "Counted":
        return Counted(max(self.wide, other.wide) + 1, max(self.stored, other.stored))

    __sub__ = __add__

    def root(self) -> "Counted":
        """Return the square root: a factor under it counts half."""
        return Counted(self.wide / 2 + 1, self.stored / 2)

    def elementary(self) -> "Counted":
        """Return an exponential or logarithm of what is exact."""
        return Counted(self.wide + ELEMENTARY, self.stored)

    def store(self) -> "Counted":
        """Return the number as it is in memory."""
        return Counted(self.wide, self.stored + 1)


EXACT = Counted()


def added(terms: Sequence[Counted], choice: random.Random) -> Counted:
    """Add in an order that is drawn, at times one after another."""
    terms = list(terms)
    in_turn = choice.random() < 0.5
    while len(terms) > 1:
        if not in_turn:
            choice.shuffle(terms)
        terms.append(terms.pop() + terms.pop())
    return terms[0]


def most(function: Callable[[random.Random], Counted]) -> Counted:
    """Return the most roundings that a formula may have, in a hundred orders and forms."""
    found = [function(random.Random(seed)) for seed in range(100)]
    return Counted(max(one.wide for one in found), max(one.stored for one in found))


def length(width: int, choice: random.Random) -> Counted:
    square = added([EXACT * EXACT] * width, choice).store()
    return square.root().store()


@pytest.mark.parametrize("width", [1, 2, 3, 8, 33])
def test_roundings_of_rows_of_length_1_are_counted(width: int) -> None:
    found = most(lambda choice: (EXACT / length(width, choice)).store())
    assert found.wide == Fraction(width, 2) + unit.QUOTIENT
    assert found.stored <= unit.NORM_STORED


@pytest.mark.parametrize("width", [1, 2, 3, 8, 33])
def test_roundings_of_their_gradient_are_counted(width: int) -> None:
    def straight(choice: random.Random) -> Counted:
        """(g - u (u.g)) / |x| with u = x / |x|."""
        norm = length(width, choice)
        row = (EXACT / norm).store()
        along = added([(row * EXACT).store()] * width, choice).store()
        return ((EXACT - (row * along).store()).store() / norm).store()

    def automatic(choice: random.Random) -> Counted:
        """The quotient's backward, and the norm's: g / |x| + x / |x| sum(-g (x / |x|) / |x|)."""
        norm = length(width, choice)
        row = (EXACT / norm).store()
        of_norm = added([(EXACT * (row / norm).store()).store()] * width, choice).store()
        back = (EXACT * (of_norm / norm).store()).store()
        return ((EXACT / norm).store() + back).store()

    bound = (unit.NORMS / 2 + 1) * width + unit.NORMS + unit.PROJECTING
    for form in (straight, automatic):
        found = most(form)
        assert found.wide <= bound
        assert found.stored <= unit.PROJECTING_STORED
    # 2 d + 8 would do for no width above 6
    assert bound - most(straight).wide <= 2


@pytest.mark.parametrize("width", [1, 2, 5, 16])
def test_roundings_of_logits_are_counted(width: int) -> None:
    def products(choice: random.Random) -> Counted:
        return added([EXACT * EXACT] * width, choice)

    assert most(products).wide == width
    scale = EXACT.store()
    before = most(lambda choice: added([(scale * EXACT).store() * EXACT] * width, choice))
    after = most(lambda choice: (scale * products(choice)).store())
    for scaled in (before, after):
        assert scaled.wide == width + 1
        assert scaled.stored == product.SCALE_STORED


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (2, 3, 4), (5, 2, 3)])
def test_roundings_of_gradients_through_logits_are_counted(n: int, m: int, d: int) -> None:
    scale = EXACT.store()

    def row(choice: random.Random) -> Counted:
        if choice.random() < 0.5:
            scaled = (scale * EXACT).store()
            return added([scaled * EXACT] * m, choice).store()
        return (scale * added([EXACT * EXACT] * m, choice).store()).store()

    found = most(row)
    assert found.wide == m + 1
    assert found.stored <= product.ROWS_STORED

    def of_scale(choice: random.Random) -> Counted:
        if choice.random() < 0.5:
            logits = added([EXACT * EXACT] * d, choice).store()
            return added([(EXACT * logits).store()] * (n * m), choice).store()
        part = added([EXACT * EXACT] * m, choice).store()
        return added([(part * EXACT).store()] * (n * d), choice).store()

    found = most(of_scale)
    # products and sums of one, one more product, and the sum of all
    assert found.wide <= max(d + 1 + n * m - 1, m + 1 + n * d - 1)
    assert found.stored <= product.PRODUCTS_STORED
    of_bias = most(lambda choice: added([added([EXACT] * m, choice).store()] * n, choice).store())
    assert of_bias.wide == n * m - 1 or min(n, m) > 1
    assert of_bias.stored <= product.SUM_STORED


def test_roundings_of_weights_are_counted() -> None:
    def mean(choice: random.Random) -> Counted:
        whole = (EXACT / EXACT).store()  # over a rank's rows
        whole = (whole * EXACT).store()  # times its rows
        whole = (whole / EXACT).store()  # over all rows
        return (whole * EXACT).store()  # times the ranks

    found = most(mean)
    assert found.wide == WEIGHING
    assert found.stored == sums.TOTAL_STORED
    slope = ((EXACT.store() * EXACT.store()).store() * EXACT).store()
    assert slope.stored <= sums.SLOPE_STORED


def test_roundings_of_held_scales_are_counted() -> None:
    exponential = EXACT.elementary()
    assert (EXACT / exponential).wide == ELEMENTARY + 1  # as `holding` has it
    inverse = (EXACT / EXACT).store()
    squared = (inverse * inverse).store()
    # both factors once each in `holding`, twice; the rest here
    assert (squared * EXACT).wide - 2 * inverse.wide == scalars.SLOPE
    assert (squared * EXACT).store().stored <= scalars.HELD_STORED + 2 * 1


def test_roundings_of_the_softmax_and_the_sigmoid_are_counted() -> None:
    power = EXACT.elementary()
    assert (power * EXACT).wide == softmax.RESCALED
    assert (EXACT * (EXACT.elementary() + EXACT)).wide <= softmax.ENTROPY
    other = EXACT / (EXACT + EXACT)
    assert (EXACT * other).wide == softmax.SIGMOID
    assert (EXACT - EXACT / EXACT).wide == softmax.COMPLEMENT
    mean = added([(EXACT.store() * EXACT.store())] * 5, random.Random(0)).store()
    assert mean.stored == softmax.MEAN_STORED


# Whole chains, in few bits.

CHAINS = pytest.mark.parametrize(
    ("bits", "seed"), [(bits, seed) for bits in ((6, 6), (4, 7), (11, 24)) for seed in range(6)]
)


def of_few_bits(m: Machine, rows: Sequence[int], width: int) -> tuple[list[Array], list[Array]]:
    """Return both sides' rows of every rank."""
    first, second = ([m.numbers(count, width, m.bits["stored"], high=0) for count in rows] for _ in range(2))
    return first, second


def inside(found: Any, expected: Any, error: Any, name: str) -> None:
    off = abs(np.asarray(found, float) - expected)
    own = 64 * FLOAT64 * (1 + abs(np.asarray(expected)))
    assert np.all(off <= error + own), f"{name}: off {off}, bound {error}"


def exact_gradient(loss: Callable[[Array], complex], point: Array) -> Array:
    moved = np.zeros(point.shape)
    for index in np.ndindex(*point.shape):
        one = point.astype(complex)
        one[index] += 1e-200j
        moved[index] = np.imag(loss(one)) / 1e-200
    return moved


def scaled(m: Machine, scale: float, rows: Array, others: Array, bias: float) -> Array:
    """Return logits, the scale multiplied with rows or with products."""
    if m.either(True, False):
        made = [[m.store(m.dot([m.store(scale * a) for a in x], y)) for y in others] for x in rows]
    else:
        made = [[m.store(scale * m.store(m.dot(x, y))) for y in others] for x in rows]
    return np.array([[m.store(z + bias) for z in row] for row in made])


def through(m: Machine, slopes: Array, others: Array, scale: float) -> Array:
    columns = others.T
    return np.array([[m.store(scale * m.store(m.dot(row, column))) for column in columns] for row in slopes])


@CHAINS
def test_a_chain_of_clip_errs_within_what_is_traced(bits: tuple[int, int], seed: int) -> None:
    m = Machine(*bits, seed)
    rows, width = m.either((3,), (1, 2), (2, 2)), m.either(1, 2, 4)
    images, texts = of_few_bits(m, rows, width)
    scale, bias, ranks = m.either(1.0, 2.0, 1.5), m.either(0.0, -1.25), len(rows)
    inputs = [
        {"image": x, "text": y, "scale": np.array(scale), "bias": np.array(bias)}
        for x, y in zip(images, texts, strict=True)
    ]

    def oracle(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        columns = [[one[name] for one in given] for name in ("image", "text", "scale", "bias")]
        return [{"loss": clip.clip_loss(*columns, rank, False, True)} for rank in range(ranks)]

    one = {"loss": np.array(1.0)}
    terms, gradients = trace(oracle, inputs, [one] * ranks, m.precision)
    image, text, total = np.concatenate(images), np.concatenate(texts), sum(rows)

    losses, found = [], {"image": [], "text": [], "scale": [], "bias": []}  # type: ignore[var-annotated]
    for _ in range(ranks):
        values, of_rows, of_others, of_scale, of_bias = [], [], [], [], []
        for x, y in ((image, text), (text, image)):
            z = scaled(m, scale, x, y, bias)
            slopes = np.zeros(z.shape)
            for i, row in enumerate(z):
                log, probability = computed_softmax(m, row)
                values.append(m.store(-log[i]))
                for j, q in enumerate(probability):
                    slope = m.store(q - (i == j))
                    slopes[i, j] = m.store(m.rounded(m.rounded(slope / total) / 2))
            of_rows.append(through(m, slopes, y, scale))
            of_others.append(through(m, slopes.T, x, scale))
            products = [[m.store(m.dot(a, b)) for b in y] for a in x]
            of_scale.append(
                m.sum(m.rounded(g * s) for g, s in zip(slopes.ravel(), np.ravel(products), strict=True))
            )
            of_bias.append(m.sum(slopes.ravel()))
        losses.append(m.store(m.rounded(m.rounded(m.sum(values) / total) / 2)))
        rounded = np.vectorize(m.store)
        found["image"].append(rounded(of_rows[0] + of_others[1]))
        found["text"].append(rounded(of_others[0] + of_rows[1]))
        found["scale"].append(m.store(m.sum(map(m.store, of_scale))))
        found["bias"].append(m.store(m.sum(map(m.store, of_bias))))

    def exact(name: str) -> Array:
        """Every rank's terms derive by what is one for all ranks, or all rows."""
        given: dict[str, Any] = {
            "image": image,
            "text": text,
            "scale": np.array(scale),
            "bias": np.array(bias),
        }

        def loss(moved: Array) -> complex:
            now = given | {name: moved}
            columns = [now["image"]], [now["text"]], [now["scale"]], [now["bias"]]
            return clip.clip_loss(*columns, 0)

        return exact_gradient(loss, given[name])

    expected = np.real(oracle(inputs)[0]["loss"])
    for rank in range(ranks):
        inside(losses[rank], expected, terms[rank]["loss"], "loss")
        for name in ("scale", "bias"):
            inside(found[name][rank], exact(name), gradients[rank][name], name)
    for name in ("image", "text"):
        whole = [
            [m.store(m.sum(parts)) for parts in zip(*each, strict=True)]
            for each in zip(*found[name], strict=True)
        ]
        error = np.concatenate([one[name] for one in gradients])
        inside(whole, ranks * exact(name), error, name)


@CHAINS
def test_a_chain_of_siglip_errs_within_what_is_traced(bits: tuple[int, int], seed: int) -> None:
    m = Machine(*bits, seed)
    rows, width = m.either((2,), (1, 2), (2, 1)), m.either(1, 2, 3)
    images, texts = of_few_bits(m, rows, width)
    scale, bias, ranks, total = m.either(2.0, 1.5), m.either(0.0, -2.5), len(rows), sum(rows)
    chunk = m.either(0, 1)
    inputs = [
        {"image": x, "text": y, "scale": np.array(scale), "bias": np.array(bias)}
        for x, y in zip(images, texts, strict=True)
    ]

    def oracle(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        columns = [[one[name] for one in given] for name in ("image", "text", "scale", "bias")]
        return [{"loss": siglip.siglip_loss(*columns, rank)} for rank in range(ranks)]

    terms, gradients = trace(
        oracle, inputs, [{"loss": np.array(1.0)}] * ranks, m.precision, Blocks(chunk, ranks)
    )
    of_text: list[list[Array]] = [[] for _ in rows]
    for rank, image in enumerate(images):
        parts, of_image, of_scale, of_bias = [], [], [], []
        for other, text in enumerate(texts):
            z = scaled(m, scale, image, text, bias)
            slopes, values = np.zeros(z.shape), []
            for i, j in itertools.product(*map(range, z.shape)):
                label = 1.0 if (rank, i) == (other, j) else -1.0
                margin = label * z[i, j]
                power = m.exp(-abs(margin))
                tail = m.elementary(math.log1p(power))
                values.append(m.store(m.rounded(tail + max(-margin, 0))))
                share = m.rounded(1 / m.rounded(1 + power))
                slope = m.store(-label * m.store(m.rounded(power * share) if margin >= 0 else share))
                slopes[i, j] = m.store(m.rounded(m.rounded(slope * ranks) / total))
            parts.append(m.store(m.sum(values)))
            of_image.append(through(m, slopes, text, scale))
            of_text[other].append(through(m, slopes.T, image, scale))
            products = [[m.store(m.dot(a, b)) for b in text] for a in image]
            of_scale.append(
                m.store(
                    m.sum(m.rounded(g * s) for g, s in zip(slopes.ravel(), np.ravel(products), strict=True))
                )
            )
            of_bias.append(m.store(m.sum(slopes.ravel())))
        loss = m.store(m.rounded(m.rounded(m.store(m.sum(parts)) * ranks) / total))
        inside(loss, np.real(oracle(inputs)[rank]["loss"]), terms[rank]["loss"], "loss")

        def whole(moved: Array, name: str, place: int = rank) -> complex:
            now = [dict(one) for one in inputs]
            now[place][name] = moved
            return sum(one["loss"] for one in oracle(now))

        stored = {"scale": m.store(m.sum(of_scale)), "bias": m.store(m.sum(of_bias))}
        stored["image"] = [
            [m.store(m.sum(each)) for each in zip(*row, strict=True)] for row in zip(*of_image, strict=True)
        ]
        for name, found in stored.items():
            expected = exact_gradient(lambda moved, name=name: whole(moved, name), inputs[rank][name])  # type: ignore[misc]
            inside(found, expected, gradients[rank][name], name)
    for rank, ways in enumerate(of_text):
        found = [[m.store(m.sum(each)) for each in zip(*row, strict=True)] for row in zip(*ways, strict=True)]
        expected = exact_gradient(lambda moved, rank=rank: whole(moved, "text", rank), inputs[rank]["text"])  # type: ignore[misc]
        inside(found, expected, gradients[rank]["text"], "text")


# Balls: float64 and float32 against numbers that are enclosed.


def test_float32_is_as_near_to_enclosed_values_as_is_traced() -> None:
    flint = pytest.importorskip("flint", exc_type=ImportError)
    rng = np.random.default_rng(5)
    image, text = (rng.standard_normal((4, 6)).astype(np.float32) for _ in range(2))
    scale, bias = np.float32(7.3), np.float32(-1.7)

    def loss(kind: Callable[[Any], Any], oracle: Callable[..., Any]) -> Any:
        columns = [[np.asarray(kind(one))] for one in (image, text, scale, bias)]
        columns = [[one.reshape(()) if one.size == 1 else one for one in column] for column in columns]
        return oracle(*columns, 0)

    ball = np.vectorize(lambda number: flint.arb(float(number)), otypes=[object])
    inputs = [
        {
            "image": image.astype(float),
            "text": text.astype(float),
            "scale": np.array(float(scale)),
            "bias": np.array(float(bias)),
        }
    ]
    flint.ctx.prec = 200

    def contrast(*columns: Any) -> Any:
        # an array of objects of no dimensions is its element
        x, y, s, b, rank = columns
        return clip.clip_loss(x, y, [s[0][()]], [b[0][()]], rank)

    for oracle, balls in ((clip.clip_loss, contrast),):
        enclosed = loss(ball, balls)
        assert float(enclosed.rad()) < 2.0**-150
        terms = {}
        for name in ("float32", "float64"):
            traced = trace(
                lambda given, oracle=oracle: [{"loss": oracle(*([one] for one in given[0].values()), 0)}],  # type: ignore[misc]
                inputs, [{"loss": np.array(1.0)}], Precision.of(name),
            )  # fmt: skip
            terms[name] = float(traced[0][0]["loss"])
        single, double = loss(np.float32, oracle), loss(np.float64, oracle)
        assert single.dtype == np.float32
        assert abs(float(flint.arb(float(single)) - enclosed)) <= terms["float32"]
        assert abs(float(flint.arb(float(double)) - enclosed)) <= terms["float64"]
        assert terms["float32"] < 1e-4


# The tape.

UNIT = Subject("any:Loss", ("exact", "open_clip"), features="unit")
RAW = replace(UNIT, features="")
WORLDS = [
    (name, world_size)
    for name, contract in contracts().items()
    for world_size in (1, 3)
    if world_size >= contract.smallest_world
]


@pytest.mark.parametrize(("name", "world_size"), WORLDS)
def test_what_is_traced_has_the_values_of_the_oracle(name: str, world_size: int) -> None:
    contract = contracts()[name]
    subject = UNIT if contract.rows else RAW

    @given(contract.cases(subject, world_size))
    @settings(
        max_examples=5,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def compare(case: Case) -> None:
        found: list[dict[str, Any]] = []

        def terms(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
            found.extend(contract.oracle(case, contract.prepared(case, ranks)))
            return found

        inputs = contract.inputs(case)
        with np.errstate(over="ignore", invalid="ignore"):
            trace(terms, inputs, contract.cotangents(case), Precision.of("float64"))
            oracle = contract.oracle(case, contract.prepared(case, inputs))
        for traced, expected in zip(found, oracle, strict=True):
            for term, value in traced.items():
                if isinstance(value, tape.Traced):
                    size = 1 + abs(np.real(expected[term]))
                    close(value.bounded.value, np.real(expected[term]), size * 1e4, 1000)

    compare()


def of_one(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda ranks: [{"loss": function(**ranks[0])}]


def traced(
    function: Callable[..., Any], p: Precision = SINGLE, **inputs: Array
) -> tuple[Any, dict[str, Array]]:
    terms, gradients = trace(of_one(function), [inputs], [{"loss": np.array(1.0)}], p)
    return terms[0]["loss"], gradients[0]


X = np.array([[0.3, -1.7], [2.1, 0.9]])
IDS = np.array([1, 0])


def test_an_oracle_of_ones_own_has_the_bounds_of_a_contract() -> None:
    case = Case(rows=(3,), width=4, dtype="float32", pattern="unit", scale=10.3, bias=-3.1, seed=1)
    contract = contracts()["clip"]

    def mine(image_features: Any, text_features: Any, logit_scale: Any, logit_bias: Any) -> Any:
        rows = np.arange(len(image_features))
        z = clip.scaled_product(image_features, text_features, logit_scale, logit_bias)
        other = clip.scaled_product(text_features, image_features, logit_scale, logit_bias)
        losses = np.sum(clip.cross_entropy(z, rows)) + np.sum(clip.cross_entropy(other, rows))
        return losses / len(rows) / 2

    inputs = contract.inputs(case)
    cotangents = contract.cotangents(case)
    expected = contract.bounds(case, inputs, cotangents)
    terms, gradients = trace(
        of_one(mine), inputs, [{"loss": cotangents[0]["contrastive_loss"]}], case.precision
    )
    assert terms[0]["loss"] == expected.terms[0]["contrastive_loss"]
    for name, bound in gradients[0].items():
        assert np.array_equal(bound, expected.gradients[0][name]), name


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: np.tanh(x).sum(), "tanh"),
        (lambda x: np.linalg.norm(x), "norm"),
        (lambda x: (x * x).sum(), "product of two traced values"),
        (lambda x: (x @ x.T).sum(), "matmul"),
        (lambda x: np.sum(x, axis=1), "sum with"),
        (lambda x: np.exp(x).sum(), "exp of other than a scalar"),
        (lambda x: sum(row.sum() for row in x), "iteration"),
        (lambda x: float(x[0, 0]), "float"),
        (lambda x: x.sum() if x[0, 0] > 0 else 0.0, "greater"),
        (lambda x: x.sum() if x[0, 0] else 0.0, "condition"),
        (lambda x: (x + x[0]).sum(), "different shapes"),
        (lambda x: (x[:, :1] * np.ones((2, 2))).sum(), "different shapes"),
        (lambda x: np.concatenate([x, x], axis=1).sum(), "concatenate"),
        (lambda x: np.maximum(x, 0).sum(), "maximum"),
        (lambda x: np.sqrt(x.sum()), "sqrt"),
        (lambda x: clip.add_up([clip.cross_entropy(x, IDS)], [2]) / x.sum(), "quotient by a traced"),
        (lambda x: normalize(x + 1.0).sum(), "normalize of rows that err"),
        (lambda x: IDS[x], "array"),
    ],
)  # fmt: skip
def test_what_is_no_step_is_named(function: Callable[[Any], Any], named: str) -> None:
    with pytest.raises(NotSteps, match=named):
        traced(function, x=X)


def test_linear_arithmetic_by_hand() -> None:
    u = SINGLE.stored
    value, gradients = traced(lambda x: (x[IDS] * 3.0 - x / 4.0).sum(), x=X)
    # each product rounds, and so does its constant; so does the difference; then three sums
    assert 0 < value < 20 * u * abs(X).sum() * 3.25
    assert np.all(gradients["x"] < 20 * u * 3.25)
    exact, gradients = traced(lambda x: (2.0 * x.T.reshape(-1)[:1]).sum() * 0.5, x=X)
    assert exact <= SINGLE.tiny
    assert np.all(gradients["x"] <= 2 * SINGLE.tiny)
    assert np.count_nonzero(gradients["x"]) == 4  # what is not used may be stored, too
    same, _ = traced(lambda x: np.mean(x), x=X)
    other, _ = traced(lambda x: np.sum(x) / 4, x=X)
    assert same == other
    assert traced(lambda x: 0.1, x=X)[0] == u * 0.1
    # a constant that is rounded, and its product
    weighed = traced(lambda x: x.sum() * 0.3, x=X)[1]["x"]
    assert np.all(weighed >= 0.3 * 2 * u)
    assert np.all(weighed <= 0.3 * 8 * u)


def test_parts_of_a_gradient_round_as_they_are_added_up() -> None:
    def uses(count: int) -> float:
        rows = np.zeros(count, int)
        return float(traced(lambda x: np.concatenate([x[rows], x[:0]]).sum(), x=X)[1]["x"][0, 0])

    u = SINGLE.stored
    assert uses(1) <= 2 * SINGLE.tiny
    close(uses(3), 3 * bounds.gamma(0, u) + 3 * 0 + SINGLE.tiny, 1, 4, 4 * SINGLE.tiny + 3 * 3 * u)
    twice = traced(lambda x: np.sum(x[0]) + np.sum(x[0]), x=X)[1]["x"][0, 0]
    assert twice >= 2 * bounds.gamma(1, u)


def test_a_constant_carries_no_gradient() -> None:
    _, gradients = traced(lambda x: clip.add_up([clip.cross_entropy(np.real(x), IDS)], [2]), x=X)
    assert np.all(gradients["x"] == SINGLE.tiny)


@pytest.mark.parametrize(("kind", "plain"), [("exp", lambda t: np.exp(t)), ("inverse", lambda t: 1 / t)])
def test_held_scalars_may_be_written_in_numpy(kind: str, plain: Callable[[Any], Any]) -> None:
    def loss(scale: Callable[[Any], Any]) -> Any:
        def of(x: Any, t: Any) -> Any:
            return clip.cross_entropy(clip.scaled_product(x, x, scale(t), 0.0), IDS).sum()

        return traced(of, x=X, t=np.array(0.7))

    ours, theirs = loss(held.HELD[kind]), loss(plain)
    assert ours[0] == theirs[0] > 0
    assert ours[1]["t"] == theirs[1]["t"] > 0


def test_a_temperature_may_be_an_input() -> None:
    def loss(x: Any, t: Any) -> Any:
        cosines = divided_product(normalize(x), normalize(x), t)
        return clip.add_up([clip.cross_entropy(cosines, IDS)], [2]) / 2

    _, gradients = traced(loss, x=X, t=np.array(0.07))
    assert gradients["t"] > 0


def test_ranks_that_see_the_same_share_what_is_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    entropy = softmax.entropy_of
    monkeypatch.setattr(softmax, "entropy_of", lambda *given: calls.append(1) or entropy(*given))
    case = Case(rows=(2,) * 8, width=3, options=(("local_loss", False), ("gather_with_grad", True)), seed=2)
    contract = contracts()["clip"]
    contract.bounds(case, contract.inputs(case), contract.cotangents(case))
    assert len(calls) == 2  # one for each direction


def test_a_step_of_ones_own() -> None:
    def rule(value: Any, by: float) -> Any:
        return value * by

    @step(rule)
    def doubled(value: Any, by: float) -> Any:
        """Return it."""
        return value * by

    assert doubled(3.0, by=2.0) == 6.0
    assert doubled.__name__ == "doubled"
    assert traced(lambda x: doubled(x, by=2.0).sum(), x=X)[0] > 0
