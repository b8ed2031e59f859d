"""The oracles of the kinds beyond open_clip's, by hand and against a second formulation in mpmath.

The second formulation is written from the formulas, with a loop for every sum.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from benchmarks.tolerances import drawn
from tests.helpers import close
from verified_losses.oracles import (
    complex_step,
    decoupled,
    hard_negatives,
    margin,
    masked,
    matryoshka,
    multi_positive,
    queue,
    siglip,
    soft_targets,
    supcon,
)
from verified_losses.properties.ask import cli
from verified_losses.properties.ask import inspect as ask_inspect
from verified_losses.properties.ask.api import certify
from verified_losses.properties.ask.inspect import inspected
from verified_losses.properties.cases import Case, Options
from verified_losses.properties.contracts import contract_of
from verified_losses.properties.examples import Example
from verified_losses.properties.laws import Bench, Unanswered, laws
from verified_losses.properties.laws.gradients import gradients_equal_oracle
from verified_losses.properties.laws.large import large_equals_oracle
from verified_losses.properties.laws.objects import LACKING
from verified_losses.properties.laws.values import terms_equal_oracle
from verified_losses.properties.laws.wrappers import NO_DTENSORS, NO_SCALE
from verified_losses.properties.names import FORMULAS
from verified_losses.properties.reference import reference
from verified_losses.properties.subjects import Subject
from verified_losses.properties.verify.arguments import ask
from verified_losses.properties.verify.certifier import Check, checks, judged, verify
from verified_losses.properties.verify.limits import (
    RAISING_COMPILED,
    RAISING_SECOND_DERIVATIVES,
    RAISING_TRANSFORMS,
)
from verified_losses.properties.worlds.single import SingleWorld
from verified_losses.properties.worlds.specs import parse

from .defects import turns
from .defects.index import PAIRS, Planted
from .defects.kinds.index import DEFECTS, RIGHT
from .defects.report import EXAMPLES, reason_if_falsified

BUDGET = 4 * EXAMPLES
FEW = 3

LOG2, LOG3 = np.log(2), np.log(3)
EYE = np.eye(2)
TRIANGLE = np.array([[1.0, 0], [1, 1]])
FAR = np.array([[1.0, 0], [1, 0], [0, 0.01]])
DIGITS = 40
STEP = mpmath.mpf(10) ** -15
OPERATIONS = 300
"""Between an input and a loss or a gradient, of cases with a few rows."""


# Worked by hand.


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # the only other row is the positive
        (lambda: supcon.supcon_loss(EYE, np.array([1, 1]), 0.5), 0.0),
        # rows a, a, b, b: of an anchor's three others one is its positive, with logit 1 against 0 and 0
        (
            lambda: supcon.supcon_loss(EYE[[0, 0, 1, 1]], np.array([3, 3, 5, 5]), 1.0),
            np.log(1 + 2 * np.exp(-1)),
        ),
        # all are positives of each other, and equal
        (lambda: supcon.supcon_loss(EYE[[0, 0, 0]], np.array([0, 0, 0]), 0.1), LOG2),
        (lambda: multi_positive.multi_positive_loss(EYE, EYE, np.array([0, 1]), 1.0), np.log(1 + np.exp(-1))),
        # both texts are positives of both: mean of logits 1 and 0
        (lambda: multi_positive.multi_positive_loss(EYE, EYE, np.array([4, 4]), 1.0), np.log(1 + np.e) - 0.5),
        # logits 1, 0 and negatives 0, 0
        (
            lambda: hard_negatives.hard_negatives_loss(EYE, EYE, np.zeros((2, 1, 2)), 1.0),
            np.log(np.e + 3) - 1,
        ),
        (lambda: queue.queue_loss(EYE, EYE, np.zeros((2, 2)), 0.5), np.log(np.exp(2) + 2) - 2),
        (lambda: soft_targets.smoothed_loss(np.zeros((2, 3)), np.array([0, 2]), 0.3), LOG3),
        # targets 3/4 and 1/4 of logits log 3 and 0, whose softmax they are: their entropy
        (
            lambda: soft_targets.smoothed_loss(np.array([[LOG3, 0.0]]), np.array([0]), 0.5),
            2 * LOG2 - 0.75 * LOG3,
        ),
        (lambda: soft_targets.softened_loss(EYE, EYE, 3.0), 0.0),
        # the teacher is (3/4, 1/4) at T = 2, the student uniform: 4 times log 2 less the entropy
        (
            lambda: soft_targets.softened_loss(np.zeros((1, 2)), np.array([[2 * LOG3, 0.0]]), 2.0),
            4 * (LOG2 - (2 * LOG2 - 0.75 * LOG3)),
        ),
        # no momentum model's share in the targets: images find its texts, texts none of its images
        (lambda: soft_targets.momentum_loss(EYE, EYE, -EYE, EYE, 1.0, 0.0), np.log(1 + np.e) - 0.5),
        # its softmax alone, uniform: the mean of log(1 + e) - 1 and log(1 + e) for images, of texts log 2
        (
            lambda: soft_targets.momentum_loss(EYE, EYE, 0 * EYE, EYE, 1.0, 1.0),
            (np.log(1 + np.e) - 0.5 + LOG2) / 2,
        ),
        (lambda: masked.masked_loss(EYE, EYE, np.array([0, 1]), 1.0), np.log(1 + np.exp(-1))),
        # the other key is of the same identity: nothing is left to confuse
        (lambda: masked.masked_loss(EYE, EYE, np.array([7, 7]), 1.0), 0.0),
        # partner 1, negatives 0 and 0
        (lambda: decoupled.decoupled_loss(EYE, EYE, 1.0), LOG2 - 1),
        # negatives 1000, 1000, 0 and 0, or 0 four times, whose exponentials are 0 beside exp(1000)
        (
            lambda: decoupled.decoupled_loss(FAR, FAR, 1e-3),
            (4 * LOG2 + 2 * (2 * LOG2 - 0.1)) / 6,
        ),
        # p = e, mean of negatives 1: g = (1 - e / 4) 4 / 3, which is above exp(-1), twice
        (lambda: decoupled.debiased_loss(EYE, EYE, 1.0, 0.25), np.log(1 + 2 * (4 - np.e) / (3 * np.e))),
        # (1 - 3 e / 10) 10 / 7 is below it
        (lambda: decoupled.debiased_loss(EYE, EYE, 1.0, 0.3), np.log(1 + 2 * np.exp(-2))),
        # one of one element has a softmax over equal logits, and both have log(1 + exp(-1))
        (
            lambda: matryoshka.matryoshka_loss(TRIANGLE, 2 * TRIANGLE, 1.0, [1]),
            LOG2,
        ),
        (lambda: margin.triplet_loss(EYE, EYE, EYE[::-1], 3.0), 1.0),
        (lambda: margin.triplet_loss(EYE, EYE, EYE[::-1], 1.0), 0.0),
        # each of two others, in two directions, exceeds 1.5 - 1 + 0
        (lambda: margin.max_margin_loss(EYE, EYE, 1.5), 1.0),
        (lambda: siglip.sigmoid_mean_loss(EYE, 0 * EYE, 1.0, 0.0), LOG2),
    ],
)  # fmt: skip
def test_by_hand(found: Callable[[], complex], expected: float) -> None:
    close(np.real(found()), expected, 10, OPERATIONS)


def test_one_row_has_no_others() -> None:
    row = EYE[:1]
    with pytest.raises(ValueError, match=r"^expected two rows or more, got 1$"):
        decoupled.decoupled_loss(row, row, 1.0)
    with pytest.raises(ValueError, match=r"^expected two rows or more, got 1$"):
        decoupled.debiased_loss(row, row, 1.0, 0.1)


def test_a_hinge_has_no_slope_where_it_is_0() -> None:
    # |a - p|^2 is 0 and |a - n|^2 is 2, as is the margin
    found = complex_step.gradient(lambda a: margin.triplet_loss(a, EYE, EYE[::-1], 2.0), EYE)
    assert not found.any()


# Against loops.


def dot(x: Any, y: Any) -> Any:
    return mpmath.fsum(a * b for a, b in zip(x, y, strict=True))


def log_sum(logits: list[Any]) -> Any:
    return mpmath.log(mpmath.fsum(mpmath.exp(z) for z in logits))


def mean(values: list[Any]) -> Any:
    return mpmath.fsum(values) / len(values)


def supcon_again(labels: Any, temperature: float, features: Any) -> Any:
    losses = []
    for i, anchor in enumerate(features):
        others = [j for j in range(len(features)) if j != i]
        total = log_sum([dot(anchor, features[j]) / temperature for j in others])
        positive = [dot(anchor, features[j]) / temperature for j in others if labels[j] == labels[i]]
        losses.append(mean([total - z for z in positive]))
    return mean(losses)


def multi_positive_again(labels: Any, temperature: float, image: Any, text: Any) -> Any:
    losses = []
    for one, other in ((image, text), (text, image)):
        for i, anchor in enumerate(one):
            logits = [dot(anchor, y) / temperature for y in other]
            positive = [z for z, label in zip(logits, labels, strict=True) if label == labels[i]]
            losses.append(mean([log_sum(logits) - z for z in positive]))
    return mean(losses)


def hard_negatives_again(temperature: float, query: Any, positive: Any, negatives: Any) -> Any:
    passages = [*positive, *(row for rows in negatives for row in rows)]
    return mean(
        [
            log_sum([dot(q, p) / temperature for p in passages]) - dot(q, positive[i]) / temperature
            for i, q in enumerate(query)
        ]
    )


def queue_again(temperature: float, query: Any, key: Any, queue: Any) -> Any:
    return mean(
        [
            log_sum([dot(q, p) / temperature for p in [k, *queue]]) - dot(q, k) / temperature
            for q, k in zip(query, key, strict=True)
        ]
    )


def held_queue_again(temperature: float, query: Any, key: Any, queue: Any) -> Any:
    """A queue of as many batches as there are places, each of the rows' keys at one call, oldest first."""
    total = mpmath.mpf(0)
    for call in range(len(query[0])):
        batches = [[row[place] for row in queue] for place in range(len(queue[0]))]
        batches += [[row[place] for row in key] for place in range(call)]
        own = [k for batch in batches[-len(queue[0]) :] for k in batch]
        total += queue_again(temperature, [row[call] for row in query], [row[call] for row in key], own)
    return total


