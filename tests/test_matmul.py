"""The bounds of products of matrices as GPUs compute them, against such products made in Python.

A right emulation stays within its bound, and goes past the bound of products that are not rounded further: so
each wider bound is needed. What a GPU's own libraries do is seen on a GPU alone.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.function import Function

from tests.defects.plain import Clip, Scalar, flat
from tests.test_rounding import Machine, through_logits
from verified_losses.oracles.bounds import FLOAT64, Bounded, Precision, Weight, gamma, product, sums, unit
from verified_losses.oracles.complex_step import Array
from verified_losses.oracles.dtypes import DTYPES, MATMULS
from verified_losses.oracles.hyper_dual import HyperDual
from verified_losses.properties import devices
from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.examples import Example
from verified_losses.properties.laws import Bench, Falsified, laws
from verified_losses.properties.reference import reference
from verified_losses.properties.subjects import Subject
from verified_losses.properties.worlds.single import SingleWorld

HALVES = ("bfloat16", "float16")
REPEATS = 12


def cut(value: float, unit: float) -> float:
    return math.trunc(value / unit) * unit


class TensorCore(Machine):
    """Multiplies rows as a GPU does, in whichever order, instructions and parts."""

    def __init__(self, dtype: str, matmul: str, seed: int) -> None:
        kind = DTYPES[dtype]
        super().__init__(kind.bits, DTYPES[kind.accumulated].bits, seed)
        self.precision = Precision.of(dtype, matmul)
        self.how = MATMULS[matmul]
        self.cuts = self.either(True, False)
        """What has too many bits, as tensor cores do that are handed it; else it is rounded before."""

    def factor(self, value: float) -> float:
        if not self.how.factors or not value:
            return value
        mantissa, exponent = math.frexp(value)
        scaled = math.ldexp(mantissa, self.how.factors)
        if self.cuts:
            return math.ldexp(math.trunc(scaled), exponent - self.how.factors)
        nearest = self.either(round(scaled), math.copysign(math.floor(abs(scaled) + 0.5), scaled))
        return math.ldexp(nearest, exponent - self.how.factors)

    def instructions(self, products: list[float]) -> float:
        """Add up as a tensor core does: shifted to the largest, and cut."""
        depth, further = self.either((4, 0), (8, 2), (16, 2))
        total = 0.0
        for start in range(0, len(products), depth):
            terms = [total, *products[start : start + depth]]
            if not any(terms):
                continue
            unit = math.ldexp(1.0, max(math.frexp(term)[1] for term in terms if term) - 24 - further)
            total = sum(cut(term, unit) for term in terms)
            total = cut(total, math.ldexp(1.0, math.frexp(total)[1] - 24)) if total else 0.0
        return total

    def dot(self, x: Any, y: Any) -> float:
        pairs = [(self.factor(a), self.factor(b)) for a, b in zip(x, y, strict=True)]
        self.random.shuffle(pairs)
        products = [a * b for a, b in pairs]
        if not self.how.splits or len(products) <= 16:
            return self.instructions(products)
        size = self.either(16, 32)
        parts = [self.instructions(products[i : i + size]) for i in range(0, len(products), size)]
        parts = [self.store(part) for part in parts]
        if self.either(True, False):
            return self.sum(parts)
        while len(parts) > 1:
            self.random.shuffle(parts)
            parts.append(self.store(parts.pop() + parts.pop()))
        return parts[0]

    def matrix(self, x: Array, y: Array) -> Array:
        return np.array([[self.dot(row, column) for column in y] for row in x])

    def stored(self, values: Array) -> Array:
        return np.vectorize(self.store, otypes=[float])(values)

    def plain(self) -> Precision:
        """The same without what products of matrices do."""
        dtype = next(name for name in DTYPES if Precision.of(name).stored == self.precision.stored)
        return Precision.of(dtype)


def worst(observed: Array, expected: Array, error: Array) -> float:
    off = np.asarray(abs(observed - expected))
    return float(np.max(np.divide(off, error, out=np.zeros(off.shape), where=off > 0)))


@pytest.mark.parametrize(
    ("dtype", "matmul", "expected"),
    [
        ("float32", "tf32", (2.0**-10, 2.0**-22, 0.0)),
        ("bfloat16", "truncated", (0.0, 2.0**-22, 0.0)),
        ("float16", "truncated", (0.0, 2.0**-22, 0.0)),
        ("bfloat16", "reduced", (0.0, 2.0**-22, 2.0**-8)),
        ("float16", "reduced", (0.0, 2.0**-22, 2.0**-11)),
        ("float16", "half", (0.0, 2.0**-10, 2.0**-11)),
        # a setting of other dtypes
        ("float64", "tf32", (0.0, 0.0, 0.0)),
        ("float32", "reduced", (0.0, 0.0, 0.0)),
        ("bfloat16", "tf32", (0.0, 0.0, 0.0)),
        ("bfloat16", "half", (0.0, 0.0, 0.0)),
    ],
)
def test_precision_by_hand(dtype: str, matmul: str, expected: tuple[float, ...]) -> None:
    p = Precision.of(dtype, matmul)
    assert (p.factors, p.additions, p.parts) == expected
    assert p.multiplied == (expected[1] or p.accumulated)
    assert (p.stored, p.accumulated) == (Precision.of(dtype).stored, Precision.of(dtype).accumulated)


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_is_added_up_in_float32(dtype: str) -> None:
    p = Precision.of(dtype)
    assert p == Precision.of(dtype, "exact")
    assert p.multiplied == (2.0**-53 if dtype == "float64" else 2.0**-24)
    assert p.coarser(10**6) == 0


@pytest.mark.parametrize(
    ("factors", "parts", "terms", "expected"),
    [
        (0, 0, 100, 0),
        (1 / 16, 0, 1, 2 / 14),
        (0, 1 / 16, 16, 0),
        (0, 1 / 16, 17, 2 / 14),
        (0, 1 / 16, 33, 3 / 13),
        (1 / 16, 1 / 16, 33, (1 + 2 / 14) * (1 + 3 / 13) - 1),
        (0, 1 / 16, 256, math.inf),
    ],
)
def test_coarser_by_hand(factors: float, parts: float, terms: int, expected: float) -> None:
    found = Precision(0.0, 0.0, 0.0, factors=factors, parts=parts).coarser(terms)
    # each side rounds at most six times
    assert found == pytest.approx(expected, rel=float(gamma(12, FLOAT64)))


@pytest.mark.parametrize(
    ("value", "rounds"),
    [(0.0, False), (2.0**40, False), (2047.0, False), (2049.0, True), (-2050.0, False), (4098.0, True)],
)
def test_what_eleven_bits_hold_is_not_rounded(value: float, rounds: bool) -> None:
    assert sums.narrower(np.array([value]), 2.0**-11).tolist() == [rounds]
    assert not sums.narrower(np.array([value]), 0.0).any()


def test_few_bits_are_exact_in_tf32_and_more_are_not() -> None:
    p, one = Precision.of("float32", "tf32"), np.ones((1, 1))
    fine = np.array([[1 + 2.0**-12]])
    assert product.logits(2.0, one * 0.75, one, 0.0, p).error.item() == 0
    for scale, x, y in ((2.0, fine, one), (2.0, one, fine), (1 + 2.0**-12, one, one)):
        assert product.logits(scale, x, y, 0.0, p).error.item() >= 2.0**-12
        assert product.logits(scale, x, y, 0.0, Precision.of("float32")).error.item() == 0
    # 6 and 7 bits are 13
    assert product.logits(127.0, 63 * one, one, 0.0, p).error.item() > 0


def test_what_tensor_cores_cut_errs_by_twice_what_rounding_does() -> None:
    p, m = Precision.of("float32", "tf32"), TensorCore("float32", "tf32", 0)
    rounded = replace(p, factors=p.kept)
    x = np.full((1, 20), 1 + 2.0**-10 - 2.0**-23)
    bound, narrow = (product.logits(1.0, x, x, 0.0, one) for one in (p, rounded))
    for m.cuts in (True, False):
        found = m.matrix(x, x)
        assert worst(found, bound.value, bound.error) <= 1
        assert (worst(found, bound.value, narrow.error) > 1) == m.cuts


def made(m: TensorCore, rows: int, columns: int, same_sign: bool) -> Array:
    values = m.numbers(rows, columns, m.bits["stored"], low=-1, high=0)
    return abs(values) if same_sign else values


@pytest.mark.parametrize(
    ("dtype", "matmul", "too_far"),
    [
        ("float32", "tf32", True),
        ("bfloat16", "reduced", True),
        ("float16", "reduced", True),
        ("bfloat16", "truncated", False),
        ("float16", "truncated", False),
    ],
)
def test_logits_err_within_their_bound_and_past_that_of_plain_products(
    dtype: str, matmul: str, too_far: bool
) -> None:
    past = 0.0
    for seed in range(REPEATS):
        m = TensorCore(dtype, matmul, seed)
        d, signs = m.either(1, 15, 33, 80), m.either(True, False)
        x, y = made(m, 2, d, signs), made(m, 2, d, signs)
        if m.either(True, False):  # sums whose parts cancel
            x, y = np.concatenate([x, -x], axis=1), np.concatenate([y, y], axis=1)
        scale, bias = m.store(m.either(1.0, 14.3)), m.store(m.either(0.0, -3.1))
        if m.either(True, False):
            found = m.matrix(m.stored(scale * x), y)
        else:
            found = m.stored(scale * m.stored(m.matrix(x, y)))
        found = m.stored(m.stored(found) + bias)
        bound = product.logits(scale, x, y, bias, m.precision)
        assert worst(found, bound.value, bound.error) <= 1
        past = max(past, worst(found, bound.value, product.logits(scale, x, y, bias, m.plain()).error))
    assert (past > 1) == too_far


@pytest.mark.parametrize(
    ("dtype", "matmul"), [("float32", "tf32"), ("bfloat16", "reduced"), ("float16", "reduced")]
)
def test_gradients_err_within_their_bound_and_past_that_of_plain_products(dtype: str, matmul: str) -> None:
    past = dict.fromkeys(("x", "y", "scale"), 0.0)
    for seed in range(REPEATS):
        m = TensorCore(dtype, matmul, seed)
        n, d = m.either(1, 15, 40), m.either(1, 2, 33)
        signs = m.either(True, False)
        x, y, slope = made(m, 2, d, signs), made(m, n, d, signs), made(m, 2, n, signs)
        given = Bounded(slope, np.zeros(slope.shape)), Weight(0.5, 0), 10.0, x, y
        g = m.stored(0.5 * slope)
        of_x, of_y = m.matrix(g, y.T), m.matrix(g.T, x.T)
        found = {"x": m.stored(10.0 * m.stored(of_x)), "y": m.stored(10.0 * m.stored(of_y))}
        terms = m.either(x * m.stored(of_x), y * m.stored(of_y), g * m.stored(m.matrix(x, y)))
        found["scale"] = np.asarray(m.store(m.sum(m.rounded(term) for term in terms.ravel())))
        exact = {"x": 5.0 * slope @ y, "y": 5.0 * slope.T @ x, "scale": (0.5 * slope * (x @ y.T)).sum()}
        bounds = through_logits(*given, m.precision)
        plain = through_logits(*given, m.plain())
        for name, value in found.items():
            assert worst(value, exact[name], bounds[name].error) <= 1, name
            past[name] = max(past[name], worst(value, exact[name], plain[name].error))
    # in half precision, what is stored on the way rounds more often than these sums have parts
    assert (min(past.values()) > 1) == (matmul == "tf32")


def test_cosines_err_within_their_bound_and_past_that_of_plain_products() -> None:
    past = 0.0
    for seed in range(REPEATS):
        m = TensorCore("float32", "tf32", seed)
        x, y = (made(m, 3, m.either(2, 9), True)[:, :2] + 0.01 for _ in range(2))
        unit_x, unit_y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
        found = m.stored(m.matrix(m.stored(unit_x), m.stored(unit_y)) / 0.07)
        further = product.Further(*[unit.normalization(2, m.precision)] * 2, 3 * m.precision.accumulated)
        bound = product.logits(1 / 0.07, unit_x, unit_y, 0.0, m.precision, further)
        assert worst(found, bound.value, bound.error) <= 1
        plain = product.logits(1 / 0.07, unit_x, unit_y, 0.0, m.plain(), further)
        past = max(past, worst(found, bound.value, plain.error))
    assert past > 1


def test_a_tensor_core_cuts_more_than_rounding_does() -> None:
    """Four products just below a unit in the last place of the sum so far are lost whole."""
    x = np.array([[1.0, *[0.0] * 3, *[2.0**-23 * (1 - 2.0**-10)] * 4]])
    m = TensorCore("float32", "truncated", 0)
    m.random.choice = lambda forms: forms[0]  # type: ignore[method-assign, assignment]
    lost = x.sum() - m.instructions(x[0].tolist())
    plain = Precision.of("float32")
    assert lost > gamma(5, plain.accumulated)
    assert lost <= gamma(5, Precision.of("float32", "tf32").multiplied)


def test_second_derivatives_have_room_for_rounded_factors() -> None:
    x, y = (np.random.default_rng(seed).standard_normal((4, 3)) for seed in (0, 1))

    def error(p: Precision) -> float:
        moved = HyperDual.at(x, np.ones(x.shape), np.ones((1, *x.shape)), p)
        value: Any = np.exp(moved @ HyperDual.at(y, np.ones(y.shape), np.ones((1, *y.shape)), p).T)
        return float(value.second()[1].min())

    # of two products that are multiplied
    assert error(Precision.of("float32", "tf32")) > error(Precision.of("float32")) + 4 * 2.0**-11


class Cut(Function):
    """A product of matrices whose elements keep the bits of TF32, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return Cut.of(x) @ Cut.of(y).T

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        x, y = ctx.saved_tensors
        return Cut.apply(slope, y.T), Cut.apply(slope.T, x.T)

    @staticmethod
    def of(tensor: Tensor) -> Tensor:
        return (tensor.detach().contiguous().view(torch.int32) & -(2**13)).view(torch.float32)


