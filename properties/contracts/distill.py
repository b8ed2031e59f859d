"""The contract of CLIP's loss with a teacher."""

import dataclasses

import numpy as np

from verified_losses.oracles import rounding
from verified_losses.oracles.distill import distill_loss
from verified_losses.oracles.rounding import Bounded

from ..cases import Case, scalars
from ..forms import Form
from . import Bounds, Contract, Cotangents, Inputs, Sum
from .clip import ClipContract
from .parts import (
    STUDENT,
    call_of,
    contrastive_bounds,
    directions,
    flags,
    joined,
    of_every_rank,
    row_weighing,
    split_inputs,
    student,
)
from .total import Total

TEACHER = tuple(f"dist_{name}" for name in STUDENT)


class DistillContract(ClipContract):
    """A contrastive term, and the cross-entropy of the student's matches under the teacher's."""

    name = "distill"
    terms: tuple[str, ...] = ("contrastive_loss", "distill_loss")
    differentiable: tuple[str, ...] = (*STUDENT, *TEACHER)
    rows = (*STUDENT[:2], *TEACHER[:2])
    drawn = {"teacher": True}

    def in_form(self, form: Form) -> Contract:
        return DistillTotal() if form.total else self

    def inputs(self, case: Case) -> Inputs:
        pair = self.pair(case, case.teacher_width, 2)
        # the teacher's pairs match less well: its scale is its own
        teacher_case = dataclasses.replace(case, scale=case.scale / 4, bias=case.bias and -case.bias)
        shared = scalars(teacher_case, "dist_")
        teacher = split_inputs(case, dict(zip(TEACHER[:2], pair, strict=True)), shared)
        return [own | other for own, other in zip(super().inputs(case), teacher, strict=True)]

    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, complex]]:
        local_loss, gather_with_grad, convention = flags(case)
        columns = student(inputs), student(inputs, "dist_")
        return [
            {**terms, "distill_loss": distill_loss(*columns, rank, local_loss, gather_with_grad, convention)}
            for rank, terms in enumerate(super().oracle(case, inputs))
        ]

    def oracle_source(self, case: Case) -> dict[str, str]:
        columns = f"({', '.join(STUDENT)}), ({', '.join(TEACHER)})"
        return super().oracle_source(case) | {
            "distill_loss": call_of("distill_loss", columns, case, *flags(case))
        }

    def gradient_expected(self, case: Case) -> dict[str, bool]:
        """The teacher is a constant in the exact convention."""
        expected = super().gradient_expected(case)
        exact = case.convention == "exact"
        return {name: want and not (exact and name in TEACHER) for name, want in expected.items()}

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        p, half = case.precision, case.precision.of_given_logits
        sums = Sum(inputs)
        students, ready = self.directions(case, inputs), self.prepared(case, inputs)
        further = self.further(case, ready, case.teacher_width, "dist_")
        teachers = directions(case, ready, further, "dist_")
        terms = contrastive_bounds(case, students, "contrastive_loss", 1.0, cotangents, sums)
        weight = row_weighing(case)
        constant = case.convention == "exact"

        def entropies(rank: int) -> list[tuple[Bounded, Bounded, Bounded | None]]:
            bounded = []
            for pupil, teacher in zip(students[rank], teachers[rank], strict=True):
                z, t = pupil.logits(p), teacher.logits(p)
                targets, excess = rounding.soft_targets(t, half)
                value, slope = rounding.cross_entropy(z, targets, half, excess)
                of_targets = None if constant else rounding.cross_entropy_targets(z, t, half)
                bounded.append((value, slope, of_targets))
            return bounded

        for rank, bounded in enumerate(of_every_rank(case, entropies)):
            gradient = weight.times(cotangents[rank]["distill_loss"])
            for side, (_, slope, of_targets) in enumerate(bounded):
                students[rank][side].add_gradients(sums, slope, gradient, p)
                if of_targets:
                    teachers[rank][side].add_gradients(sums, of_targets, gradient, p)
            values = joined([value for value, _, _ in bounded])
            terms[rank]["distill_loss"] = np.asarray(rounding.total(values, weight, p, parts=4))
        return Bounds(terms, sums.bounds(p, self.through(case)))


class DistillTotal(Total, DistillContract):
    """The sum of both terms."""

    parts = DistillContract()