def smoothed_again(labels: Any, smoothing: float, logits: Any) -> Any:
    share = mpmath.mpf(smoothing)
    return mean(
        [
            (1 - share) * (log_sum(row) - row[label]) + share * mean([log_sum(row) - z for z in row])
            for row, label in zip(logits, labels, strict=True)
        ]
    )


def softened_again(teacher: Any, temperature: float, student: Any) -> Any:
    losses = []
    for own, row in zip(student, teacher, strict=True):
        t, s = ([mpmath.mpf(z) / temperature for z in one] for one in (row, own))
        losses.append(
            mpmath.fsum(
                mpmath.exp(a - log_sum(t)) * ((a - log_sum(t)) - (b - log_sum(s)))
                for a, b in zip(t, s, strict=True)
            )
        )
    return temperature**2 * mean(losses)


def momentum_again(still: Any, temperature: float, alpha: float, image: Any, text: Any) -> Any:
    alpha, losses = mpmath.mpf(alpha), []
    for one, momentum, keys in ((image, *still), (text, *still[::-1])):
        for i, anchor in enumerate(one):
            logits = [dot(anchor, y) / temperature for y in keys]
            soft = [dot(momentum[i], y) / temperature for y in keys]
            losses.append(
                mpmath.fsum(
                    (alpha * mpmath.exp(soft[j] - log_sum(soft)) + (1 - alpha) * (i == j))
                    * (log_sum(logits) - logits[j])
                    for j in range(len(keys))
                )
            )
    return mean(losses)


