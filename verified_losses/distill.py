"""CLIP with a teacher."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import checks, contrast, ranks
from .checks import Facts, Scalar
from .clip import ClipLoss, overrides
from .gather import Rows
from .implementations import Implementation
from .memory import Kind, StatedMemory
from .streamed import Side


class DistillClipLoss(ClipLoss):
    """A contrastive term, and the cross-entropy of the student's matches under the teacher's.

    The contrastive term is `ClipLoss` of the student. With the logits z of the student and y of the teacher,
    each [N, N]::

        distill_loss = -1 / (2 N) * sum over i of (<softmax(y[i, :]), log softmax(z[i, :])>
                                                   + <softmax(y[:, i]), log softmax(z[:, i])>)

    Over several ranks the mean over ranks of both terms, and of all gradients, equals those of one process.
    The teacher is a constant (convention "open_clip": its gradients flow as upstream's do). The
    smallest distillation term is the teacher's entropy, not 0.

    Args:
        local_loss: compare this rank's rows with all ranks', instead of all with all.
        gather_with_grad: let gradients flow back to the ranks that the gathered rows came from. Second
            derivatives over several ranks equal those of one process with it alone.
        cache_labels: keep what `get_ground_truth` returns between calls.
        rank: this rank, counted within `group`; None takes it from there.
        world_size: the number of ranks in `group`; None takes it from there.
        use_horovod: the ranks are those of Horovod, which runs already, instead of a process group.
        convention: "exact" obeys the mean over ranks; "open_clip" gives upstream's gradients, the teacher's
            among them.
        group: the process group; None is the default one.
        implementation: "dense" holds all logits at once; "streamed" holds one tile of them, and computes it
            again in the backward; so does "triton", by kernels for a GPU; "auto" takes what is faster, or
            fits, as `explain` says. A teacher that gets gradients is computed densely.
        tile_size: rows and columns of a tile. None takes 256 rows and 1024 columns on a CPU, which are fast
            there, and 8192 rows and columns elsewhere, which were not measured.
        agree: "always" tells all ranks of the rows and arguments of each call, so that what is wrong, or
            differs, raises on every rank. "once" does so for the first call of a shape, dtype and
            requires_grad; a rank that is given these again takes the other ranks to have what they had then.
            If they have not, the loss is wrong without an error, or ranks wait: two ranks may not have 3 and
            2 rows, then 2 and 3, then 3 and 3. What is wrong in a later call raises on its rank alone, and
            the others wait until their process group's timeout.

    Raises:
        ValueError: `rank` is outside the world, or None without a group; `convention`, `implementation` or
            `agree` is unknown; `tile_size` is below 1; or `group` is given with `use_horovod`.
        TypeError: `tile_size` is neither an int nor None.
        ImportError: `use_horovod` is set and Horovod is not installed.
        RuntimeError: `use_horovod` is set and hvd.init() has not been called.

    Warns:
        UserWarning: `local_loss=True, gather_with_grad=False` over several ranks treats gathered rows as
            constants, which no weighting can make equal to the single process; or `world_size=1` is one
            of several ranks of the process group.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2,
        https://arxiv.org/abs/1503.02531

    Example:
        >>> import torch
        >>> student, teacher = torch.eye(2), torch.eye(2, 3)
        >>> contrastive_loss, distill_loss = DistillClipLoss()(student, student, 1.0, teacher, teacher, 100.0)
        >>> print(f"{contrastive_loss:.4f} {distill_loss:.4f}")  # a sure teacher's matches are the labels
        0.3133 0.3133
    """

    _kind: Kind = "distill"

    def dist_loss(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Return the mean over rows of the cross-entropy between two sets of logits.

        Args:
            teacher_logits: [n, c], floating; a constant, but in convention "open_clip".
            student_logits: [n, c], floating.

        Returns:
            A scalar of the logits' dtype, or float32 if that is narrower.

        Raises:
            TypeError, ValueError: logits are not two floating [n, c] tensors of one shape.
        """
        checks.floating("teacher_logits", teacher_logits, 2)
        checks.floating("student_logits", student_logits, 2)
        if teacher_logits.shape != student_logits.shape:
            raise ValueError(
                f"teacher_logits: expected the shape of student_logits, {list(student_logits.shape)}, "
                f"got {list(teacher_logits.shape)}"
            )
        if self.convention == "exact":
            teacher_logits = teacher_logits.detach()
        return contrast.sum_dist_loss(teacher_logits, student_logits) / student_logits.shape[0]

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
            image_features: [n, d] of the student, floating, normalised by the caller.
            text_features: [n, d] of the student, row i the partner of image i, on the same device; dtypes may
                differ under autocast.
            logit_scale: the student's inverse temperature, a number or a tensor of shape [] or [1].
            dist_image_features: [n, e] of the teacher, floating; e need not be d.
            dist_text_features: [n, e] of the teacher, alike.
            dist_logit_scale: the teacher's inverse temperature, a number or a tensor of shape [] or [1].
            output_dict: return {"contrastive_loss": ..., "distill_loss": ...}.
            logit_bias: added to the student's logits, a number or a tensor of shape [] or [1]; None is 0.
            dist_logit_bias: added to the teacher's logits, likewise.

        Raises:
            TypeError, ValueError: an argument is wrong on some rank, or ranks disagree; every rank raises.
            RuntimeError: torch.distributed is not initialised and `world_size` is over 1.
        """
        given = dist_image_features, dist_text_features, dist_logit_scale, dist_logit_bias

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
            learns = "learning " if self._is_taught_densely(*given) else ""
            return Facts(student.rows, common=f"{student.common} {learns}teacher {teacher.common}")

        rows = self._agree(check)
        student = (image_features, text_features), logit_scale, logit_bias
        teacher = (dist_image_features, dist_text_features), dist_logit_scale, dist_logit_bias
        contrastive_loss, distill_loss = self._both(student, teacher, rows)
        if output_dict:
            return {"contrastive_loss": contrastive_loss, "distill_loss": distill_loss}
        return contrastive_loss, distill_loss

    def stated_memory(self, *, rows: Rows | None = None, **inputs: Any) -> StatedMemory:
        """Return how many bytes a call and its backward save, and take at most, on this rank.

        `verified_losses.memory` has the formulas, which the loss is held to.

        Args:
            rows: the pairs of each rank; None is for as many on each as here.
            inputs: the arguments of a call, by name.
        """
        teacher = [value for name, value in inputs.items() if name.startswith("dist_")]
        form = self._implementation(*teacher)
        width = inputs["dist_image_features"].shape[1]
        return self._pairs_memory(inputs["image_features"], rows, width, form)

    def _overridden(self) -> list[str]:
        """Return the methods of a subclass's own that are given all logits at once."""
        return super()._overridden() + overrides(self, DistillClipLoss, "dist_loss")

    def _sum_dist_loss(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Sum over rows what a subclass's own `dist_loss` is the mean of; of no rows that is 0."""
        count = len(student_logits)
        if not count or not overrides(self, DistillClipLoss, "dist_loss"):
            return contrast.sum_dist_loss(teacher_logits, student_logits)
        return self.dist_loss(teacher_logits, student_logits) * count

    def _implementation(self, *teacher: object) -> Implementation:
        """Return the implementation: of a teacher that learns tiles have no gradients."""
        return "dense" if self._is_taught_densely(*teacher) else self.implementation

    def _is_taught_densely(self, *teacher: object) -> bool:
        if self.implementation == "dense" or self.convention == "exact":
            return False
        return any(map(_learns, teacher))

    def _both(self, student: Side, teacher: Side, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the two losses of checked arguments."""
        features, scale, bias = student
        dist_features, dist_scale, dist_bias = teacher
        if self.convention == "exact":
            dist_features = dist_features[0].detach(), dist_features[1].detach()
            dist_scale = _constant(dist_scale)
            dist_bias = None if dist_bias is None else _constant(dist_bias)
        weight = self._row_weight(rows) / 2
        if self._overridden():
            logits = self.get_logits(*features, scale, bias)
            dist_logits = self.get_logits(*dist_features, dist_scale, dist_bias)
            per_image, per_text = map(self._sum_dist_loss, dist_logits, logits)
            return self._contrastive_of_logits(logits, rows), (per_image + per_text) * weight
        implementation = self._implementation(*dist_features, dist_scale, dist_bias)
        image, dist_width = features[0], dist_features[0].shape[1]
        batch = self._batch(rows, image.shape[1], image.dtype, image.device, dist_width)
        sums = batch.choose(implementation, self.tile_size)
        if sums.name != "dense" and self.world_size > 1:
            taught = dist_features, dist_scale, dist_bias
            sides = ranks.sum_symmetric_distill(student, taught, self._ranks(rows), sums.tile, sums.form)
            return sides[0] * weight, sides[1] * weight
        pairs, dist_pairs = self._pairs(*features, rows), self._pairs(*dist_features, rows)
        if len(pairs) == 1:
            both = sums.sum_symmetric_distill(pairs[0], scale, bias, dist_pairs[0], dist_scale, dist_bias)
        else:
            start = self._start(rows)
            images, texts = (
                contrast.sum_distill(pair, scale, bias, dist_pair, dist_scale, dist_bias, start)
                for pair, dist_pair in zip(pairs, dist_pairs, strict=True)
            )
            both = images[0] + texts[0], images[1] + texts[1]
        return both[0] * weight, both[1] * weight


def _constant(value: Scalar) -> Scalar:
    return value.detach() if isinstance(value, Tensor) else value


def _learns(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()
