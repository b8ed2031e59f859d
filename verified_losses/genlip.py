"""The language model's loss of generative image-text pretraining."""

from typing import Literal, overload

from torch import Tensor, nn

from . import captions, checks
from .implementations import streams_tokens


class GenLipLoss(nn.Module):
    """The mean cross-entropy of the next tokens that are not ignored.

    With logits z[k] and the label y[k] of each of the T tokens whose label is not `ignore_index`::

        caption_loss = -1 / T * sum over k of log softmax(z[k])[y[k]]

    With `label_smoothing` and `z_loss` a token costs what `fused_linear_cross_entropy` says, which computes
    the same from hidden states, without all logits in memory. A batch without tokens costs 0 and has zero
    gradient, where open_clip's costs NaN. Each rank has the mean of its own tokens: for that of all ranks'
    use `CoCaLoss` with `clip_loss_weight=0.0`.

    Args:
        ignore_index: the label that is no token; it need not be in the vocabulary.
        label_smoothing: the share of a token's probability that all of the vocabulary have alike.
        z_loss: the factor of the square of a token's log-sum-exp.

    Raises:
        ValueError: `label_smoothing` is outside [0, 1], or `z_loss` below 0 or not finite.
        TypeError: an argument is no number, or `ignore_index` no int.

    References:
        open_clip's main branch, src/open_clip/loss.py, https://github.com/mlfoundations/open_clip

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 3, 4), torch.tensor([[-100, 1, 2]])
        >>> print(f"{GenLipLoss()(logits, labels):.4f}")  # log(4)
        1.3863
    """

    def __init__(
        self, ignore_index: int = -100, *, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> None:
        super().__init__()
        kind = captions.token_loss(ignore_index, label_smoothing, z_loss)
        self.ignore_index, self.label_smoothing, self.z_loss = kind

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults, which `repr` shows."""
        return checks.options(self, GenLipLoss.__init__)

    @overload
    def forward(self, logits: Tensor, labels: Tensor, output_dict: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, logits: Tensor, labels: Tensor, output_dict: Literal[True]) -> dict[str, Tensor]: ...
    @overload
    def forward(
        self, logits: Tensor, labels: Tensor, output_dict: bool = False
    ) -> Tensor | dict[str, Tensor]: ...
    def forward(
        self, logits: Tensor, labels: Tensor, output_dict: bool = False
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss, a scalar of the logits' dtype, or float32 if that is narrower.

        Args:
            logits: [..., v] floating scores of the next token, already shifted.
            labels: int64 token ids in [0, v) or `ignore_index`, of the shape of logits without the last
                dimension. On a GPU a label that is neither raises torch's own error.
            output_dict: return {"caption_loss": loss}.

        Raises:
            TypeError, ValueError: an argument is wrong.
        """
        dimensions = max(logits.ndim, 1) if isinstance(logits, Tensor) else 1
        scores = checks.floating("logits", logits, dimensions, may_be_empty=dimensions > 1)
        kind = captions.TokenLoss(self.ignore_index, self.label_smoothing, self.z_loss)
        device, classes = scores.device, scores.shape[-1]
        captions.check_target(labels, scores.shape[:-1], classes, kind, device, "labels", "logits")
        if streams_tokens("auto", scores.numel(), device):
            # one caption of all tokens would be one chunk
            total = captions.sum_logits(scores.reshape(-1, 1, classes), labels.reshape(-1, 1), kind)
        else:
            total = captions.token_losses(scores.reshape(-1, classes), labels.reshape(-1), kind)
        loss = total / (labels != self.ignore_index).sum().clamp(min=1)
        return {"caption_loss": loss} if output_dict else loss