def masked_again(ids: Any, temperature: float, query: Any, key: Any) -> Any:
    losses = []
    for i, q in enumerate(query):
        kept = [j for j in range(len(key)) if j == i or ids[j] != ids[i]]
        losses.append(log_sum([dot(q, key[j]) / temperature for j in kept]) - dot(q, key[i]) / temperature)
    return mean(losses)


def negatives_of(first: Any, second: Any, temperature: float) -> list[tuple[Any, list[Any]]]:
    """Return each view's positive logit and its negative ones."""
    pairs = []
    for one, other in ((first, second), (second, first)):
        for i, anchor in enumerate(one):
            far = [view[j] for view in (one, other) for j in range(len(one)) if j != i]
            pairs.append((dot(anchor, other[i]) / temperature, [dot(anchor, y) / temperature for y in far]))
    return pairs


def decoupled_again(temperature: float, first: Any, second: Any) -> Any:
    return mean([log_sum(far) - near for near, far in negatives_of(first, second, temperature)])


def debiased_again(temperature: float, tau: float, first: Any, second: Any) -> Any:
    losses, share = [], mpmath.mpf(tau)
    for near, far in negatives_of(first, second, temperature):
        p = mpmath.exp(near)
        g = (mean([mpmath.exp(z) for z in far]) - share * p) / (1 - share)
        g = max(g, mpmath.exp(-1 / mpmath.mpf(temperature)))
        losses.append(-mpmath.log(p / (p + len(far) * g)))
    return mean(losses)


