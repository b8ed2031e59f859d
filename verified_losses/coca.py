"""The contrastive captioner's loss."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import checks
from .checks import Convention, Facts, Scalar
from .clip import ClipLoss
from .contrast import sum_cross_entropy, widen
from .implementations import Implementation


class CoCaLoss(ClipLoss):
    """A weighted contrastive term and a weighted caption term.

    The contrastive term is `clip_loss_weight` times `ClipLoss`. With logits z[k] and the label y[k] of each
    of the T tokens that are not padding::

        caption_loss = -caption_loss_weight / T * sum over k of log softmax(z[k])[y[k]]

    Over several ranks T counts the tokens of all of them (convention "open_clip": of this rank), and the mean
    over ranks of both terms, and of all gradients, equals those of one process. A batch of padding alone
    costs 0 and has zero gradient. A term of weight 0 is a constant 0, and nothing is computed for it.

    Labels are checked, and a wrong one is named. Compiled in one process they are not read, so that the loss
    is one graph; a label outside the vocabulary then raises torch's own error.

    Args:
        caption_loss_weight: the factor of the caption term.
        clip_loss_weight: the factor of the contrastive term.
        pad_id: the label that is no token; it need not be in the vocabulary.
        local_loss: compare this rank's rows with all ranks', instead of all with all.
        gather_with_grad: let gradients flow back to the ranks that the gathered rows came from.
        cache_labels: keep what `get_ground_truth` returns between calls.
        rank: this rank, counted within `group`; None takes it from there.
        world_size: the number of ranks in `group`; None takes it from there.
        use_horovod: the ranks are those of Horovod, which runs already, instead of a process group.
        convention: "exact" obeys the mean over ranks; "open_clip" gives upstream's gradients, and a caption
            term that is a mean over this rank's tokens.
        group: the process group; None is the default one.
        implementation: of the contrastive term: "dense" holds all logits at once; "streamed" holds one tile,
            and computes it again in the backward; "auto" takes what is faster, as `explain` says.
        tile_size: rows and columns of a tile of the streamed form; None is what was measured to be fast.

    Raises:
        ValueError: `rank` is outside the world, or None without a group; `convention` or `implementation` is
            unknown; `tile_size` is below 1; or `group` is given with `use_horovod`.
        TypeError: a weight is no number, `pad_id` no int, or `tile_size` neither an int nor None.
        ImportError: `use_horovod` is set and Horovod is not installed.
        RuntimeError: `use_horovod` is set and hvd.init() has not been called.

    Warns:
        UserWarning: `local_loss=True, gather_with_grad=False` over several ranks treats gathered rows as
            constants, which no weighting can make equal to the single process; or `world_size=1` is one
            of several ranks of the process group.

    References:
        Yu et al., CoCa: Contrastive Captioners are Image-Text Foundation Models, 2022, equations 1 to 4,
        https://arxiv.org/abs/2205.01917

    Example:
        >>> import torch
        >>> image_features = text_features = torch.eye(2)
        >>> logits = torch.zeros(2, 3, 4)  # of 3 tokens a caption, in a vocabulary of 4
        >>> labels = torch.tensor([[1, 2, 3], [2, 0, 0]])  # 0 is padding
        >>> loss = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
        >>> contrastive_loss, caption_loss = loss(image_features, text_features, logits, labels, 1.0)
        >>> print(f"{contrastive_loss:.4f} {caption_loss:.4f}")  # log(1 + exp(-1)), 2 log(4)
        0.3133 2.7726
    """

    def __init__(
        self,
        caption_loss_weight: float,
        clip_loss_weight: float,
        pad_id: int = 0,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int | None = 0,
        world_size: int | None = 1,
        use_horovod: bool = False,
        *,
        convention: Convention = "exact",
        group: Any = None,
        implementation: Implementation = "auto",
        tile_size: int | None = None,
    ) -> None:
        weights = {"caption_loss_weight": caption_loss_weight, "clip_loss_weight": clip_loss_weight}
        for name, weight in weights.items():
            if not isinstance(weight, int | float):
                raise TypeError(f"{name}: expected a number, got {type(weight).__name__}")
        if not isinstance(pad_id, int):
            raise TypeError(f"pad_id: expected an int, got {type(pad_id).__name__}")
        super().__init__(
            local_loss,
            gather_with_grad,
            cache_labels,
            rank,
            world_size,
            use_horovod,
            convention=convention,
            group=group,
            implementation=implementation,
            tile_size=tile_size,
        )
        self.caption_loss_weight = caption_loss_weight
        self.clip_loss_weight = clip_loss_weight
        self.pad_id = pad_id

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults, which `repr` shows."""
        return checks.options(self, CoCaLoss.__init__)

    @property
    def waits_for_device(self) -> bool:
        """Whether the host waits for the GPU: labels that are checked are read, unless captions count 0."""
        return super().waits_for_device or bool(self.caption_loss_weight)

    @overload  # type: ignore[override]
    def forward(
        self, image_features: Tensor, text_features: Tensor, logits: Tensor, labels: Tensor,
        logit_scale: Scalar, output_dict: Literal[False] = False, *, logit_bias: Scalar | None = None
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip
    @overload
    def forward(
        self, image_features: Tensor, text_features: Tensor, logits: Tensor, labels: Tensor,
        logit_scale: Scalar, *, output_dict: Literal[True], logit_bias: Scalar | None = None
    ) -> dict[str, Tensor]: ...  # fmt: skip
    @overload
    def forward(
        self, image_features: Tensor, text_features: Tensor, logits: Tensor, labels: Tensor,
        logit_scale: Scalar, output_dict: bool = False, *, logit_bias: Scalar | None = None
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]: ...  # fmt: skip
    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: Tensor,
        labels: Tensor,
        logit_scale: Scalar,
        output_dict: bool = False,
        *,
        logit_bias: Scalar | None = None,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """Return the weighted contrastive and caption losses, two scalars.

        Args:
            image_features: [n, d], floating, normalised by the caller.
            text_features: [n, d], row i the partner of image i, on the same device; dtypes may differ under
                autocast.
            logits: [b, t, v] floating scores of the next token, on the same device.
            labels: [b, t] int64 token ids in [0, v), or `pad_id`.
            logit_scale: the inverse temperature, a number or a tensor of shape [] or [1].
            output_dict: return {"contrastive_loss": ..., "caption_loss": ...}.
            logit_bias: added to contrastive logits, a number or a tensor of shape [] or [1]; None is 0.

        Raises:
            TypeError, ValueError: an argument is wrong on some rank, or ranks disagree; every rank raises.
            RuntimeError: torch.distributed is not initialised and `world_size` is over 1.
        """

        def check() -> Facts:
            facts = self._check(image_features, text_features, logit_scale, logit_bias)
            caption = checks.floating("logits", logits, 3, may_have_no_rows=True)
            if caption.device != image_features.device:
                raise ValueError(
                    f"logits: expected the device of image_features, {image_features.device}, "
                    f"got {caption.device}"
                )
            tokens = self._count_tokens(caption, labels) if self.caption_loss_weight else 0
            weights = f"weights {self.clip_loss_weight}, {self.caption_loss_weight}"
            return Facts(facts.rows, tokens, f"{facts.common} {weights}")

        everyone = self._agree_facts(check)
        contrastive_loss = caption_loss = widen(image_features.new_zeros(()))
        if self.clip_loss_weight:
            rows = tuple(facts.rows for facts in everyone)
            contrastive_loss = self.clip_loss_weight * self._contrastive(
                image_features, text_features, logit_scale, logit_bias, rows
            )
        if self.caption_loss_weight:
            tokens = [facts.tokens for facts in everyone]
            caption_loss = self.caption_loss_weight * self._caption_loss(logits, labels, tokens)
        if output_dict:
            return {"contrastive_loss": contrastive_loss, "caption_loss": caption_loss}
        return contrastive_loss, caption_loss

    def _caption_loss(self, logits: Tensor, labels: Tensor, tokens: list[int | Tensor]) -> Tensor:
        """Return the caption loss, unweighted, given how many tokens each rank holds."""
        if self.convention == "exact":
            weight = self.world_size / _at_least_one(sum(tokens))
        else:
            weight = 1 / _at_least_one(tokens[self.rank])
        return weight * sum_cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=self.pad_id)

    def _count_tokens(self, logits: Tensor, labels: Tensor) -> int | Tensor:
        """Check the labels and return how many are not padding: a tensor, unread, where this is compiled."""
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels: expected an int64 tensor, got {got}")
        if labels.shape != logits.shape[:2]:
            raise ValueError(
                f"labels: expected the first two dimensions of logits, {list(logits.shape[:2])}, "
                f"got {list(labels.shape)}"
            )
        if labels.device != logits.device:
            raise ValueError(f"labels: expected the device of logits, {logits.device}, got {labels.device}")
        if not len(labels):
            return 0
        is_token = labels != self.pad_id
        if torch.compiler.is_compiling():
            return is_token.sum().to(widen(logits).dtype)
        ids = labels.masked_fill(~is_token, 0)
        tokens, low, high = torch.stack([is_token.sum(), ids.amin(), ids.amax()]).tolist()
        if low < 0 or high >= logits.shape[2]:
            raise ValueError(
                f"labels: expected token ids in [0, {logits.shape[2]}) or pad_id={self.pad_id}, "
                f"got {low if low < 0 else high}"
            )
        return int(tokens)


def _at_least_one(tokens: int | Tensor) -> int | Tensor:
    return tokens.clamp(min=1) if isinstance(tokens, Tensor) else max(tokens, 1)