class CutClip(Clip):
    """Its kernel hands tensor cores float32 as it is."""

    def product(self, x: Tensor, y: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits: Tensor = flat(scale) * Cut.apply(x, y)
        return logits if bias is None else logits + flat(bias)


CUT = Subject(f"{__name__}:{CutClip.__name__}")
FINE = Case(rows=(7,), width=16, dtype="float32", pattern="unit", scale=20.0, cotangents="drawn", seed=3)


OF_FLOAT32 = [
    law.name for law in laws() if law.simulated and "oracle" in law.name and "autocast" not in law.name
]


@pytest.mark.parametrize("law", OF_FLOAT32)
def test_a_loss_that_cuts_is_right_in_tf32_alone(law: str) -> None:
    (found,) = [one for one in laws() if one.name == law]
    bench = Bench(contracts()["clip"], CUT, SingleWorld(), SingleWorld())
    assert found.check(bench, bench.reference(replace(FINE, matmul="tf32"))) <= 1
    with pytest.raises(Falsified):
        found.check(bench, bench.reference(FINE))


# Which of them a case has.


@pytest.mark.parametrize("name", ["clip", "siglip", "distill", "infonce", "ntxent"])
def test_every_loss_of_products_has_the_wider_bound(name: str) -> None:
    case = Case(rows=(3,), width=20, dtype="float32", pattern="unit", scale=10.3, seed=1)
    if name == "siglip":
        case = Case(rows=(3,), width=20, dtype="float32", pattern="unit", scale=10.3, bias=-3.1, seed=1)
    plain, coarse = (
        reference(contracts()[name], Example(one)).bounds
        for one in (case, Case(**{**vars(case), "matmul": "tf32"}))
    )
    for key, bound in plain.terms[0].items():
        assert coarse.terms[0][key] > 50 * bound, key
    for key, of in plain.gradients[0].items():
        if not of.any() or key.startswith("dist_") or key == "logit_bias":
            continue
        assert np.all(coarse.gradients[0][key] > 10 * of), key


def test_the_cpu_multiplies_exactly_and_its_cases_read_as_before() -> None:
    example = Example(Case(dtype="bfloat16")).on("cpu")
    assert example.case == Case(dtype="bfloat16")
    assert "matmul" not in example.to_json() + str(example)
    assert Example.from_json(example.to_json()) == example


@pytest.mark.parametrize(
    ("dtype", "setting", "value", "expected"),
    [
        ("float64", "", None, "exact"),
        ("float32", "", None, "exact"),
        ("float32", "allow_tf32", True, "tf32"),
        ("float32", "fp32_precision", "tf32", "tf32"),
        ("float16", "", None, "reduced"),
        ("bfloat16", "", None, "reduced"),
        ("bfloat16", "allow_bf16_reduced_precision_reduction", False, "truncated"),
        ("float16", "allow_fp16_reduced_precision_reduction", False, "truncated"),
        ("bfloat16", "allow_fp16_reduced_precision_reduction", False, "reduced"),
        ("float16", "allow_fp16_accumulation", True, "half"),
    ],
)
def test_a_case_of_cuda_is_of_the_settings(dtype: str, setting: str, value: object, expected: str) -> None:
    products: Any = torch.backends.cuda.matmul
    if setting and not _has(products, setting):
        pytest.skip(f"torch {torch.__version__} has no {setting}")
    before = getattr(products, setting) if setting else None
    try:
        if setting:
            setattr(products, setting, value)
        example = Example(Case(dtype=dtype)).on("cuda:0/cuda:1")
        assert example.case.matmul == expected
        assert Example.from_json(example.to_json()) == example
        assert ("matmul" in str(example)) == (expected != "exact")
        if setting != "fp32_precision":  # after which torch refuses to tell the older one
            for name, kept in devices.products_of(dtype, expected).items():
                assert getattr(products, name) == kept
        assert devices.matmul_of(dtype, "cpu") == devices.matmul_of(dtype, "standin:0") == "exact"
    finally:
        if setting:
            setattr(products, setting, before)


def _has(owner: Any, name: str) -> bool:
    try:
        getattr(owner, name)
    except (AttributeError, AssertionError):
        return False
    return True


def test_float32_products_of_high_precision_are_tf32() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert devices.matmul_of("float32", "cuda:0") == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