def matryoshka_again(temperature: float, dims: Any, query: Any, key: Any) -> Any:
    total = mpmath.mpf(0)
    for dim in dims:
        one, other = (
            [[x / mpmath.sqrt(dot(row[:dim], row[:dim])) for x in row[:dim]] for row in side]
            for side in (query, key)
        )
        logits = [[dot(q, k) / temperature for k in other] for q in one]
        total += mean([log_sum(row) - row[i] for i, row in enumerate(logits)])
    return total


def triplet_again(gap: float, anchor: Any, positive: Any, negative: Any) -> Any:
    return mean(
        [
            max(0, sum((x - y) ** 2 for x, y in zip(a, p, strict=True))
                - sum((x - y) ** 2 for x, y in zip(a, n, strict=True)) + gap)
            for a, p, n in zip(anchor, positive, negative, strict=True)
        ]
    )  # fmt: skip


def max_margin_again(gap: float, image: Any, text: Any) -> Any:
    total = mpmath.mpf(0)
    for i in range(len(image)):
        for j in range(len(image)):
            if i != j:
                total += max(0, gap - dot(image[i], text[i]) + dot(image[i], text[j]))
                total += max(0, gap - dot(image[i], text[i]) + dot(image[j], text[i]))
    return total / len(image)


def sigmoid_mean_again(scale: float, bias: float, image: Any, text: Any) -> Any:
    return mean(
        [
            mpmath.log(1 + mpmath.exp((-1 if i == j else 1) * (scale * dot(x, t) + bias)))
            for i, x in enumerate(image)
            for j, t in enumerate(text)
        ]
    )


random = np.random.default_rng(0)
ROWS, WIDTH, CLASSES = 4, 3, 3
LABELS, IDS = np.array([2, 0, 2, 0]), np.array([1, 0, 1, 1])
A, B, C, D = random.uniform(-1, 1, (4, ROWS, WIDTH))
MANY = random.uniform(-1, 1, (ROWS, 2, WIDTH))
CALLS = np.random.default_rng(1).uniform(-1, 1, (2, ROWS, 2, WIDTH))
T, GAP, ALPHA, TAU, SMOOTHING, DIMS = 0.5, 0.7, 0.4, 0.1, 0.2, (1, 3)

