"""What type checkers see: `make lint` runs mypy on this file, pytest runs it."""

from typing import assert_type

import torch
from torch import Tensor

from verified_losses import ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss

X = torch.eye(2, requires_grad=True)
LOGITS, LABELS = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.int64)
FLAG: bool = bool(LABELS.any())


def test_one_loss_is_a_tensor_or_a_dict() -> None:
    for loss in ClipLoss(), SigLipLoss():
        assert_type(loss.forward(X, X, 10.0), Tensor).backward()
        assert_type(loss.forward(X, X, 10.0, None, False), Tensor).backward()
        assert_type(loss.forward(X, X, 10.0, output_dict=True), dict[str, Tensor])[
            "contrastive_loss"
        ].backward()
        assert_type(loss.forward(X, X, 10.0, output_dict=FLAG), Tensor | dict[str, Tensor])


def test_two_losses_are_a_tuple_or_a_dict() -> None:
    coca, distill = CoCaLoss(2.0, 1.0), DistillClipLoss()
    caption = assert_type(coca.forward(X, X, LOGITS, LABELS, 10.0), tuple[Tensor, Tensor])[1]
    assert caption.item() > 0
    named = assert_type(coca.forward(X, X, LOGITS, LABELS, 10.0, output_dict=True), dict[str, Tensor])
    assert named["caption_loss"].item() == caption.item()
    either = assert_type(
        coca.forward(X, X, LOGITS, LABELS, 10.0, output_dict=FLAG),
        tuple[Tensor, Tensor] | dict[str, Tensor],
    )
    assert isinstance(either, dict)
    assert_type(distill.forward(X, X, 10.0, X, X, 20.0), tuple[Tensor, Tensor])[1].backward()
    named = assert_type(distill.forward(X, X, 10.0, X, X, 20.0, output_dict=True), dict[str, Tensor])
    assert set(named) == {"contrastive_loss", "distill_loss"}
