"""Draws faults, each from a seed and its number alone."""

import functools
import random
from dataclasses import replace

from hypothesis import HealthCheck, Verbosity, given, seed, settings
from hypothesis import Phase as Drawing

from ..cases import Case
from ..contracts import contract_of
from ..examples import Example
from ..names import HALVES
from ..subjects import SHIPPED, Subject
from ..verify.arguments import Subjects
from ..verify.certifier import without_local_constants
from . import DISAGREEMENTS, KINDS, Call, Fault, Kind, Phase

CASES = 12
"""How many cases are drawn of a loss in a world; a fault takes one of them."""
MOST_ROWS, MOST_WIDTH = 32, 48
MOST_COLLECTIVES = 64
"""`Fault.at` is below it."""
LOCAL = ("cross_entropy", "linear_cross_entropy")
"""Contracts whose ranks tell one another nothing."""
PAIRS = (("float32", "float64"), ("bfloat16", "float32"))
"""The dtype of all ranks and that of the faulty one, which holds the values of the first exactly."""
PHASES: dict[Phase, int] = {"before": 1, "forward": 3, "backward": 3, "after": 1}
"""How often faults are there, of one another."""


def faulty(subjects: Subjects, size: int) -> Subjects:
    """Return the losses whose ranks can be several."""
    return {
        label: (name, subject)
        for label, (name, subject) in subjects.items()
        if subject.gathers
        and name not in LOCAL
        and contract_of(name).smallest_world <= size
        and not contract_of(name).holds
    }


def drawn(base_seed: int, number: int, subjects: Subjects, sizes: tuple[int, ...]) -> Fault:
    """Draw a fault of one of these losses, in a world of one of these sizes: it follows from the numbers."""
    choose = random.Random(f"{base_seed} {number}")
    size = sizes[number % len(sizes)]
    able = faulty(subjects, size)
    label = choose.choice(list(able))
    contract, subject = able[label]
    call, before = (_call(choose, contract, subject, size) for _ in range(2))
    # an object is constructed for one case, and then called with the other too
    kept = contract_of(contract).in_form(subject.form).constructed_of(subject)
    case = replace(before.example.case, **{name: getattr(call.example.case, name) for name in kept})
    before = Call(contract, subject, Example(case))
    kind = choose.choice(_kinds(contract, subject))
    (phase,) = choose.choices(list(PHASES), list(PHASES.values()))
    dtype = ""
    if kind == "another dtype":
        own, dtype = choose.choice([pair for pair in PAIRS if pair[0] in subject.dtypes])
        call = Call(contract, subject, Example(replace(call.example.case, dtype=own)))
    others = {name: one for name, one in faulty(SHIPPED, size).items() if one[0] != contract}
    other = others[choose.choice(list(others))]
    return Fault(
        kind=kind,
        rank=choose.randrange(size),
        phase="before" if kind in DISAGREEMENTS else phase,
        at=choose.randrange(MOST_COLLECTIVES),
        label=label,
        call=call,
        before=before,
        other=_call(choose, *other, size) if kind == "another loss" else None,
        dtype=dtype,
    )


def _kinds(contract: str, subject: Subject) -> list[Kind]:
    # an exchange passes on what it gets: ranks may differ in shape and dtype
    without = {"another shape", "another dtype"} if contract == "exchange" else set()
    if not any(own in subject.dtypes for own, _ in PAIRS):
        without.add("another dtype")
    return [kind for kind in KINDS if kind not in without]


def _call(choose: random.Random, contract: str, subject: Subject, size: int) -> Call:
    return Call(contract, subject, Example(choose.choice(_cases(contract, subject, size))))


@functools.lru_cache(maxsize=256)
def _cases(contract: str, subject: Subject, size: int) -> tuple[Case, ...]:
    """Draw cases of a loss: the same ones every time."""
    found: list[Case] = []
    held = contract_of(contract).in_form(subject.form)

    def take(case: Case) -> None:
        found.append(case)

    # bounds of half precision hide what is wrong
    asked = subject
    if not subject.strict:  # it need not take unequal rows or any layout, and fail without a fault
        plain = ("contiguous",)
        asked = replace(asked, even=True, strides=plain, cotangent_strides=plain, empty_ranks=False)
    sharp = tuple(one for one in subject.dtypes if one not in HALVES) or subject.dtypes
    once = settings(
        max_examples=CASES, database=None, deadline=None, phases=[Drawing.generate],
        verbosity=Verbosity.quiet, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    with without_local_constants():
        once(seed(size)(given(held.cases(replace(asked, dtypes=sharp), size))(take)))()
    small = [case for case in found if sum(case.rows) <= MOST_ROWS and case.width <= MOST_WIDTH]
    return tuple(small or found[:1])