Loss = Callable[..., Any]
AGAIN: dict[str, tuple[Loss, Loss, tuple[np.ndarray, ...]]] = {
    "supcon": (lambda x: supcon.supcon_loss(x, LABELS, T), partial(supcon_again, LABELS, T), (A,)),
    "multi_positive": (
        lambda x, y: multi_positive.multi_positive_loss(x, y, IDS, T),
        partial(multi_positive_again, IDS, T),
        (A, B),
    ),
    "hard_negatives": (
        lambda *given: hard_negatives.hard_negatives_loss(*given, T),
        partial(hard_negatives_again, T),
        (A, B, MANY),
    ),
    "queue": (lambda *given: queue.queue_loss(*given, T), partial(queue_again, T), (A, B, C[:3])),
    "held_queue": (
        lambda *given: queue.held_queue_loss(*given, T),
        partial(held_queue_again, T),
        (CALLS[0], CALLS[1], MANY),
    ),
    "smoothed": (
        lambda z: soft_targets.smoothed_loss(z, LABELS, SMOOTHING),
        partial(smoothed_again, LABELS, SMOOTHING),
        (A,),
    ),
    "softened": (
        lambda z: soft_targets.softened_loss(z, B, 3.0),
        partial(softened_again, B, 3),
        (A,),
    ),
    "momentum": (
        lambda x, y: soft_targets.momentum_loss(x, y, C, D, T, ALPHA),
        partial(momentum_again, (C, D), T, ALPHA),
        (A, B),
    ),
    "masked": (
        lambda x, y: masked.masked_loss(x, y, IDS, T), partial(masked_again, IDS, T), (A, B)
    ),
    "decoupled": (lambda x, y: decoupled.decoupled_loss(x, y, T), partial(decoupled_again, T), (A, B)),
    "debiased": (
        lambda x, y: decoupled.debiased_loss(x, y, T, TAU), partial(debiased_again, T, TAU), (A, B)
    ),
    "matryoshka": (
        lambda x, y: matryoshka.matryoshka_loss(x, y, T, DIMS),
        partial(matryoshka_again, T, DIMS),
        (A, B),
    ),
    "triplet": (lambda *given: margin.triplet_loss(*given, GAP), partial(triplet_again, GAP), (A, B, C)),
    "max_margin": (
        lambda x, y: margin.max_margin_loss(x, y, GAP), partial(max_margin_again, GAP), (A, B)
    ),
    "sigmoid_mean": (
        lambda x, y: siglip.sigmoid_mean_loss(x, y, 3.0, -0.5),
        partial(sigmoid_mean_again, 3.0, -0.5),
        (A, B),
    ),
}  # fmt: skip
MAGNITUDE = 500
"""Of the terms of each loss and gradient here, together."""


@pytest.mark.parametrize("name", AGAIN)
def test_against_loops(name: str) -> None:
    oracle, again, given = AGAIN[name]
    with mpmath.workdps(DIGITS):
        lists = [array.tolist() for array in given]
        close(np.real(oracle(*given)), float(again(*lists)), MAGNITUDE, OPERATIONS)
        for place, array in enumerate(given):
            along = np.random.default_rng(place).choice([-1.0, 1.0], array.shape)

            def moved(step: Any, place: int = place, array: Any = array, along: Any = along) -> Any:
                change = (array.astype(object) + step * along.astype(object)).tolist()
                return again(*[change if k == place else one for k, one in enumerate(lists)])

            expected = (moved(STEP) - moved(-STEP)) / (2 * STEP)

            def at(value: Any, place: int = place) -> Any:
                return oracle(*[value if k == place else one for k, one in enumerate(given)])

            found = complex_step.directional_derivative(at, array, along)
            close(found, float(expected), MAGNITUDE, OPERATIONS)


# Certified.


def planned_of(planted: Planted) -> list[Check]:
    """Return the checks of a loss in its world."""
    return list(checks({planted.id: (planted.contract, planted.subject)}, parse(planted.world)))


@pytest.mark.parametrize("planted", DEFECTS, ids=lambda planted: planted.id)
def test_defects_of_further_kinds_are_caught(planted: Planted) -> None:
    planned = {check.law.name: check for check in planned_of(planted)}
    for law in planted.caught_by:
        reason = reason_if_falsified(planned[law], BUDGET, 0)
        assert reason, f"{law} holds"
        assert planted.explains(reason), reason


