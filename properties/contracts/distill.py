"""The contract of CLIP's loss with a teacher."""

import dataclasses

from verified_losses.oracles.distill import distill_loss

from ..cases import Case, scalars
from ..forms import Form
from . import Contract
from .calls import Call, Inputs
from .clip import ClipContract
from .parts import STUDENT, flags, split_inputs
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

    def calls(self, case: Case) -> dict[str, Call]:
        taught = Call(distill_loss, (STUDENT, TEACHER), flags(case))
        return super().calls(case) | {"distill_loss": taught}

    def gradient_expected(self, case: Case) -> dict[str, bool]:
        """The teacher is a constant in the exact convention."""
        expected = super().gradient_expected(case)
        exact = case.convention == "exact"
        return {name: want and not (exact and name in TEACHER) for name, want in expected.items()}


class DistillTotal(Total, DistillContract):
    """The sum of both terms."""

    parts = DistillContract()
