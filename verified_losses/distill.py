"""CLIP with a teacher."""

from typing import Literal, overload

import torch
from torch import Tensor

from . import checks
from .checks import Facts, Scalar
from .clip import ClipLoss, widen


class DistillClipLoss(ClipLoss):
    """A contrastive term, and the cross-entropy of the student's matches under the teacher's.

    The teacher is a constant (convention "open_clip": its gradients flow as upstream's do). The
    smallest distillation term is the teacher's entropy, not 0.

    Args: as for `ClipLoss`.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2,
        https://arxiv.org/abs/1503.02531
    """

    def dist_loss(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Return the mean over rows of the cross-entropy between two [n, c] sets of logits.

        Raises:
            TypeError, ValueError: logits are not two floating [n, c] tensors.
        """
        checks.floating("teacher_logits", teacher_logits, 2)
        checks.floating("student_logits", student_logits, 2)
        return self._sum_dist_loss(teacher_logits, student_logits) / student_logits.shape[0]

    def _sum_dist_loss(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        if teacher_logits.shape != student_logits.shape:
            raise ValueError(
                f"teacher_logits: expected the shape of student_logits, {list(student_logits.shape)}, "
                f"got {list(teacher_logits.shape)}"
            )
        if self.convention == "exact":
            teacher_logits = teacher_logits.detach()
        teacher = widen(teacher_logits).softmax(dim=1)
        return -(teacher * widen(student_logits).log_softmax(dim=1)).sum()

    @overload  # type: ignore[override]
    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Scalar,
        dist_image_features: Tensor, dist_text_features: Tensor, dist_logit_scale: Scalar,
        output_dict: Literal[False] = False, *, logit_bias: Scalar | None = None,
        dist_logit_bias: Scalar | None = None
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip
    @overload
    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Scalar,
        dist_image_features: Tensor, dist_text_features: Tensor, dist_logit_scale: Scalar, *,
        output_dict: Literal[True], logit_bias: Scalar | None = None,
        dist_logit_bias: Scalar | None = None
    ) -> dict[str, Tensor]: ...  # fmt: skip
    @overload
    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Scalar,
        dist_image_features: Tensor, dist_text_features: Tensor, dist_logit_scale: Scalar,
        output_dict: bool = False, *, logit_bias: Scalar | None = None,
        dist_logit_bias: Scalar | None = None
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]: ...  # fmt: skip
    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: Scalar,
        output_dict: bool = False,
        *,
        logit_bias: Scalar | None = None,
        dist_logit_bias: Scalar | None = None,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """Return the contrastive and the distillation loss, two scalars.

        Args:
            image_features: [n, d] of the student, floating.
            text_features: [n, d] of the student.
            logit_scale: the student's inverse temperature, a number or a tensor of shape [] or [1].
            dist_image_features: [n, e] of the teacher, floating; e need not be d.
            dist_text_features: [n, e] of the teacher.
            dist_logit_scale: the teacher's inverse temperature.
            output_dict: return {"contrastive_loss": ..., "distill_loss": ...}.
            logit_bias: added to every logit of the student; None adds nothing.
            dist_logit_bias: added to every logit of the teacher; None adds nothing.

        Raises:
            TypeError, ValueError: an argument is wrong on some rank, or ranks disagree; every rank raises.
            RuntimeError: torch.distributed is not initialised and `world_size` is over 1.
        """

        def check() -> Facts:
            student = self._check(image_features, text_features, logit_scale, logit_bias)
            teacher = self._check(
                dist_image_features, dist_text_features, dist_logit_scale, dist_logit_bias, prefix="dist_"
            )
            if teacher.rows != student.rows:
                raise ValueError(
                    f"dist_image_features: expected the rows of image_features, {student.rows}, "
                    f"got {teacher.rows}"
                )
            return Facts(student.rows, common=f"{student.common} teacher {teacher.common}")

        self._agreed = self._agree(check)
        try:
            student = self.get_logits(image_features, text_features, logit_scale, logit_bias)
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.convention == "open_clip"):
                teacher = self.get_logits(
                    dist_image_features, dist_text_features, dist_logit_scale, dist_logit_bias
                )
            contrastive_loss = self._contrastive(*student)
        finally:
            self._agreed = None
        total = self._sum_dist_loss(teacher[0], student[0]) + self._sum_dist_loss(teacher[1], student[1])
        distill_loss = total * (self._weight(student[0]) / 2)
        if output_dict:
            return {"contrastive_loss": contrastive_loss, "distill_loss": distill_loss}
        return contrastive_loss, distill_loss