OF_PDIST = "kinds.alignment:by_distances"
OF_PDIST_LIMITS = {"bfloat16", "float16", RAISING_SECOND_DERIVATIVES}


@pytest.mark.parametrize("planted", RIGHT, ids=lambda planted: planted.id)
def test_right_variants_of_further_kinds_are_not_accused(planted: Planted) -> None:
    laws_asked = turns.asked(RIGHT.index(planted))
    for check in planned_of(planted):
        if check.law.name not in laws_asked:
            continue
        if check.law.name == PAIRS and planted.contract != FORMULAS["queue"]:
            continue  # with a number for each pair they take seconds; `make soak` has them
        finding = judged(verify(check, FEW), FEW)
        if finding.limit in (RAISING_COMPILED, RAISING_TRANSFORMS):
            continue  # it derives in its forward, which torch neither compiles nor transforms
        if planted.id == OF_PDIST and OF_PDIST_LIMITS.issuperset(finding.limit.split(", ")):
            continue
        expected = "skipped" if finding.reason in (*LACKING, NO_DTENSORS, NO_SCALE) else "holds"
        said = f"{check.law.name}, {finding.limit}: {finding.reason}\n{finding.counterexample}"
        assert finding.verdict == expected, said


CANCELLING = [
    Case(rows=(10,), width=2, pattern="basis", options=(("dims", (64,)),), drawn=(("temperature", 0.116),)),
    *(
        Case(rows=(rows,), width=width, dtype=dtype, pattern=pattern, options=(("dims", dims),), seed=seed,
             drawn=(("temperature", temperature),))
        for rows, width, dtype, pattern, dims, seed, temperature in [
            (4, 1, "float32", "saturated", (1, 2), 12, 0.316),
            (7, 1, "bfloat16", "large", (2, 5, 33), 104, 0.1),
            (6, 1, "float16", "large", (2, 5, 33), 65536, 0.321),
            (9, 1, "float64", "unit", (1, 2), 3, 0.01),
            (40, 3, "float64", "duplicates", (64,), 0, 0.05),
            (40, 3, "float32", "duplicates", (2, 5, 33), 3, 1.0),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CANCELLING, ids=str)
@pytest.mark.parametrize("name", ["matryoshka", "by_cosines"])
def test_what_is_left_where_gradients_cancel_is_not_accused(name: str, case: Case) -> None:
    """Of rows of one element, or all equal: samples of one formula may be left with less."""
    (planted,) = [one for one in RIGHT if one.id == f"kinds.matryoshka:{name}"]
    held_to, world = contract_of(planted.contract), SingleWorld()
    bench = Bench(held_to, planted.subject, world, world)
    for law in terms_equal_oracle, gradients_equal_oracle:
        assert law(bench, bench.reference(case)) < 1


def test_single_elements_and_equal_rows_are_drawn() -> None:
    (planted,) = [one for one in RIGHT if one.id == "kinds.matryoshka:by_cosines"]
    held_to = contract_of(planted.contract)
    cases = drawn(held_to, planted.subject, 100, 0)
    assert any(case.width == 1 for case in cases)
    assert any((1, 2) in dict(case.options).values() for case in cases)
    queries = [held_to.inputs(case)[0]["query"] for case in cases if sum(case.rows) > 2]
    assert any((one == one[0]).all() for one in queries)


def test_each_kind_has_defects_and_right_variants() -> None:
    for found, least in (DEFECTS, 5), (RIGHT, 2):
        counts = Counter(planted.contract for planted in found if planted.id != OF_PDIST)
        assert counts.keys() == set(FORMULAS.values())
        assert min(counts.values()) >= least


@pytest.mark.parametrize("name", FORMULAS)
def test_each_kind_says_where_its_tolerance_comes_from_and_may_be_called_in_a_stated_form(name: str) -> None:
    held_to = contract_of(FORMULAS[name])
    assert "Monte Carlo arithmetic" in held_to.tolerance
    names = ", ".join(held_to.inputs(held_to.probe(Case(rows=(5,), width=4, options=first_options(name))))[0])
    stated, subject = ask("any:loss", name, call=f"target({names})")
    assert (stated, subject.form.call) == (FORMULAS[name], f"target({names})")


def first_options(name: str) -> Options:
    """Return the first of each option's values."""
    return tuple((option, values[0]) for option, values in contract_of(FORMULAS[name]).values.items())


def test_a_kind_is_certified_and_inspected_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    certificate = certify(torch.nn.CrossEntropyLoss, "smoothed", world="1", max_examples=3, only="terms*")
    assert certificate.verdict == "holds"
    subject = dict([ask("torch.nn:CrossEntropyLoss", "smoothed")])
    assert inspected(subject) == 0
    said = capsys.readouterr().out
    assert said.startswith("smoothed: its values are the oracle's\n")
    assert "calls CrossEntropyLoss(label_smoothing=label_smoothing)(input=logits, target=labels)\n" in said
    assert "verified-losses certify torch.nn:CrossEntropyLoss --as smoothed\n" in said


def test_a_queue_is_verified_over_ranks_where_the_loss_gathers() -> None:
    held = contract_of(FORMULAS["held_queue"])
    case = replace(held.probe(Case(rows=(2, 1), width=2)), pattern="unit")
    first, second = held.inputs(case)
    assert np.array_equal(first["queue"], second["queue"])
    assert (len(first["queue"]), len(first["key"]), len(second["key"])) == (3, 2, 1)
    ran = {}
    for name in "HeldQueue", "Gathered":
        place = f"tests.defects.kinds.held_queue:{name}"
        found = certify(
            place, "held_queue", world="1,sim:2", max_examples=2, only=["terms*", "mean*"], equal_rows=True
        )
        ran[name] = [one.world for one in found.properties]
    assert ran == {"HeldQueue": ["single"], "Gathered": ["single", "simulated:2", "simulated:2"]}


def test_large_batches_are_drawn_where_the_formula_says_that_it_is_cheap() -> None:
    (law,) = (one for one in laws() if one.name == PAIRS)
    asked = {name for name in FORMULAS if law.fits(contract_of(FORMULAS[name]), 1)}
    assert asked == {"queue", "smoothed", "softened", "masked", "sigmoid_mean"}
    unknown: Any = SimpleNamespace(bounds=SimpleNamespace(terms=[{"loss": np.array(np.inf)}]))
    anything: Any = None
    with pytest.raises(Unanswered, match="turn a comparison"):
        large_equals_oracle(anything, unknown)


def test_inspect_tries_the_kinds_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ask_inspect, "inspected", lambda given, options: asked.extend(given) or 0)
    monkeypatch.setattr(cli.server, "start", lambda compiles: None)
    cli.inspect("torch.nn:CrossEntropyLoss")
    assert {"clip", "cross_entropy", *FORMULAS.values()} <= {*asked}
    names = ("infonce", "decoupled", "masked")
    pairs = dict(ask("tests.defects.kinds.decoupled:first_view_alone", name) for name in names)
    assert inspected(pairs) == 1
    said = capsys.readouterr().out
    assert said.startswith("infonce: it can be called, but its values are not the oracle's\n")
    assert said.endswith("it can be called as decoupled too\n")


@pytest.mark.parametrize("kind", FORMULAS)
def test_bounds_in_float64_leave_half_of_the_digits(kind: str) -> None:
    """A bound that is far larger than gradients are would let every gradient pass."""
    contract = contract_of(FORMULAS[kind])
    subject = Subject("tests:unused", even=True, dtypes=("float64",), gathers=False)
    for case in drawn(contract, subject, 10, 0):
        bounds = reference(contract, Example(case)).bounds
        for name, bound in [*bounds.terms[0].items(), *bounds.gradients[0].items()]:
            assert np.max(bound, initial=0) < np.sqrt(np.finfo(float).eps), name
