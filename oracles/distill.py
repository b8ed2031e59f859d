"""CLIP with a teacher.

Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2,
https://arxiv.org/abs/1503.02531: the cross-entropy of the student's softmax under the teacher's.
"""

import numpy as np

from .bounds import softmax, step
from .clip import add_up, get_logits, log_softmax, row_weight
from .complex_step import Array, constant


@step(softmax.soft_cross_entropy)
def soft_cross_entropy(teacher_logits: Array, student_logits: Array) -> Array:
    """Return -sum_j softmax(t)_j log softmax(s)_j for each row of [n, c] logits."""
    terms = np.exp(log_softmax(teacher_logits)) * log_softmax(student_logits)
    losses: Array = -np.sum(terms, axis=1)
    return losses


def distill_loss(
    student: tuple[list[Array], list[Array], list[Array], list[Array]],
    teacher: tuple[list[Array], list[Array], list[Array], list[Array]],
    rank: int,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    convention: str = "exact",
) -> complex:
    """Return the distillation loss of `rank`; the teacher is a constant unless as in open_clip.

    Args:
        student: every rank's image features, text features, logit scale and logit bias.
        teacher: the same of the teacher.
        rank: whose loss.
        local_loss: as for CLIP, and so are the rest.
        gather_with_grad: whether gathered rows carry gradient.
        convention: "exact" or "open_clip".
    """
    flags = (local_loss, gather_with_grad, convention)
    logits = []
    for image, text, scale, bias in (student, teacher):
        logits.append(get_logits(image, text, scale[rank], bias[rank], rank, *flags))
    teacher_logits = [constant(z) if convention == "exact" else z for z in logits[1]]
    losses = [soft_cross_entropy(t, s) for t, s in zip(teacher_logits, logits[0], strict=True)]
    rows = [len(features) for features in student[0]]
    loss: complex = add_up(losses, rows) * row_weight(rows, local_loss) / 2
    return loss
